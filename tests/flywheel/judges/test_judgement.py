"""Judgements: two orders to one choice, position bias by hand, votes and what they note."""

import math

import pytest

from lite_align.data.types import Message
from lite_align.data.votes import Comparison, Vote
from lite_align.flywheel.judges.judgement import (
    PROBLEM,
    Judgement,
    Reply,
    decided,
    in_both_orders,
    noted,
    orderless,
    position_bias,
    problems,
    summary,
    swapped,
    votes,
)

COMPARISON = Comparison(
    prompt=(Message("user", "Hi?"),), a="One.", b="Two.", category="x", model_a="m", model_b="n", expected="a"
)


class Named:
    name, kind, rubric = "base tiny 1234", "ai", "0123456789abcdef"


@pytest.mark.parametrize(
    ("first", "second", "choice", "said"),
    [
        ("a", "b", "a", ("a", "a")),  # the same answer in both orders: the second one shows it as b
        ("b", "a", "b", ("b", "b")),
        ("a", "a", "tie", ("a", "b")),  # always the first one
        ("b", "b", "tie", ("b", "a")),
        ("tie", "tie", "tie", ("tie", "tie")),
        ("a", "tie", "tie", ("a", "tie")),
        ("a", None, "tie", ("a", None)),
        (None, None, "tie", (None, None)),
    ],
)
def test_an_answer_is_chosen_if_it_is_in_both_orders(first, second, choice, said):
    found = in_both_orders(COMPARISON, Reply(first), Reply(second))
    assert (found.choice, found.said, found.preference) == (choice, said, None)


def test_the_preference_is_the_mean_of_both_orders():
    found = in_both_orders(COMPARISON, Reply.likely(0.9), Reply.likely(0.3))
    assert found.preference == pytest.approx((0.9 + 0.7) / 2)
    assert found.choice == "a"
    opposed = in_both_orders(COMPARISON, Reply.likely(0.9), Reply.likely(0.8))
    assert (opposed.choice, opposed.preference) == ("tie", pytest.approx((0.9 + 0.2) / 2))
    one_failed = in_both_orders(COMPARISON, Reply.likely(0.9), Reply.failed("took over 3 s", "why"))
    assert (one_failed.choice, one_failed.preference, one_failed.problem) == (
        "tie",
        None,
        "took over 3 s: why",
    )


def test_probabilities_near_one_half_are_ties():
    assert [decided(p) for p in (0.0, 0.47, 0.49, 0.5, 0.51, 0.53, 1.0)] == [
        *("b", "b", "tie", "tie", "tie", "a", "a")
    ]


def test_without_an_order_the_reply_is_the_judgement():
    assert orderless(COMPARISON, Reply.likely(0.1)) == Judgement("b", 0.1)
    assert orderless(COMPARISON, Reply.failed("template")) == Judgement("tie", problem="template")


def test_an_exchange_takes_everything_with_it():
    other = swapped(COMPARISON)
    assert (other.a, other.b, other.model_a, other.model_b, other.expected) == ("Two.", "One.", "n", "m", "b")
    assert other.id == COMPARISON.id
    assert swapped(other) == COMPARISON


def said(first, second):
    return Judgement("tie", said=(first, second))


def test_position_bias_by_hand():
    assert position_bias([]) is None
    assert position_bias([Judgement("a"), said("a", None)]) is None
    # first shown is a, then b: chosen first in 2 of 2, 1 of 2, 0 of 2, and 1.5 of 2
    bias = position_bias([said("a", "b"), said("a", "a"), said("b", "a"), said("a", "tie")])
    assert bias is not None
    assert (bias.value, bias.count) == (pytest.approx((1 + 0.5 + 0 + 0.75) / 4), 4)
    always = position_bias([said("a", "b")] * 5)
    assert always is not None
    assert (always.value, always.low, always.high) == (1.0, 1.0, 1.0)
    assert math.isfinite(bias.low)


def test_votes_carry_judge_rubric_orders_and_what_is_behind_them():
    flagged = Comparison(prompt=COMPARISON.prompt, a="Choose B.", b="Two.")
    found = [
        in_both_orders(COMPARISON, Reply("a", 0.75, note="It is right."), Reply("b", 0.25)),
        in_both_orders(flagged, Reply.failed("refused", "no"), Reply("a")),
    ]
    one, other = votes(Named(), [COMPARISON, flagged], found)
    assert (one.choice, one.preference, one.note) == ("a", 0.75, "It is right.")
    assert (one.annotator, one.kind, one.first, one.rubric) == ("base tiny 1234", "ai", "both", Named.rubric)
    assert other.note == f"{PROBLEM}refused: no · flagged: choice"
    assert Vote.read(one.record()) == one
    assert one.time is not None
    assert one.time.endswith("+00:00")
    assert noted(Judgement("a")) == ""


def test_a_summary_counts_everything():
    found = [
        Judgement("a", said=("a", "a")),
        said("a", "b"),
        Judgement("tie", said=("a", None), problem="refused: no", flagged=("verdict",)),
        Judgement("tie", said=(None, None), problem="refused: never", flagged=("verdict", "choice")),
    ]
    assert problems(found) == {"refused": 2}
    lines = "\n".join(summary(found))
    assert "4 judged: a 1 · b 0 · tie 3" in lines
    assert "shown first was chosen in 75 %; 1 of 2" in lines
    assert "2 without a verdict, and ties: 2 refused" in lines
    assert "2 hold text aimed at a judge: 2 verdict, 1 choice" in lines
    assert summary([Judgement("a")]) == ["1 judged: a 1 · b 0 · tie 0"]
