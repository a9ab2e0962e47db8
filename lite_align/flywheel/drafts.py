"""Answers that can be revised, one by one: of candidates, comparisons, votes or any format with answers. No torch."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from lite_align.data import formats, sources
from lite_align.data.types import Chat, Conversation, Pair, Rated, Row
from lite_align.data.votes import Comparison
from lite_align.errors import DataError
from lite_align.flywheel import items


class Draft(NamedTuple):
    """An answer to a prompt; `category` is the prompt's."""

    prompt: Conversation
    answer: str
    category: str | None = None

    @property
    def id(self) -> str:
        """The same for the same prompt and answer: 16 hexadecimal digits."""
        content = [[message.role, message.content] for message in self.prompt], self.answer
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


class Drafts(NamedTuple):
    """Different drafts in the order of the file, and what was left out."""

    drafts: tuple[Draft, ...]
    notes: tuple[str, ...]


def read(path: str) -> Drafts:
    """All answers of a file; of pairs and comparisons both, of a conversation the last turn.

    Raises:
        DataError: rows cannot be read, or hold no answer.
    """
    table = sources.read(path)
    first = table.rows[0][1]
    if items.is_candidates(first):
        rows = items.each(table, _candidates, "candidates")
    elif {"a", "b", "prompt"} <= first.keys():
        rows = items.each(table, _both, "comparisons")
    else:
        rows = [_of(row) for row in formats.convert(table, formats.detect(table))]
    found = {draft.id: draft for drafts in rows for draft in drafts}
    empty = sum(not drafts for drafts in rows)
    if not found:
        raise DataError(
            f"{path} holds no answer to revise", remedy="Give candidates of sample, pairs or chats."
        )
    notes = [*table.notes, *([f"left out: {empty:,} rows without one answer in one turn"] if empty else [])]
    return Drafts(tuple(found.values()), tuple(notes))


def _candidates(row: Mapping[str, Any]) -> list[Draft]:
    return [_both({**row, "a": one["text"], "b": one["text"]})[0] for one in items.answers_of(row)]


def _both(row: Mapping[str, Any]) -> list[Draft]:
    one = Comparison.read(row)
    return [Draft(one.prompt, text, one.category) for text in (one.a, one.b)]


def _of(row: Row) -> list[Draft]:
    match row:
        case Pair():
            answers = [row.chosen, row.rejected]
            found = [(row.prompt, answer[0].content) for answer in answers if len(answer) == 1]
        case Rated() if len(row.answer) == 1:
            found = [(row.prompt, row.answer[0].content)]
        case Chat(raw=False) if len(row.messages) > 1 and row.messages[-1].role == "assistant":
            found = [(row.messages[:-1], row.messages[-1].content)]
        case _:
            found = []
    return [Draft(prompt, answer, row.category) for prompt, answer in found]
