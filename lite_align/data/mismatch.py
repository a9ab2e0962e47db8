"""Answers with a thumb in windows: which rows make an optimiser step, which share a prompt, and whose answer stands in
for another one where the policy is asked what it gives to any answer.

Row numbers count the rows of a set. A block is one or two rows with the same prompt, an up and a down where there are
both; blocks stay together, so that their prompt is computed once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from lite_align.data import forest
from lite_align.data.types import Rendered, Tree

Block = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """A row as tokens: a prompt, and what follows it from the first trained token on."""

    prompt: tuple[int, ...]
    answer: Rendered

    @classmethod
    def of(cls, rendered: Rendered) -> "Answered":
        """Cut a sequence where its first trained token begins.

        In capitals what is trained: a b C D E gives the prompt a b and the answer C D E.
        """
        begin = rendered.trained.index(True)
        return cls(rendered.ids[:begin], Rendered(rendered.ids[begin:], rendered.trained[begin:]))

    def under(self, prompt: tuple[int, ...]) -> Rendered:
        """The answer as it stands after a prompt."""
        return Rendered(prompt + self.answer.ids, (False,) * len(prompt) + self.answer.trained)

    @property
    def tokens(self) -> int:
        """Number of tokens of the answer."""
        return len(self.answer.ids)


def blocks(rows: Sequence[Answered], up: Sequence[bool]) -> list[Block]:
    """Put rows with one prompt together, each thumb up with a thumb down, in the order in which blocks begin."""
    waiting: dict[tuple[tuple[int, ...], bool], list[int]] = {}
    found: list[list[int]] = []
    for number, (row, label) in enumerate(zip(rows, up, strict=True)):
        open_blocks = waiting.get((row.prompt, not label))
        if open_blocks:
            found[open_blocks.pop(0)].append(number)
        else:
            waiting.setdefault((row.prompt, label), []).append(len(found))
            found.append([number])
    return [tuple(block) for block in found]


class Windows:
    """The rows of every optimiser step, and the row whose answer stands in for each: functions of the step alone.

    Args:
        rows: of the set.
        groups: its blocks.
        size: rows of an optimiser step; the last one of an epoch may be smaller.
        seed: of the order.
        longest: tokens that a prompt with a foreign answer may have.
    """

    def __init__(
        self, rows: Sequence[Answered], groups: Sequence[Block], *, size: int, seed: int, longest: int
    ) -> None:
        self.rows = rows
        self.groups = groups
        self.size = size
        self.seed = seed
        self.longest = longest

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one pass over the rows."""
        return -(-len(self.rows) // self.size)

    def step(self, step: int) -> tuple[list[Block], list[Block]]:
        """The blocks of optimiser step `step` (of a block that is cut in two, the part inside) and their stand-ins."""
        epoch, index = divmod(step, self.steps_per_epoch)
        order = [self.groups[i] for i in forest.order(len(self.groups), self.seed, epoch)]
        flat = [(place, row) for place, block in enumerate(order) for row in block]
        inside = flat[index * self.size : (index + 1) * self.size]
        window = [tuple(row for _, row in part) for _, part in groupby(inside, key=lambda placed: placed[0])]
        return window, stand_ins(self.rows, window, order, self.longest)


def stand_ins(
    rows: Sequence[Answered], window: Sequence[Block], others: Sequence[Block], longest: int
) -> list[Block]:
    """For each block of a window the rows whose answers are put under its prompt: those of the block before it.

    The first block takes those of the last one, so that the answers are the same as those that are trained, each under
    a prompt that is not its own (arXiv 2402.01306 section 4.1). A block before it with the same prompt, or whose answer
    would not fit, is passed over; where the window has no other, the search goes on in `others`, from its end. An
    answer that nothing can stand in for is left out.
    """

    def before(place: int) -> Iterator[Block]:
        for back in range(1, len(window)):
            yield window[place - back]
        yield from reversed(others)

    def fitting(row: int, rank: int, place: int) -> int | None:
        prompt = rows[row].prompt
        for block in before(place):
            other = block[rank % len(block)]
            if rows[other].prompt != prompt and len(prompt) + rows[other].tokens <= longest:
                return other
        return None

    return [
        tuple(other for rank, row in enumerate(block) if (other := fitting(row, rank, place)) is not None)
        for place, block in enumerate(window)
    ]


def own_tree(rows: Sequence[Answered], block: Block) -> Tree:
    """The tree of a block: its prompt and its answers; the key is its first row."""
    return _tree(block[0], [rows[row].under(rows[row].prompt) for row in block])


def mismatched_tree(rows: Sequence[Answered], block: Block, others: Block) -> Tree:
    """The prompt of a block with the answers of other rows; the key is the first row of the block."""
    return _tree(block[0], [rows[other].under(rows[block[0]].prompt) for other in others])


def _tree(key: int, sequences: Sequence[Rendered]) -> Tree:
    return forest.grow(key, sequences) if len(sequences) > 1 else forest.single(key, sequences[0])
