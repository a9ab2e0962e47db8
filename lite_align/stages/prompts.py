"""Prompts without answers as the rows of a stage: each a tree whose leaf is the stop token of an answer to come."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lite_align.data import lint
from lite_align.data.types import Conversation, Message, Prompt
from lite_align.errors import RecipeError
from lite_align.recipe import DataOptions
from lite_align.stages.rows import Kind, Sequences

if TYPE_CHECKING:
    from lite_align.data.render import Renderer, Unusable

_ANSWER = Message("assistant", "An answer")
"""Takes the place of the answer to come while a prompt is rendered, and is cut off."""


def _prompt(row: Prompt) -> Conversation:
    return row.messages


def _texts(row: Prompt) -> Iterator[str]:
    return (turn.content for turn in row.messages)


def prompts(max_new_tokens: int) -> Kind[Prompt]:
    """Prompts that leave room for answers of so many tokens."""

    def sequences(
        renderer: "Renderer", rows: Sequence[Prompt], options: DataOptions
    ) -> "list[Sequences | Unusable]":
        from lite_align.data.render import AnswerTokens, Unusable
        from lite_align.data.types import Rendered

        assert options.max_length != "auto"
        written = renderer.conversation((Message("user", "Hi"),), (_ANSWER,))
        after = len(written.ids) - written.trained.index(True)  # of the answer that is cut off again
        room = options.max_length - max_new_tokens + after
        if room < len(written.ids):
            raise RecipeError(
                f"ppo.max_new_tokens {max_new_tokens:,} leaves no room for a prompt in data.max_length "
                f"{options.max_length:,}",
                remedy="Lower ppo.max_new_tokens, or raise data.max_length.",
            )
        rendered = renderer.answers(
            [(row.messages, ((_ANSWER,),)) for row in rows],
            room,
            drop_turns=options.truncate == "oldest_turns",
        )

        def to_come(tokens: "AnswerTokens | Unusable") -> "Sequences | Unusable":
            if isinstance(tokens, Unusable):
                if tokens.reason != "too_long":
                    return tokens
                return Unusable(
                    "too_long", f"the prompt does not fit beside an answer of {max_new_tokens:,} tokens"
                )
            (answer,) = tokens.answers
            size = answer.trained.index(True)
            ids = (*answer.ids[:size], renderer.turn_end)
            return Sequences((Rendered(ids, (*answer.trained[:size], True)),), tokens.turns_dropped)

        return [to_come(tokens) for tokens in rendered]

    return Kind(
        wanted="prompt",
        row=Prompt,
        noun="prompts",
        lint=lint.lint_prompts,
        prompt=_prompt,
        texts=_texts,
        sequences=sequences,
        answers=("answer to come",),
        marked="sampled",
    )
