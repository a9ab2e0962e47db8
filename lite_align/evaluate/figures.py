"""Held-out figures of a model, before and after, over all prompts and by group: what `eval.json` holds. No torch.

A column has one value a prompt, the mean of its answers; intervals are over prompts, which are what was drawn.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lite_align.evaluate.statistics import Interval, mean_of, wilson_share

Better = Literal["higher", "lower", ""]
"""Which way a figure is better; "" where neither is."""

ALL = ""
"""The group of all prompts."""

BUCKETS = ("short", "middle", "long")
FEWEST_TO_BUCKET = 30

Column = Sequence[float | None]
"""A value for each prompt; None where a prompt has none."""


@dataclass(frozen=True)
class Figure:
    """A measured quantity with its interval.

    Attributes:
        value: after, or of the one model that was measured.
        low, high: ends of the 95 % interval.
        count: prompts.
        unit: "share", "nats", "tokens" …; "" of a plain number.
        better: which way is better.
        before: the same of what the model is compared with.
        change: mean of the paired differences.
    """

    value: float
    low: float
    high: float
    count: int
    unit: str = ""
    better: Better = ""
    before: float | None = None
    change: Interval | None = None

    @property
    def interval(self) -> Interval:
        """Value and ends."""
        return Interval(self.value, self.low, self.high, self.count)

    def record(self) -> dict[str, Any]:
        """As JSON; an end that is not finite is null."""
        return {name: _finite(value) for name, value in asdict(self).items()}

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> "Figure":
        """From `record`. Raises KeyError, TypeError."""
        low, high = _or(record["low"], -math.inf), _or(record["high"], math.inf)
        change = record.get("change")
        if change is not None:
            change = Interval(
                change["value"],
                _or(change["low"], -math.inf),
                _or(change["high"], math.inf),
                change["count"],
            )
        return cls(
            record["value"],
            low,
            high,
            record["count"],
            record.get("unit", ""),
            record.get("better", ""),
            record.get("before"),
            change,
        )

    @classmethod
    def of(cls, interval: Interval, unit: str = "", better: Better = "") -> "Figure":
        """A figure of one model."""
        return cls(interval.value, interval.low, interval.high, interval.count, unit, better)


Figures = dict[str, Figure]
"""By name: `accuracy` over all prompts, `accuracy/unsafe` of a group."""


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return {name: _finite(one) for name, one in value.items()} if isinstance(value, dict) else value


def _or(value: float | None, missing: float) -> float:
    return missing if value is None else value


def groups(categories: Sequence[str | None], lengths: Sequence[int] | None = None) -> dict[str, list[int]]:
    """Places of the prompts of each group: all of them, each category, and each third by length.

    The thirds are called `length-short`, `length-middle` and `length-long`; fewer than 30 prompts have none.
    """
    found: dict[str, list[int]] = {ALL: list(range(len(categories)))}
    for name in sorted({category for category in categories if category}):
        found[name] = [place for place, category in enumerate(categories) if category == name]
    if lengths is not None and len(lengths) >= FEWEST_TO_BUCKET:
        order = sorted(range(len(lengths)), key=lambda place: (lengths[place], place))
        for number, name in enumerate(BUCKETS):
            start, stop = (len(order) * n // len(BUCKETS) for n in (number, number + 1))
            found[f"length-{name}"] = sorted(order[start:stop])
    return found


def measure(
    name: str,
    places: Mapping[str, Sequence[int]],
    after: Column,
    before: Column | None = None,
    *,
    unit: str = "",
    better: Better = "",
    counted: bool = False,
) -> Figures:
    """A column as figures of every group that has a value in it.

    What is `counted`, yes or no an answer, gets Wilson's interval, anything else and every change that of `mean_of`. A
    change is that of the prompts which have both.
    """
    found: Figures = {}
    for group, rows in places.items():
        values = [value for row in rows if (value := after[row]) is not None]
        if not values:
            continue
        interval = wilson_share(values) if counted else mean_of(values)
        pairs = _pairs(rows, before, after)
        was = sum(b for b, _ in pairs) / len(pairs) if pairs else None
        change = mean_of([a - b for b, a in pairs]) if pairs else None
        label = f"{name}/{group}" if group else name
        found[label] = Figure(
            interval.value, interval.low, interval.high, interval.count, unit, better, was, change
        )
    return found


def _pairs(rows: Sequence[int], before: Column | None, after: Column) -> list[tuple[float, float]]:
    if before is None:
        return []
    both = [(before[row], after[row]) for row in rows]
    return [(b, a) for b, a in both if b is not None and a is not None]
