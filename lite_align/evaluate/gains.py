"""What a ppo run measured on held-out prompts and pairs, before and after, and what its guards saw."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lite_align.evaluate.folder import Record, RunFolder, is_number
from lite_align.evaluate.statistics import CONFIDENCE, Interval, mean, wilson


@dataclass(frozen=True)
class Change:
    """Means before and after, and the mean of the paired differences with its interval."""

    before: float
    after: float
    change: Interval


@dataclass(frozen=True)
class HeldOut:
    """Figures of the held-out prompts that have them before and after.

    `tokens`: length of the answers; `kl`: nats an answer, after; `rule_score`: None without one.
    """

    count: int
    reward: Change
    kl: Change | None
    tokens: Change | None
    rule_score: Change | None

    @property
    def longer(self) -> float | None:
        """Relative change of the length."""
        return self.tokens.after / self.tokens.before - 1 if self.tokens and self.tokens.before else None


@dataclass(frozen=True)
class Preference:
    """Held-out pairs in which the policy finds the chosen answer likelier.

    `gained` are preferred after and not before, `lost` the other way; both are None where only shares are known.
    """

    before: float
    after: float
    pairs: int | None = None
    gained: int | None = None
    lost: int | None = None

    @property
    def improved(self) -> Interval | None:
        """Share of the pairs that changed in which the change was for the better."""
        if self.gained is None or self.lost is None:
            return None
        return wilson(self.gained, self.gained + self.lost)


def preference_record(before: Sequence[float], after: Sequence[float]) -> dict[str, float | int]:
    """What run.json says of held-out pairs: `before` and `after` are 1 where the chosen answer is preferred, else 0."""
    pairs = list(zip(before, after, strict=True))
    return {
        "pairs": len(pairs),
        "before": statistics.fmean(before),
        "after": statistics.fmean(after),
        "gained": sum(b < a for b, a in pairs),
        "lost": sum(b > a for b, a in pairs),
    }


def measure(rows: Sequence[Record]) -> HeldOut:
    """Figures of held-out rows that all have rewards before and after."""
    reward = change(rows, "reward")
    assert reward is not None
    return HeldOut(len(rows), reward, *(change(rows, name) for name in ("kl", "tokens", "rule_score")))


def preferences(folder: RunFolder) -> Preference | None:
    """Held-out pairs from run.json, or only their shares from the evaluations; None if there were none."""
    told = folder.part("ppo").get("preference")
    if isinstance(told, Mapping) and all(is_number(told.get(name)) for name in preference_record([0], [0])):
        return Preference(told["before"], told["after"], told["pairs"], told["gained"], told["lost"])
    _, values = folder.series("eval/preference_accuracy")
    return Preference(values[0], values[-1]) if len(values) > 1 else None


def known(row: Record, name: str) -> bool:
    """Whether a held-out row has a figure before and after."""
    sides = row.get("before"), row.get("after")
    return all(isinstance(side, Mapping) and is_number(side.get(name)) for side in sides)


def change(rows: Sequence[Record], name: str, confidence: float = CONFIDENCE) -> Change | None:
    """Of the rows that have the figure before and after; None where none has."""
    pairs = [(row["before"][name], row["after"][name]) for row in rows if known(row, name)]
    if not pairs:
        return None
    before, after = (statistics.fmean(side) for side in zip(*pairs, strict=True))
    return Change(before, after, mean([a - b for b, a in pairs], confidence))


def trips(folder: RunFolder) -> list[Record]:
    """What the guards saw, in the order of the run."""
    rows = folder.part("ppo").get("guards")
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
