"""What votes come to, by hand."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lite_align.data.majority import decide, weight
from lite_align.data.types import Message
from lite_align.data.votes import Choice, Comparison, Vote

ONE = Comparison(prompt=(Message("user", "Where is the pool?"),), a="North.", b="South.", category="fact")
OTHER = replace(ONE, prompt=(Message("user", "Where is the bank?"),))
ANNOTATORS = ("ann", "ben", "cem", "dora", "eli", "fay", "gus")


def votes(*choices: Choice, on: Comparison = ONE) -> list[Vote]:
    return [Vote(comparison=on, choice=choice, annotator=name) for choice, name in zip(choices, ANNOTATORS)]


def test_the_weight_is_that_of_a_smoothed_share() -> None:
    # (5 + 1)/(5 + 2) = 6/7 prefer it, so 2·6/7 − 1; a tie is half a vote for each: (1 + 1/2 + 1)/(2 + 2) = 5/8.
    assert weight(5, 0, 5) == pytest.approx(2 * 6 / 7 - 1)
    assert weight(1, 0, 2) == pytest.approx(2 * 5 / 8 - 1)
    assert weight(1, 0, 1) == pytest.approx(1 / 3)
    assert weight(2, 1, 3) == pytest.approx(1 / 5)


@pytest.mark.parametrize(
    ("choices", "better", "heavy", "why"),
    [
        (["a"], "North.", 1 / 3, ""),
        (["b", "b", "a"], "South.", 1 / 5, ""),
        (["a", "a", "tie", "bad"], "North.", 2 / 6, ""),
        (["a", "skip"], "North.", 1 / 3, ""),
        (["a", "b"], None, 0, "annotators differ: 1 a, 1 b"),
        (["a", "tie"], None, 0, "annotators differ: 1 a, 1 tie"),
        (["tie", "tie", "a"], None, 0, "a tie, say 2 of 3"),
        (["bad"], None, 0, "both answers are bad, say 1 of 1"),
        (["skip", "skip"], None, 0, "skipped by 2"),
        (["none"], None, 0, "every vote was taken back"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else None,
)
def test_the_majority_decides(choices: list[Choice], better: str | None, heavy: float, why: str) -> None:
    (found,) = decide(votes(*choices))
    assert (found.better, found.why) == (better, why)
    assert found.weight == pytest.approx(heavy)
    if better is not None:
        assert {better, found.worse} == {"North.", "South."}


def test_the_last_vote_counts_and_comparisons_stay_in_order() -> None:
    found = decide([*votes("a", on=OTHER), *votes("a", "a"), *votes("b"), *votes("none", on=OTHER)])
    assert [one.comparison for one in found] == [OTHER, ONE]
    assert found[0].why == "every vote was taken back"
    assert found[1].why == "annotators differ: 1 a, 1 b"


def test_answers_may_stand_the_other_way_round() -> None:
    turned = replace(ONE, a="South.", b="North.")
    (found,) = decide([*votes("a"), replace(votes("a", on=turned)[0], annotator="ben")])
    assert found.why == "annotators differ: 1 a, 1 b"
    (found,) = decide([*votes("a"), replace(votes("b", on=turned)[0], annotator="ben")])
    assert (found.better, found.weight) == ("North.", 0.5)


@given(st.lists(st.sampled_from(("a", "b", "tie", "bad", "skip")), min_size=1, max_size=7))
def test_turning_every_vote_round_turns_the_decision(choices: list[Choice]) -> None:
    opposite: dict[str, Choice] = {"a": "b", "b": "a"}
    (found,) = decide(votes(*choices))
    (turned,) = decide(votes(*(opposite.get(choice, choice) for choice in choices)))
    assert found.weight == turned.weight >= 0
    assert (found.better is None) == (turned.better is None)
    assert found.better is None or found.better == turned.worse
    assert (found.weight == 0) == (found.better is None)
