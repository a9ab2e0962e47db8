"""Pairs of a chosen and a rejected answer as the rows of a stage."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lite_align.data import lint
from lite_align.data.types import Conversation, Pair
from lite_align.recipe import DataOptions
from lite_align.stages.rows import Kind, Sequences

if TYPE_CHECKING:
    from lite_align.data.render import Renderer, Unusable


def _prompt(pair: Pair) -> Conversation:
    return pair.prompt


def _texts(pair: Pair) -> Iterator[str]:
    return (turn.content for turn in (*pair.prompt, *pair.chosen, *pair.rejected))


def _sequences(
    renderer: "Renderer", pairs: Sequence[Pair], options: DataOptions
) -> "list[Sequences | Unusable]":
    from lite_align.data.render import PairTokens

    assert options.max_length != "auto"
    rendered = renderer.pairs(pairs, options.max_length, drop_turns=options.truncate == "oldest_turns")
    return [
        Sequences((row.chosen, row.rejected), row.turns_dropped) if isinstance(row, PairTokens) else row
        for row in rendered
    ]


PAIRS = Kind(
    wanted="pair",
    row=Pair,
    noun="pairs",
    lint=lint.lint_pairs,
    prompt=_prompt,
    texts=_texts,
    sequences=_sequences,
    answers=("chosen", "rejected"),
)
"""Chosen first: leaf 0 of a tree is the chosen answer, leaf 1 the rejected one."""
