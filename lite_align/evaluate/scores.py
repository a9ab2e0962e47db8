"""What the scores of a reward model are worth, from the held-out rows of its run: figures, no words.

A row compares two answers: `chosen_reward`, `rejected_reward`, `chosen_tokens`, `rejected_tokens`, and `answers`, which
numbers the two among all answers, as one answer can be compared several times. The first row of each prompt also has
`swaps` and `probes`: scores of other texts in the place of its chosen answer.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lite_align.evaluate.folder import Record, is_number
from lite_align.evaluate.statistics import (
    Bin,
    Correlation,
    Interval,
    accuracy,
    calibration_error,
    correlation,
    reliability,
    sign_test,
)

SWAPS = {
    "same": "an answer to another prompt of the same category",
    "other": "an answer to a prompt of another category",
}
"""What stands in the place of the chosen answer in the swap test."""

PROBES = {
    "empty": "no answer at all",
    "repeated": "its first sentence four times",
    "truncated": "its first half",
    "flattering": "praise of the question without an answer",
}
"""Texts that must score below the chosen answer."""


@dataclass(frozen=True)
class Scores:
    """Figures of held-out comparisons.

    Attributes:
        count: comparisons.
        accuracy: share in which the chosen answer scores higher; ties count half.
        longer: the same for "the longer answer wins".
        against_longer: two-sided p of the sign test between the two, on the comparisons where one of them is right.
        nll: mean of −log σ(r_w − r_l), nats.
        reliability: confidence against accuracy.
        calibration_error: expected calibration error.
        length: correlation of score and tokens over all answers.
        swaps: by kind, share of prompts whose chosen answer beats one that was given to another prompt.
        probes: by kind, share of prompts whose chosen answer beats it.
    """

    count: int
    accuracy: Interval
    longer: Interval
    against_longer: float
    nll: float
    reliability: list[Bin]
    calibration_error: float
    length: Correlation | None
    swaps: dict[str, Interval]
    probes: dict[str, Interval]


def measured(rows: Iterable[Record]) -> list[Record]:
    """Rows with both scores and both lengths."""
    keys = ("chosen_reward", "rejected_reward", "chosen_tokens", "rejected_tokens")
    return [row for row in rows if all(is_number(row.get(key)) for key in keys)]


def measure(rows: Sequence[Record]) -> Scores:
    """Figures of measured rows, at least one."""
    gaps = [row["chosen_reward"] - row["rejected_reward"] for row in rows]
    longer = [row["chosen_tokens"] - row["rejected_tokens"] for row in rows]
    bins = reliability(gaps)
    tokens, rewards = zip(*answers(rows).values(), strict=True)
    return Scores(
        count=len(rows),
        accuracy=accuracy(gaps),
        longer=accuracy(longer),
        against_longer=sign_test([_sign(gap) - _sign(by) for gap, by in zip(gaps, longer, strict=True)]),
        nll=statistics.fmean(_surprise(gap) for gap in gaps),
        reliability=bins,
        calibration_error=calibration_error(bins),
        length=correlation(rewards, tokens),
        swaps={kind: found for kind in SWAPS if (found := _beaten(rows, "swaps", kind)) is not None},
        probes={kind: found for kind in PROBES if (found := _beaten(rows, "probes", kind)) is not None},
    )


def answers(rows: Sequence[Record]) -> dict[object, tuple[float, float]]:
    """Tokens and reward of every answer, each once."""
    found: dict[object, tuple[float, float]] = {}
    for number, row in enumerate(rows):
        chosen, rejected = row.get("answers") or ((number, 0), (number, 1))
        found[chosen] = row["chosen_tokens"], row["chosen_reward"]
        found[rejected] = row["rejected_tokens"], row["rejected_reward"]
    return found


def _beaten(rows: Sequence[Record], test: str, kind: str) -> Interval | None:
    """How often the chosen answer beats another text in its place; None if it was never tried."""
    pairs = [(row["chosen_reward"], (row.get(test) or {}).get(kind)) for row in rows]
    gaps = [chosen - other for chosen, other in pairs if is_number(other)]
    return accuracy(gaps) if gaps else None


def _sign(value: float) -> float:
    return (value > 0) - (value < 0)


def _surprise(gap: float) -> float:
    """−log σ(gap), without overflow."""
    return max(-gap, 0.0) + math.log1p(math.exp(-abs(gap)))
