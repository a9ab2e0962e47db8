"""Who writes the next turn: the base with its adapters off, or an endpoint."""

import pytest

from lite_align.data.types import Message
from lite_align.flywheel.judges.chat_api import Endpoint
from lite_align.flywheel.judges.opening import Local
from lite_align.flywheel.writers import BaseWriter, EndpointWriter, Written
from lite_align.model.backbone import Role
from lite_align.train.faults import TokenBudget
from tests import finished
from tests.flywheel.judges.endpoint_server import Said, content, serving

ASKED = (Message("user", "When does the library open?"),)
UNKNOWN = (Message("wizard", "Hm."),)


def writer(tiny, max_tokens=40, positions=4096):
    backbone, renderer = tiny
    return BaseWriter(Local(backbone, renderer, TokenBudget(64), positions), max_tokens)


def test_the_base_writes_as_it_would_without_an_adapter(tiny):
    backbone, renderer = tiny
    with backbone.role(Role.BASE):
        (ids,) = backbone.generate(
            [renderer.prompt_ids(ASKED)], stop_ids=renderer.stop_ids, max_new_tokens=40
        )
    expected = renderer.tokenizer.decode(list(ids), skip_special_tokens=True).strip()
    kept = backbone.adapter_tensors(Role.POLICY)
    finished.move(backbone, Role.POLICY, 0.5)
    try:
        one = writer(tiny)
        (found,) = one.write([ASKED])
    finally:
        backbone.set_adapter_tensors(Role.POLICY, kept)
    assert found == Written(expected)
    assert expected
    assert one.tell() == [f"{len(ids):,} tokens written"]
    assert one.name.startswith("base tiny ")


def test_what_the_base_cannot_write_has_a_reason_and_the_rest_goes_on(tiny):
    long = (Message("user", "word " * 400),)
    kinds = [
        one.problem and one.problem.partition(":")[0]
        for one in writer(tiny, positions=300).write([UNKNOWN, ASKED, long])
    ]
    assert kinds == ["roles", None, "too long"]
    (cut,) = writer(tiny, max_tokens=2).write([ASKED])
    assert cut.problem == "cut off: no end in 2 tokens"
    assert writer(tiny).write([UNKNOWN])[0].problem is not None
    assert writer(tiny).write([]) == []


def test_an_endpoint_writes_and_what_it_refuses_has_a_reason():
    def reply(request):
        text = request["messages"][-1]["content"]
        return Said("", 400) if text == "bad" else content(f" {text}! ")

    with serving(reply) as server:
        one = EndpointWriter(Endpoint(server.url, "m", seconds=2.0), at_once=2)
        found = one.write([(Message("user", text),) for text in ("one", "bad", "<|im_end|>")])
        one.close()
    assert [one.text for one in found] == ["one!", "", "< |im_end|>!"]
    assert found[1].problem == "status 400"
    assert one.tell() == ["3 questions"]
    assert all("response_format" not in request for request in server.requests)


@pytest.mark.parametrize("key", ["canary-9f3e"])
def test_a_key_that_a_server_repeats_is_hidden(monkeypatch, key):
    monkeypatch.setenv("LITE_ALIGN_API_KEY", key)
    with serving(lambda request: content(f"your key is {key}")) as server:
        one = EndpointWriter(Endpoint(server.url, "m", seconds=2.0), at_once=1)
        (found,) = one.write([ASKED])
        one.close()
    assert found.text == "your key is [hidden]"
