"""Comparisons of two answers and the votes on them: what people and judges write, and what becomes pairs. No torch.

A file of votes is append-only JSONL. The last vote of an annotator on a comparison counts; earlier ones stay in the
file, so that nothing that was said is lost.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lite_align.data.types import Conversation, Message

Choice = Literal["a", "b", "tie", "bad", "skip", "none"]
"""Which answer is better; `tie`: alike and acceptable, `bad`: neither is acceptable, `skip`: cannot say, `none`: taken
back."""

CHOICES: tuple[str, ...] = get_args(Choice)

Source = Literal["human", "ai", "rule", "reward"]
"""Who votes: a person, a language model, a program, or a reward model."""

SOURCES: tuple[str, ...] = get_args(Source)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two answers to a prompt, of which the better one is asked for.

    Attributes:
        prompt: the conversation up to the answers.
        a: an answer.
        b: the other one; which of the two is shown first is decided anew for each annotator.
        category: of the prompt.
        model_a: what wrote `a`; hidden from annotators.
        model_b: what wrote `b`.
        expected: the known right choice of a calibration item.
    """

    prompt: Conversation
    a: str
    b: str
    category: str | None = None
    model_a: str | None = None
    model_b: str | None = None
    expected: Choice | None = None

    @property
    def id(self) -> str:
        """The same for the same prompt and answers, in whatever order they stand: 16 hexadecimal digits."""
        content = [[message.role, message.content] for message in self.prompt], sorted((self.a, self.b))
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def record(self) -> dict[str, Any]:
        """As a row of a file; what is not known is left out."""
        known: dict[str, Any] = {
            "id": self.id,
            "category": self.category,
            "prompt": [{"role": message.role, "content": message.content} for message in self.prompt],
            "a": self.a,
            "b": self.b,
            "model_a": self.model_a,
            "model_b": self.model_b,
            "expected": self.expected,
        }
        return {name: value for name, value in known.items() if value is not None}

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> "Comparison":
        """From a row that `record` wrote.

        Raises:
            ValueError: it is none.
        """
        prompt = row.get("prompt")
        if not isinstance(prompt, list) or not prompt or not all(map(_is_message, prompt)):
            raise ValueError('"prompt" must be a list of messages with role and content')
        return cls(
            prompt=tuple(Message(turn["role"], turn["content"]) for turn in prompt),
            a=_text(row, "a"),
            b=_text(row, "b"),
            category=_optional(row, "category"),
            model_a=_optional(row, "model_a"),
            model_b=_optional(row, "model_b"),
            expected=_one_of(row, "expected", CHOICES) if row.get("expected") is not None else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """What somebody said of a comparison.

    Attributes:
        comparison: what was compared; `choice` names its `a` and `b`, however they were shown.
        choice: see `Choice`.
        annotator: name of the person or judge.
        kind: who that is.
        first: the answer that was shown first, "a" or "b"; "both" of a judge that was asked in both orders.
        seconds: how long it took.
        rubric: hash of the rubric that was shown.
        note: what the annotator wrote.
        time: ISO 8601, UTC.
        preference: a judge's probability that `a` is better.
    """

    comparison: Comparison
    choice: Choice
    annotator: str
    kind: Source = "human"
    first: Literal["a", "b", "both"] | None = None
    seconds: float | None = None
    rubric: str | None = None
    note: str | None = None
    time: str | None = None
    preference: float | None = None

    def record(self) -> dict[str, Any]:
        """As a row of a file; what is not known is left out."""
        own: dict[str, Any] = {
            "choice": self.choice,
            "annotator": self.annotator,
            "kind": self.kind,
            "first": self.first,
            "seconds": self.seconds,
            "rubric": self.rubric,
            "note": self.note,
            "time": self.time,
            "preference": self.preference,
        }
        return self.comparison.record() | {name: value for name, value in own.items() if value is not None}

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> "Vote":
        """From a row that `record` wrote.

        Raises:
            ValueError: it is none.
        """
        seconds, preference = row.get("seconds"), row.get("preference")
        return cls(
            comparison=Comparison.read(row),
            choice=_one_of(row, "choice", CHOICES),
            annotator=_text(row, "annotator"),
            kind=_one_of(row, "kind", SOURCES) if row.get("kind") is not None else "human",
            first=_one_of(row, "first", ("a", "b", "both")) if row.get("first") is not None else None,
            seconds=float(seconds) if seconds is not None else None,
            rubric=_optional(row, "rubric"),
            note=_optional(row, "note"),
            time=_optional(row, "time"),
            preference=float(preference) if preference is not None else None,
        )


def latest(votes: Iterable[Vote]) -> list[Vote]:
    """The votes that count: the last of each annotator on each comparison, without those that were taken back."""
    last = {(vote.comparison.id, vote.annotator): vote for vote in votes}
    return [vote for vote in last.values() if vote.choice != "none"]


def played(votes: Iterable[Vote]) -> list[Vote]:
    """The votes that count where models play against each other: of people the latest ones, of judges all.

    A judge is asked once and takes nothing back. Of several samples two can be the same pair of answers, also with the
    models exchanged, and then its votes on them are as many outcomes.
    """
    given = list(votes)
    last = {(vote.comparison.id, vote.annotator): number for number, vote in enumerate(given)}
    return [
        vote
        for number, vote in enumerate(given)
        if vote.kind != "human"
        or (last[vote.comparison.id, vote.annotator] == number and vote.choice != "none")
    ]


def standing(votes: Iterable[Vote]) -> list[Vote]:
    """The votes that were not taken back, in their order; "none" takes back the last one on its comparison.

    An annotator who was asked a comparison again has two votes on it.
    """
    found: dict[tuple[str, str], list[int]] = {}
    given = list(votes)
    for number, vote in enumerate(given):
        places = found.setdefault((vote.comparison.id, vote.annotator), [])
        if vote.choice != "none":
            places.append(number)
        elif places:
            places.pop()
    return [given[number] for number in sorted(number for places in found.values() for number in places)]


def _is_message(turn: object) -> bool:
    return isinstance(turn, Mapping) and all(isinstance(turn.get(key), str) for key in ("role", "content"))


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise ValueError(f'"{name}" must be text')
    return value


def _optional(row: Mapping[str, Any], name: str) -> str | None:
    return None if row.get(name) is None else _text(row, name)


def _one_of(row: Mapping[str, Any], name: str, known: tuple[str, ...]) -> Any:
    value = row.get(name)
    if value not in known:
        raise ValueError(f'"{name}" must be one of {", ".join(known)}')
    return value
