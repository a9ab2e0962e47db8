"""Conversations on their way to trees: what is trained, what goes, what rows are split by."""

import pytest

from lite_align.data.render import Renderer, Unusable
from lite_align.data.types import Chat, Message, Source
from lite_align.recipe import DataOptions
from lite_align.stages.chats import asked, chats
from tests.stages import small


def chat(*contents: str, raw: bool = False) -> Chat:
    roles = ("assistant",) if raw else ("user", "assistant")
    turns = tuple(Message(roles[n % len(roles)], text) for n, text in enumerate(contents))
    return Chat(Source("rows.jsonl", 1), messages=turns, raw=raw)


def test_rows_are_split_by_their_first_question_and_texts_by_all_they_say():
    assert asked(chat("Why?", "So.", "And?", "Yes.")) == (Message("user", "Why?"),)
    assert asked(chat("Once upon a time.", raw=True)) == (Message("assistant", "Once upon a time."),)


@pytest.mark.parametrize(("way", "trained"), [("all_turns", 2), ("last_turn", 1), ("all_tokens", 1)])
def test_a_recipe_says_what_is_trained(tokenizer, way, trained):
    kind = chats(way)
    row = chat("hello", "world", "the fox", "a dog")
    (found,) = kind.sequences(Renderer(tokenizer), [row], DataOptions(max_length=200))
    assert not isinstance(found, Unusable)
    (answer,) = found.answers
    assert sum(now and not before for before, now in zip((False, *answer.trained), answer.trained)) == trained
    assert list(kind.texts(row)) == ["hello", "world", "the fox", "a dog"]


def test_old_rounds_go_unless_the_recipe_forbids_it(tokenizer):
    row = chat(*["hello world " * 10, "the fox"] * 4)
    kind, renderer = chats("all_turns"), Renderer(tokenizer)
    (found,) = kind.sequences(renderer, [row], DataOptions(max_length=100))
    assert not isinstance(found, Unusable)
    assert found.turns_dropped in (4, 6)
    (refused,) = kind.sequences(renderer, [row], DataOptions(max_length=100, truncate="never"))
    assert isinstance(refused, Unusable)
    assert refused.reason == "too_long"


def test_small_rows_have_one_or_two_rounds():
    assert {len(row.messages) for row in small.as_chats(small.rows(4))} == {2, 4}
