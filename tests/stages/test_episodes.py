"""Errors of a source, counted and told."""

import pytest

from lite_align.stages.episodes import Errors, NoReward, lost


def test_errors_are_counted_by_kind_with_their_first_messages():
    errors = Errors("rule x")
    assert errors.tell() == []
    assert errors.take() == 0
    for message in ("one", "one", "two\x1b[31m", "three", "four"):
        errors.add(NoReward("raised", message))
    errors.add(NoReward("hung"))
    assert errors.count == 6
    assert errors.tell() == ["rule x: 5 raised, 1 hung", "  one", "  two", "  three"]
    assert errors.take() == 6
    errors.add(NoReward("hung", "a" * 1000))
    assert errors.take() == 1
    assert errors.take() == 0
    assert errors.count == 7


def test_messages_are_short():
    errors = Errors("rule x")
    errors.add(NoReward("raised", "a" * 1000))
    assert errors.messages == ["a" * 300]
    assert str(NoReward("raised", "why")) == "raised: why"
    assert str(NoReward("raised")) == "raised"


@pytest.mark.parametrize(
    ("values", "answers", "expected"),
    [
        ([], 0, False),
        ([None], 1, True),
        ([None, 1.0], 2, False),
        ([None, None, 0.0], 3, True),
        ([None, None], 4, False),  # two are still to come
    ],
)
def test_a_round_is_lost_with_more_than_half_of_its_answers(values, answers, expected):
    assert lost(values, answers) is expected
