"""Which comparison an annotator sees next, and which answer stands first: drawn from a seed, the same after a restart.

Nothing here is random at run time: every draw is a hash of the seed, the annotator and the comparison, so that items
which are added to the file later change no draw that was made before.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Literal, NamedTuple

DISTANCE = 20
"""Least number of other items between an item and its repetition, where there are so many."""

Side = Literal["a", "b"]


class Slot(NamedTuple):
    """One question to an annotator: a comparison for the first time (`turn` 0) or once more (`turn` 1)."""

    comparison: str
    turn: int


def plan(comparisons: Sequence[str], *, seed: int, annotator: str, repeats: float) -> list[Slot]:
    """All questions to an annotator in their order.

    Of n comparisons, `repeats` · n are asked once more, min(20, n/2) items after the first time; they are drawn from
    those that have so many after them.
    """
    ordered = sorted(comparisons, key=lambda name: _draw(seed, annotator, "order", name))
    distance = min(DISTANCE, len(ordered) // 2)
    candidates = ordered[: len(ordered) - distance]
    again = sorted(candidates, key=lambda name: _draw(seed, annotator, "again", name))
    chosen = set(again[: round(repeats * len(ordered))])
    slots: list[Slot] = []
    for place, name in enumerate(ordered):
        slots.append(Slot(name, 0))
        if place >= distance and (earlier := ordered[place - distance]) in chosen:
            slots.append(Slot(earlier, 1))
    return slots


def first(slot: Slot, *, seed: int, annotator: str) -> Side:
    """The answer that stands first: drawn for each annotator, and the other one when an item is repeated."""
    drawn = _draw(seed, annotator, "side", slot.comparison) % 2
    return "a" if drawn == slot.turn % 2 else "b"


def still_open(slots: Sequence[Slot], answered: Iterable[str]) -> list[Slot]:
    """The questions that are still to be asked, in the order of the plan; `answered`: ids, twice where asked twice."""
    count = Counter(answered)
    return [slot for slot in slots if slot.turn >= count[slot.comparison]]


def upcoming(
    slots: Sequence[Slot], *, taken_back: Sequence[str] = (), disputed: Collection[str] = ()
) -> Slot | None:
    """The next of the open questions: what was just taken back, then what others differ on, then the plan."""
    for name in reversed(taken_back):
        if slot := next((slot for slot in slots if slot.comparison == name), None):
            return slot
    return min(slots, key=lambda slot: slot.turn > 0 or slot.comparison not in disputed, default=None)


def _draw(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:8])
