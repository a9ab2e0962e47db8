"""What a reward of text sees of a sampled answer, what a source of such rewards is, and how its errors are counted."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from lite_align.data.types import Conversation
from lite_align.view import safe

LONGEST_MESSAGE = 300
MOST_LOST = 0.5
"""A round of which a larger share has no reward is lost: the rest shows what the source can bear, not what is good."""


def lost(values: Sequence[float | None], answers: int) -> bool:
    """Whether too many of so many answers have no value."""
    return values.count(None) > MOST_LOST * answers


@dataclass(frozen=True)
class Episode:
    """A sampled answer.

    Attributes:
        prompt: the turns before it.
        answer: its text, without special tokens and space around it.
        tokens: how many were sampled, the stop token included.
        stopped: whether it ended by itself, with a stop token of the template.
        row: the columns of the prompt's row in the file, such as the solution of an exercise.
    """

    prompt: Conversation
    answer: str
    tokens: int
    stopped: bool
    row: Mapping[str, Any]


class NoReward(Exception):
    """An answer has no reward from a source; `kind` is what the message counts: "raised", "took over 10 s"."""

    def __init__(self, kind: str, message: str = "") -> None:
        super().__init__(f"{kind}: {message}" if message else kind)
        self.kind = kind
        self.message = message


@dataclass
class Errors:
    """Answers of a source that got no reward: how many of each kind, and the first messages that differ."""

    source: str
    kinds: Counter[str] = field(default_factory=Counter[str])
    messages: list[str] = field(default_factory=list[str])
    most_messages: int = 3
    _seen: int = 0

    @property
    def count(self) -> int:
        """Errors so far."""
        return self.kinds.total()

    def add(self, error: NoReward) -> None:
        """Count one answer."""
        self.kinds[error.kind] += 1
        message = safe(error.message)[:LONGEST_MESSAGE]
        if message and message not in self.messages and len(self.messages) < self.most_messages:
            self.messages.append(message)

    def take(self) -> int:
        """Errors since the last call: what a round writes to `reward/errors`."""
        new = self.count - self._seen
        self._seen = self.count
        return new

    def tell(self) -> list[str]:
        """Nothing, or what happened so far: one line with the counts, then the first messages."""
        if not self.count:
            return []
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.kinds.most_common())
        return [f"{self.source}: {kinds}", *(f"  {message}" for message in self.messages)]


class TextReward(Protocol):
    """A source of rewards that looks at texts.

    Attributes:
        name: for metrics: "function", "rule/repetition".
        weight: in the sum.
        errors: of this source so far.
    """

    name: str
    weight: float
    errors: Errors

    def __call__(self, episodes: Sequence[Episode]) -> list[float | None]:
        """The value of each answer; None where it could not be had, which is counted."""
        ...

    def close(self) -> None:
        """End what the source holds; a second call does nothing."""
        ...
