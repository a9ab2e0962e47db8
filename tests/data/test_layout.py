"""Where a rendered conversation is cut, in characters counted by hand."""

import pytest

from lite_align.data.encode import Encoder
from lite_align.data.layout import Layouts
from lite_align.data.template import ChatTemplate, Refused
from lite_align.data.types import Message
from tests.conftest import make_tokenizer
from tests.data.test_render import CHATML, answer, turns


@pytest.fixture(scope="module")
def layouts() -> Layouts:
    tokenizer = make_tokenizer(CHATML)
    template = ChatTemplate(tokenizer, None, trusted=True)
    return Layouts(template, Encoder(tokenizer, template.source, template.written))


def test_a_conversation_is_cut_where_answers_begin_and_measured_where_they_stop(layouts: Layouts):
    found = layouts.of(turns("Hi"), answer("Yes", "And?", "No"))
    question, first = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "Yes<|im_end|>\n"
    between = "<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"
    assert [text for _, text in found.fragments] == [question, first + between, "No<|im_end|>\n"]
    assert found.begins == (0, len(question), len(question + first + between))
    assert found.ends == ((len(question) + 3, True), (found.begins[2] + 2, True))
    text = "".join(part for _, part in found.fragments)
    assert [(text[slot.start : slot.end], slot.role) for slot in found.slots] == [
        ("Hi", "user"),
        ("Yes", "assistant"),
        ("And?", "user"),
        ("No", "assistant"),
    ]


def test_conversations_of_one_shape_share_what_was_found_out(layouts: Layouts):
    layouts.of(turns("one"), answer("two"))
    before = dict(layouts._plans)
    layouts.of(turns("another question"), answer("another answer"))
    assert layouts._plans == before


@pytest.mark.parametrize(
    ("reply", "reason"), [((), "roles"), ((Message("user", "Hi"),), "roles"), (answer(""), "empty")]
)
def test_what_is_no_answer_is_refused(layouts: Layouts, reply, reason):
    with pytest.raises(Refused) as refusal:
        layouts.of(turns("Hi"), reply)
    assert refusal.value.reason == reason
