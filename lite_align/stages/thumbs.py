"""Answers with a thumb up or down as the rows of a stage."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lite_align.data import lint
from lite_align.data.types import Conversation, Rated
from lite_align.recipe import DataOptions
from lite_align.stages.rows import Kind, Sequences

if TYPE_CHECKING:
    from lite_align.data.render import Renderer, Unusable


def _prompt(row: Rated) -> Conversation:
    return row.prompt


def _texts(row: Rated) -> Iterator[str]:
    return (turn.content for turn in (*row.prompt, *row.answer))


def _about(row: Rated) -> str:
    return "thumb up" if row.label else "thumb down"


def _sequences(
    renderer: "Renderer", rows: Sequence[Rated], options: DataOptions
) -> "list[Sequences | Unusable]":
    from lite_align.data.render import AnswerTokens

    assert options.max_length != "auto"
    rendered = renderer.answers(
        [(row.prompt, (row.answer,)) for row in rows],
        options.max_length,
        drop_turns=options.truncate == "oldest_turns",
    )
    return [
        Sequences(tokens.answers, tokens.turns_dropped) if isinstance(tokens, AnswerTokens) else tokens
        for tokens in rendered
    ]


THUMBS = Kind(
    wanted="rated",
    row=Rated,
    noun="thumbs",
    lint=lint.lint_rated,
    prompt=_prompt,
    texts=_texts,
    sequences=_sequences,
    answers=("answer",),
    about=_about,
)
"""A tree of one leaf each; `data.mismatch` puts those with one prompt together."""
