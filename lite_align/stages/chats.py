"""Conversations and raw texts to imitate: how `rows` reads, checks and renders them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lite_align.data import lint
from lite_align.data.types import Chat, Conversation
from lite_align.recipe import DataOptions, TrainOn
from lite_align.stages.rows import Kind, Sequences

if TYPE_CHECKING:
    from lite_align.data.render import Renderer, Unusable

TRAINED: dict[TrainOn, str] = {
    "all_turns": "loss on every answer of a conversation",
    "last_turn": "loss on the last answer of a conversation",
    "all_tokens": "loss on all tokens, prompts included",
}
"""What is trained, for people."""


def chats(train_on: TrainOn) -> Kind[Chat]:
    """Conversations of which some turns are trained."""

    def sequences(
        renderer: "Renderer", rows: Sequence[Chat], options: DataOptions
    ) -> "list[Sequences | Unusable]":
        from lite_align.data.chats import ChatTokens, render

        assert options.max_length != "auto"
        drop_turns = options.truncate == "oldest_turns"
        found = render(renderer, rows, options.max_length, train_on=train_on, drop_turns=drop_turns)
        return [
            Sequences((one.tokens,), one.turns_dropped) if isinstance(one, ChatTokens) else one
            for one in found
        ]

    return Kind(
        wanted="chat",
        row=Chat,
        noun="chats",
        lint=lint.lint_chats,
        prompt=asked,
        texts=lambda row: (turn.content for turn in row.messages),
        sequences=sequences,
        answers=("answer",),
    )


def asked(row: Chat) -> Conversation:
    """What a row must not have in common with a row on the other side of a split: its prompt, or its whole text."""
    return row.messages if row.raw else row.prompt
