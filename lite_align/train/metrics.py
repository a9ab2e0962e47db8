"""Sums of per-example metrics that stay on the device until a row is logged."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Counted(NamedTuple):
    """A sum over a part of the examples, and how many these are."""

    total: Tensor
    examples: float


class Sums:
    """Weighted sums of named scalars over micro-batches; read once a logged step, so the device is synced once.

    `add` takes sums over the examples of one micro-batch, `means` divides each by the examples that it was summed over
    since `reset`.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, float] = {}
        self._weight = 0.0

    def add(self, sums: Mapping[str, Tensor | Counted], weight: float) -> None:
        """Add scalars that were summed over `weight` examples, or over as many as they say."""
        for name, value in sums.items():
            total, count = value if isinstance(value, Counted) else (value, weight)
            held = self._sums.get(name)
            self._sums[name] = total.detach().double() if held is None else held + total.detach()
            self._counts[name] = self._counts.get(name, 0.0) + count
        self._weight += weight

    @property
    def weight(self) -> float:
        """Number of examples added since the last reset."""
        return self._weight

    def stacked(self) -> tuple[list[str], Tensor]:
        """Return the names, and the sums above the numbers of their examples, (2, names) in float64."""
        names = list(self._sums)
        if not names:
            return [], torch.zeros(2, 0, dtype=torch.float64)
        sums = torch.stack([self._sums[name] for name in names])
        counts = torch.tensor([self._counts[name] for name in names], dtype=torch.float64)
        return names, torch.stack([sums, counts.to(sums.device)])

    def state(self) -> dict[str, Any]:
        """Return what was added since the last row, for a checkpoint between two rows."""
        names, stacked = self.stacked()
        return {
            "sums": dict(zip(names, stacked[0].tolist())),
            "counts": dict(self._counts),
            "weight": self._weight,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `state()`, exactly."""
        self._sums = {name: torch.tensor(v, dtype=torch.float64) for name, v in state["sums"].items()}
        # Checkpoints from before sums over parts of the examples have no counts of their own.
        self._counts = dict(state.get("counts", dict.fromkeys(state["sums"], state["weight"])))
        self._weight = state["weight"]

    def reset(self) -> None:
        """Forget everything added so far."""
        self._sums.clear()
        self._counts.clear()
        self._weight = 0.0


def means(names: list[str], stacked: Tensor) -> dict[str, float]:
    """Divide stacked sums by the numbers below them, (2, names); one transfer from the device."""
    sums, counts = stacked.tolist()
    return {name: value / n for name, value, n in zip(names, sums, counts, strict=True) if n}
