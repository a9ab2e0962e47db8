"""Conversations to imitate (SFT) to token ids: which turns are trained, and what goes where a row is too long."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lite_align.data.render import CHUNK, Renderer, Unusable, without_oldest_round
from lite_align.data.types import Chat, Conversation, Rendered, first_answer
from lite_align.recipe import TrainOn


@dataclass(frozen=True, slots=True)
class ChatTokens:
    """A conversation as token ids; it lost its oldest `turns_dropped` turns."""

    tokens: Rendered
    turns_dropped: int


def render(
    renderer: Renderer,
    chats: Sequence[Chat],
    max_length: int,
    *,
    train_on: TrainOn = "all_turns",
    drop_turns: bool = True,
) -> list[ChatTokens | Unusable]:
    """Token ids of all conversations, in order; what cannot be trained is returned with its reason.

    Args:
        renderer: of the tokenizer.
        chats: rows; they are encoded some hundred at a time.
        max_length: tokens of a conversation. Where it has more, its oldest rounds (a user turn and what answers it)
            go, whole; the system turn and the last round stay. Raw texts that are longer are left out.
        train_on: `all_turns`: every answer with its stop token, but not what the assistant says before the first
            question; `last_turn`: the last answer alone; `all_tokens`: everything but the first token. Raw texts are
            trained in all tokens.
        drop_turns: False leaves a conversation that is too long out instead.
    """
    results: list[ChatTokens | Unusable] = []
    for start in range(0, len(chats), CHUNK):
        results += _chunk(renderer, chats[start : start + CHUNK], max_length, train_on, drop_turns)
    return results


def _chunk(
    renderer: Renderer, chats: Sequence[Chat], max_length: int, train_on: TrainOn, drop_turns: bool
) -> list[ChatTokens | Unusable]:
    results: dict[int, ChatTokens | Unusable] = {}
    pending: dict[int, Conversation] = {number: chat.messages for number, chat in enumerate(chats)}
    while pending:
        found = _rendered(renderer, [(chats[n].raw, messages) for n, messages in pending.items()], train_on)
        longer: dict[int, Conversation] = {}
        for (number, messages), rendered in zip(pending.items(), found, strict=True):
            if isinstance(rendered, Rendered) and len(rendered.ids) > max_length:
                shorter = None if chats[number].raw or not drop_turns else without_oldest_round(messages)
                if shorter is not None:
                    longer[number] = shorter
                    continue
                rendered = Unusable("too_long", f"{len(rendered.ids):,} tokens do not fit in {max_length:,}")
            dropped = len(chats[number].messages) - len(messages)
            results[number] = rendered if isinstance(rendered, Unusable) else ChatTokens(rendered, dropped)
        pending = longer
    return [results[number] for number in range(len(chats))]


def _rendered(
    renderer: Renderer, rows: Sequence[tuple[bool, Conversation]], train_on: TrainOn
) -> list[Rendered | Unusable]:
    """Raw texts and conversations, each kind in one call."""
    texts = iter(renderer.texts([messages[0].content for raw, messages in rows if raw]))
    turns = iter(_conversations(renderer, (messages for raw, messages in rows if not raw), train_on))
    return [next(texts if raw else turns) for raw, _ in rows]


def _conversations(
    renderer: Renderer, conversations: Iterable[Conversation], train_on: TrainOn
) -> list[Rendered | Unusable]:
    def split(messages: Conversation) -> tuple[Conversation, Conversation]:
        first = first_answer(messages) if train_on == "all_turns" else len(messages) - 1
        return messages[:first], messages[first:]

    found = renderer.conversations([split(messages) for messages in conversations])
    if train_on != "all_tokens":
        return found
    return [_in_all_tokens(one) if isinstance(one, Rendered) else one for one in found]


def _in_all_tokens(rendered: Rendered) -> Rendered:
    return Rendered(rendered.ids, (False, *[True] * (len(rendered.ids) - 1)))
