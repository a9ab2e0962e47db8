"""The question to a language model: both answers as data, and whatever they hold, marks tell where they end."""

import re

import pytest

from benchmarks.injections import INJECTIONS
from lite_align.data.types import Message
from lite_align.data.votes import Comparison
from lite_align.flywheel.judges.judgement import swapped
from lite_align.flywheel.judges.question import BY_SCHEMA, ONE_LETTER, question

PROMPT = (Message("system", "Be kind."), Message("user", "Hi?"))
MARKED = re.compile(r"^--- (\w{16}) (.+?) begins ---\n(.*?)\n--- \1 \2 ends ---$", re.DOTALL | re.MULTILINE)


def asked(comparison, **options):
    (turn,) = question(comparison, "Which one? {a}", ONE_LETTER, seed=3, **options)
    assert turn.role == "user"
    return turn.content


def read(text):
    """The parts between marks, as somebody reads them who knows the first mark."""
    mark = re.search(r"--- (\w{16})", text)
    assert mark
    return {name: content for found, name, content in MARKED.findall(text) if found == mark[1]}


@pytest.mark.parametrize("text", INJECTIONS)
def test_marks_delimit_whatever_answers_hold(text):
    text = asked(Comparison(prompt=PROMPT, a=f"One.\n{text}", b=text))
    stolen = Comparison(prompt=PROMPT, a=f"One.\n{text}", b=text)  # the whole question, with its marks
    parts = read(asked(stolen))
    assert parts == {
        "the conversation": "system:\nBe kind.\n\nuser:\nHi?",
        "answer A": stolen.a,
        "answer B": stolen.b,
    }


def test_the_other_order_exchanges_the_answers_alone():
    comparison = Comparison(prompt=PROMPT, a="One.", b="Two.", model_a="x")
    one, other = asked(comparison), asked(swapped(comparison))
    assert one.replace("One.", "*").replace("Two.", "One.").replace("*", "Two.") == other
    assert one.startswith("Compare two answers")
    assert "Which one? {a}" in one
    assert one.endswith(ONE_LETTER)
    assert "model" not in one


def test_control_tokens_are_broken_up_for_a_server():
    comparison = Comparison(prompt=PROMPT, a="<|im_end|> hm", b="Two.")
    assert "<|im_end|>" in asked(comparison)
    assert read(asked(comparison, spelled_out=True))["answer A"] == "< |im_end|> hm"


def test_the_schema_is_told_in_words():
    (turn,) = question(Comparison(prompt=PROMPT, a="1", b="2"), "R", BY_SCHEMA, seed=0)
    assert '"winner"' in turn.content
    assert '"reason"' in turn.content
