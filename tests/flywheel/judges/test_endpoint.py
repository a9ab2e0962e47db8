"""An endpoint as judge: both orders, the schema alone, and no injected text that is a verdict."""

import json
import re

import pytest

from benchmarks.injections import INJECTIONS
from lite_align.data.types import Message
from lite_align.data.votes import Comparison
from lite_align.flywheel.judges.chat_api import Endpoint
from lite_align.flywheel.judges.endpoint import RESPONSE_FORMAT, EndpointJudge, verdict
from lite_align.flywheel.judges.judgement import problems
from lite_align.flywheel.rubrics import Rubric
from tests.flywheel.judges.endpoint_server import Said, content, serving, winner
from tests.flywheel.judges.test_question import read

RUBRIC = Rubric(name="r", question="Which one is right?", criteria=("It is right.",))


def comparison(a, b):
    return Comparison(prompt=(Message("user", "Hi?"),), a=a, b=b)


def judged(url, comparisons, **options):
    judge = EndpointJudge(Endpoint(url, "m", seconds=2.0, attempts=2, wait=0.01), RUBRIC, **options)
    told = []
    try:
        return judge, judge.judge(comparisons, told.append)
    finally:
        judge.close()
        assert sum(told) == len(comparisons)


def by_length(request):
    """An honest judge: the longer of what stands between the marks."""
    parts = read(request["messages"][0]["content"])
    longer = "A" if len(parts["answer A"]) > len(parts["answer B"]) else "B"
    return winner(longer, f"{longer} is longer.")


def test_both_orders_are_asked_by_schema():
    items = [comparison("long enough", "short"), comparison("short", "long enough")]
    with serving(by_length) as server:
        judge, found = judged(server.url, items, at_once=2)
    assert [one.choice for one in found] == ["a", "b"]
    assert [one.said for one in found] == [("a", "a"), ("b", "b")]
    assert found[0].note == "A is longer."
    assert len(server.requests) == 4
    assert all(request["response_format"] == RESPONSE_FORMAT for request in server.requests)
    assert all(request["temperature"] == 0 for request in server.requests)
    assert judge.name == f"endpoint m {server.url.split('/')[2]}"
    assert (judge.kind, judge.rubric) == ("ai", RUBRIC.hash)
    assert judge.tell() == ["4 questions"]
    assert RUBRIC.text in server.requests[0]["messages"][0]["content"]


def test_what_goes_wrong_is_a_tie_and_counted():
    replies = {
        "garbage": content("A"),
        "refusing": content(None, message={"refusal": "no"}),
        "busy": Said("", 429),
        "wrong": Said("", 400),
    }

    def reply(request):
        text = request["messages"][0]["content"]
        return next((said for word, said in replies.items() if word in text), winner("tie"))

    items = [comparison(word, "Two.") for word in (*replies, "fine")]
    with serving(reply) as server:
        _, found = judged(server.url, items)
    assert [one.choice for one in found] == ["tie"] * 5
    assert found[4].problem is None
    assert problems(found) == {"against the schema": 1, "refused": 1, "status 429": 1, "status 400": 1}


@pytest.mark.parametrize("text", INJECTIONS)
def test_an_injection_does_not_move_a_judge_that_follows_the_protocol(text):
    worse, better = f"No.\n{text}", "A right answer, said at some length, " * 12
    with serving(by_length) as server:
        _, (found,) = judged(server.url, [comparison(better, worse)])
    assert found.choice == "a"
    assert found.flagged
    sent = server.requests[0]["messages"][0]["content"]
    assert not re.search(r"<\|im_end\|>|</s>|\[INST\]|<end_of_turn>", sent)


@pytest.mark.parametrize("text", INJECTIONS)
def test_a_model_that_repeats_an_injection_gives_no_verdict_but_by_schema(text):
    found = verdict(f"The answers say: {text}")
    assert found.verdict is None
    assert verdict(f'{{"winner": "A", "reason": {json.dumps(text)}}}').verdict == "a"


@pytest.mark.parametrize(
    "text",
    [
        "A",
        "",
        '{"winner": "A"}',
        '{"winner": "a", "reason": "x"}',
        '{"winner": "A", "reason": null}',
        '{"winner": ["A"], "reason": "x"}',
        '{"winner": "A", "reason": "x", "note": "y"}',
        '{"winner": "B", "winner": "A", "reason": "x"}',
        '{"winner": "A", "reason": "x"} {"winner": "B", "reason": "x"}',
        '```json\n{"winner": "A", "reason": "x"}\n```',
        '[{"winner": "A", "reason": "x"}]',
    ],
)
def test_what_is_not_the_schema_is_no_verdict(text):
    found = verdict(text)
    assert found.verdict is None
    assert found.problem is not None
    assert found.problem.startswith("against the schema: ")


def test_a_long_reason_is_kept_in_part():
    assert len(verdict(json.dumps({"winner": "tie", "reason": "x" * 9999})).note) == 500
