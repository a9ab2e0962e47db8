"""The table of formats, the decorator that fills it, and the view of a row that format functions read."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, dropwhile
from typing import Literal, NamedTuple

from lite_align.data.formats.conversation import (
    BadRow,
    answer_turns,
    check_answer,
    check_prompt,
    turns,
    without_prompt,
)
from lite_align.data.strict_json import Json, kind_of
from lite_align.data.types import Chat, Conversation, Message, Pair, Prompt, Ranking, Rated, Row, Source

Kind = Literal["pair", "chat", "prompt", "rated", "refused"]
Shape = Literal["text", "turns", "answer", "flag", "list", "object", "any"]

_FITS: dict[str, frozenset[str]] = {
    "text": frozenset({"text"}),
    "turns": frozenset({"messages", "message"}),
    "answer": frozenset({"text", "messages", "message"}),
    "flag": frozenset({"bool", "number", "text"}),
    "list": frozenset({"list", "messages"}),
    "object": frozenset({"object", "message"}),
    "any": frozenset({"text", "messages", "message", "bool", "number", "list", "object"}),
}
_UP = ("true", "1", "1.0", "yes", "up", "good", "👍", "desirable")
_DOWN = ("false", "0", "0.0", "no", "down", "bad", "👎", "undesirable")
_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
)


@dataclass(frozen=True)
class Problem:
    """A row that does not fit its format, and why."""

    source: Source
    what: str

    def __str__(self) -> str:
        return f"{self.source} {self.what}"


class Fields:
    """One row as a format function sees it: typed access to columns, and builders that check what they build."""

    def __init__(self, source: Source, row: Mapping[str, Json]) -> None:
        self.source = source
        self.row = row

    def name_of(self, columns: str) -> str:
        """Return the first of the alternatives `a|b` that the row has."""
        for name in columns.split("|"):
            if self.row.get(name) is not None:
                return name
        first = columns.split("|")[0]
        null = f' ("{first}" is null)' if first in self.row else ""
        raise BadRow(f'has no "{first}"{null}; columns: {", ".join(self.row)}')

    def value(self, columns: str) -> Json:
        """Return the value of a column that must be there."""
        return self.row[self.name_of(columns)]

    def text(self, columns: str) -> str:
        """Return a column that must be text."""
        name = self.name_of(columns)
        value = self.row[name]
        if not isinstance(value, str):
            raise BadRow(f'"{name}" is {kind_of(value)}; text expected')
        return value

    def optional_text(self, name: str) -> str:
        """Return a column that may be missing, null or text."""
        return "" if self.row.get(name) is None else self.text(name)

    def turns(self, columns: str) -> Conversation:
        """Return a column that must be messages, with the row's `system` column before them."""
        name = self.name_of(columns)
        return self.with_system(turns(self.row[name], name))

    def answer(self, columns: str) -> Conversation:
        """Return a column that holds an answer as text or messages."""
        name = self.name_of(columns)
        return answer_turns(self.row[name], name)

    def items(self, name: str) -> list[dict[str, Json]]:
        """Return a column that must be a list of objects."""
        value = self.value(name)
        if not isinstance(value, list):
            raise BadRow(f'"{name}" is {kind_of(value)}; a list of objects expected')
        objects = [item for item in value if isinstance(item, dict)]
        if len(objects) != len(value) or not objects:
            raise BadRow(f'"{name}" must be a list of objects')
        return objects

    def number(self, name: str) -> float | None:
        """Return a column that may be missing or null, or must be a finite number (in CSV: its digits)."""
        value = self.row.get(name)
        if value is None or value == "":
            return None
        return read_number(value, name)

    def flag(self, columns: str) -> bool:
        """Return a thumb: true/false, 1/0, "up"/"down", 👍/👎."""
        name = self.name_of(columns)
        thumb = read_flag(self.row[name])
        if thumb is None:
            raise BadRow(f'"{name}" is not a thumb up or down; true or false expected')
        return thumb

    def with_system(self, conversation: Conversation) -> Conversation:
        """Put the `system` column, if it says something, before a conversation that has no system turn."""
        system = self.optional_text("system")
        if not system.strip() or conversation[0].role == "system":
            return conversation
        return (Message("system", system), *conversation)

    # Builders

    def pair(
        self,
        prompt: Conversation,
        chosen: Conversation,
        rejected: Conversation,
        *,
        margin: float | None = None,
        weight: float | None = None,
    ) -> Pair:
        """Build a checked pair with the optional columns (category, id, margin or scores, weight)."""
        prompt = _said(prompt)
        chosen, rejected = without_prompt(_said(chosen), prompt), without_prompt(_said(rejected), prompt)
        check_prompt(prompt)
        check_answer(chosen, "chosen")
        check_answer(rejected, "rejected")
        weight = weight if weight is not None else self.weight()
        return Pair(
            self.source,
            self.category(),
            self.id(),
            prompt=prompt,
            chosen=chosen,
            rejected=rejected,
            margin=margin if margin is not None else self.margin(),
            weight=weight,
        )

    def ranking(
        self, prompt: Conversation, answers: Sequence[tuple[float, Conversation]], *, scores: bool
    ) -> Ranking:
        """Build all pairs of rated answers (at least two, the higher number is the better one).

        `scores`: differences of the numbers say how much better an answer is, so they are the margins.
        """

        def pair(better: tuple[float, Conversation], worse: tuple[float, Conversation]) -> Pair:
            difference = better[0] - worse[0]
            return self.pair(
                prompt, better[1], worse[1], margin=difference if scores or not difference else None
            )

        best, worst = max(answers, key=lambda rated: rated[0]), min(answers, key=lambda rated: rated[0])
        descending = sorted(answers, key=lambda rated: -rated[0])
        others = [
            (better, worse)
            for better, worse in combinations(descending, 2)
            if better[0] > worse[0] and not (better is best and worse is worst)
        ]
        pairs = tuple(pair(better, worse) for better, worse in [(best, worst), *others])
        return Ranking(self.source, self.category(), self.id(), pairs=pairs)

    def chat(self, messages: Conversation) -> Chat:
        """Build a checked conversation that ends with the assistant, who may also have opened it."""
        messages = _said(messages)
        if not messages or messages[-1].role != "assistant":
            raise BadRow("the conversation does not end with a turn of the assistant; the answer is missing")
        check_prompt(_without_opening(messages[:-1]))
        return Chat(self.source, self.category(), self.id(), messages=messages)

    def prompt(self, messages: Conversation) -> Prompt:
        """Build a checked prompt."""
        messages = _said(messages)
        check_prompt(messages)
        return Prompt(self.source, self.category(), self.id(), messages=messages)

    def rated(self, prompt: Conversation, answer: Conversation, label: bool) -> Rated:
        """Build a checked answer with its thumb."""
        prompt = _said(prompt)
        answer = without_prompt(_said(answer), prompt)
        check_prompt(prompt)
        check_answer(answer, "completion")
        return Rated(
            self.source,
            self.category(),
            self.id(),
            prompt=prompt,
            answer=answer,
            label=label,
            weight=self.weight(),
        )

    # Optional columns

    def category(self) -> str | None:
        """Return `category`, or `source` or `task` where they are text."""
        category = self.row.get("category")
        if category is not None and not isinstance(category, str):
            raise BadRow(f'"category" is {kind_of(category)}; text expected')
        for value in (category, self.row.get("source"), self.row.get("task")):
            if isinstance(value, str) and value:
                return value
        return None

    def id(self) -> str | None:
        """Return `id` or `prompt_id` as text."""
        for name in ("id", "prompt_id"):
            value = self.row.get(name)
            if isinstance(value, (str, int)) and not isinstance(value, bool):
                return str(value)
        return None

    def weight(self) -> float:
        """Return `weight`, what the row counts in the loss; 1 where there is none."""
        weight = self.number("weight")
        if weight is None:
            return 1.0
        if weight < 0:
            raise BadRow(f'"weight" is {weight:g}; a number from 0 up expected')
        return weight

    def margin(self) -> float | None:
        """Return `margin`, or the difference of the scores; 0 says that the answers are rated alike."""
        margin = self.number("margin")
        if margin is not None:
            return margin
        if self.row.get("status") == "tie":
            return 0.0
        for better, worse in _SCORES:
            chosen, rejected = self.number(better), self.number(worse)
            if chosen is not None and rejected is not None:
                return chosen - rejected
        return None


class Together(NamedTuple):
    """What all rows of a table come to, where a row alone is not one, and a note on how many were put together."""

    rows: list[Row]
    note: str


@dataclass(frozen=True)
class Format:
    """One data format.

    `columns` maps needed columns (`a|b`: either) to their shape, `without` names columns that rule it out,
    `when` looks closer at a row; of all formats that fit, the one with the highest `rank` wins. `together` makes the
    rows of a table of what `read` returns, where several rows of the file belong to one.
    """

    name: str
    kind: Kind
    description: str
    columns: Mapping[str, Shape]
    without: tuple[str, ...]
    when: Callable[[Mapping[str, Json]], bool] | None
    rank: int
    note: str
    read: Callable[[Fields], Row]
    together: Callable[[Sequence[Row]], Together] | None = None

    @property
    def sample(self) -> str:
        """Path of its sample file in the repository."""
        return f"data_samples/formats/{self.name}.jsonl"

    def fits(self, shapes: Mapping[str, str]) -> bool:
        """Tell whether columns with these shapes (see `shapes_of`) can be this format, `when` left aside."""
        if any(name in shapes for name in self.without):
            return False
        return all(
            any(shapes.get(name) in _FITS[shape] for name in names.split("|"))
            for names, shape in self.columns.items()
        )


FORMATS: dict[str, Format] = {}


def data_format(
    name: str,
    kind: Kind,
    description: str,
    columns: Mapping[str, Shape],
    *,
    without: tuple[str, ...] = (),
    when: Callable[[Mapping[str, Json]], bool] | None = None,
    together: Callable[[Sequence[Row]], Together] | None = None,
    note: str = "",
) -> Callable[[Callable[[Fields], Row]], Callable[[Fields], Row]]:
    """Enter the decorated function, which reads one row, into `FORMATS`; names are unique."""

    def enter(read: Callable[[Fields], Row]) -> Callable[[Fields], Row]:
        assert name not in FORMATS, f"format {name} is defined twice"
        rank = 2 * len(columns) + (when is not None) + 100 * (kind == "refused")
        FORMATS[name] = Format(name, kind, description, columns, without, when, rank, note, read, together)
        return read

    return enter


def shapes_of(row: Mapping[str, Json]) -> dict[str, str]:
    """Name the shape of every column that is not null."""
    return {name: _shape(value) for name, value in row.items() if value is not None}


def _shape(value: Json) -> str:
    if isinstance(value, str):
        return "text"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, dict):
        return "message" if "role" in value or "from" in value else "object"
    is_conversation = isinstance(value, list) and value and _shape(value[0]) == "message"
    return "messages" if is_conversation else "list"


def read_flag(value: Json) -> bool | None:
    """Read a thumb; None where the value is neither up nor down."""
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower() if isinstance(value, (str, int, float)) else ""
    return True if word in _UP else False if word in _DOWN else None


def read_number(value: Json, name: str) -> float:
    """Read a finite number.

    Raises:
        BadRow: it is something else.
    """
    try:
        number = (
            float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
        )
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise BadRow(f'"{name}" is {kind_of(value)}; a finite number expected')
    return number


def _without_opening(conversation: Conversation) -> Conversation:
    """Leave out assistant turns before the first turn of anybody else but the system."""
    system = conversation[:1] if conversation and conversation[0].role == "system" else ()
    rest = dropwhile(lambda message: message.role == "assistant", conversation[len(system) :])
    return (*system, *rest)


def _said(conversation: Conversation) -> Conversation:
    """Leave out a system turn that says nothing."""
    return tuple(message for message in conversation if message.role != "system" or message.content.strip())
