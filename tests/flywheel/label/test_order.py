"""The order of questions: everything once, some again and far enough away, the same after a restart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lite_align.flywheel.label.order import Slot, first, plan, still_open, upcoming

NAMES = [f"item-{number}" for number in range(100)]

sizes = st.integers(0, 80)
shares = st.sampled_from([0, 0.1, 0.25, 0.5])


@given(sizes, shares, st.integers(0, 99))
def test_everything_is_asked_once_and_a_share_again_later(size: int, repeats: float, seed: int) -> None:
    slots = plan(NAMES[:size], seed=seed, annotator="ann", repeats=repeats)
    once, again = ([slot.comparison for slot in slots if slot.turn == turn] for turn in (0, 1))
    assert sorted(once) == sorted(NAMES[:size])
    assert len(set(again)) == len(again) == min(round(repeats * size), size - min(20, size // 2))
    for name in again:
        between = slots[slots.index(Slot(name, 0)) + 1 : slots.index(Slot(name, 1))]
        assert len({slot.comparison for slot in between}) >= min(20, size // 2)


def test_annotators_and_seeds_have_orders_of_their_own() -> None:
    plans = [
        plan(NAMES, seed=seed, annotator=name, repeats=0.1)
        for seed, name in ((1, "ann"), (1, "ben"), (2, "ann"))
    ]
    assert plans[0] == plan(NAMES[::-1], seed=1, annotator="ann", repeats=0.1)
    assert len({tuple(slots) for slots in plans}) == 3


def test_items_that_are_added_do_not_change_what_was_drawn() -> None:
    before, after = (plan(names, seed=1, annotator="ann", repeats=0) for names in (NAMES[:50], NAMES))
    assert [slot for slot in after if slot in before] == before


def test_sides_are_drawn_evenly_for_each_annotator_and_exchanged_when_asked_again() -> None:
    sides = {
        name: [first(Slot(item, 0), seed=5, annotator=name) for item in NAMES] for name in ("ann", "ben")
    }
    again = [first(Slot(item, 1), seed=5, annotator="ann") for item in NAMES]
    for drawn in sides.values():
        assert 30 <= drawn.count("a") <= 70  # 100 fair draws: outside with probability 4e-5
    assert sides["ann"] != sides["ben"]
    assert all({one, other} == {"a", "b"} for one, other in zip(sides["ann"], again))


SLOTS = [Slot("x", 0), Slot("y", 0), Slot("x", 1), Slot("z", 0)]


def test_what_was_answered_is_not_asked() -> None:
    assert still_open(SLOTS, ["y"]) == [Slot("x", 0), Slot("x", 1), Slot("z", 0)]
    assert still_open(SLOTS, ["x", "y"]) == [Slot("x", 1), Slot("z", 0)]
    assert still_open(SLOTS, ["x", "x", "z", "gone"]) == [Slot("y", 0)]


@pytest.mark.parametrize(
    ("taken_back", "disputed", "expected"),
    [
        ([], [], Slot("x", 0)),
        ([], ["z"], Slot("z", 0)),
        ([], ["z", "y"], Slot("y", 0)),
        (["z", "y"], ["x"], Slot("y", 0)),
        (["gone"], [], Slot("x", 0)),
    ],
)
def test_what_was_taken_back_is_next_then_what_is_disputed(
    taken_back: list[str], disputed: list[str], expected: Slot
) -> None:
    assert upcoming(SLOTS, taken_back=taken_back, disputed=disputed) == expected
    assert upcoming([], taken_back=taken_back, disputed=disputed) is None
