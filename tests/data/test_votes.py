"""Rows of votes: written and read back, the last word of an annotator, and rows that are none."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lite_align.data.types import Message
from lite_align.data.votes import CHOICES, SOURCES, Comparison, Vote, latest, played, standing

COMPARISON = Comparison(
    prompt=(Message("user", "Where is the pool?"),), a="North.", b="South.", category="fact"
)
VOTE = Vote(comparison=COMPARISON, choice="a", annotator="ann")

texts = st.text(max_size=20)
comparisons = st.builds(
    Comparison,
    prompt=st.lists(st.builds(Message, st.sampled_from(("system", "user")), texts), min_size=1).map(tuple),
    a=texts,
    b=texts,
    category=st.none() | texts,
    model_a=st.none() | texts,
    expected=st.none() | st.sampled_from(CHOICES),
)


@given(
    st.builds(
        Vote,
        comparison=comparisons,
        choice=st.sampled_from(CHOICES),
        annotator=texts,
        kind=st.sampled_from(SOURCES),
        first=st.sampled_from(("a", "b", "both", None)),
        seconds=st.none() | st.floats(0, 1e6, allow_subnormal=False),
        note=st.none() | texts,
        preference=st.none() | st.floats(0, 1, allow_subnormal=False),
    )
)
def test_a_vote_comes_back_from_its_row(vote: Vote) -> None:
    assert Vote.read(vote.record()) == vote


def test_a_comparison_is_the_same_whichever_answer_stands_first() -> None:
    assert COMPARISON.id == replace(COMPARISON, a="South.", b="North.").id
    assert COMPARISON.id != replace(COMPARISON, a="East.").id
    assert COMPARISON.id != replace(COMPARISON, prompt=(Message("user", "Where is the bank?"),)).id


def test_the_last_vote_of_an_annotator_counts() -> None:
    other = replace(VOTE, annotator="ben", choice="b")
    assert latest([VOTE, other, replace(VOTE, choice="tie")]) == [replace(VOTE, choice="tie"), other]


def test_a_repeated_question_has_two_votes_and_none_takes_back_the_last() -> None:
    again, other = replace(VOTE, choice="b"), replace(VOTE, annotator="ben")
    taken_back = replace(VOTE, choice="none")
    assert standing([VOTE, other, again]) == [VOTE, other, again]
    assert standing([VOTE, again, other, taken_back]) == [VOTE, other]
    assert standing([VOTE, taken_back, taken_back, again]) == [again]


def test_a_vote_that_was_taken_back_is_gone() -> None:
    assert latest([VOTE, replace(VOTE, choice="none")]) == []


def test_a_judge_s_votes_on_the_same_answers_are_several_outcomes_and_a_person_s_are_not() -> None:
    judge = replace(VOTE, annotator="base", kind="judge")
    turned = replace(judge, comparison=replace(COMPARISON, a=COMPARISON.b, b=COMPARISON.a))
    corrected, other = replace(VOTE, choice="tie"), replace(VOTE, annotator="ben")
    assert played([judge, VOTE, judge, other, turned, corrected]) == [judge, judge, other, turned, corrected]
    assert played([VOTE, judge, replace(VOTE, choice="none")]) == [judge]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": "Where?"}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"a": 3}, '"a"'),
        ({"choice": "c"}, "choice"),
        ({"annotator": None}, "annotator"),
        ({"kind": "robot"}, "kind"),
        ({"expected": "maybe"}, "expected"),
    ],
)
def test_a_row_that_is_no_vote_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Vote.read(VOTE.record() | change)
