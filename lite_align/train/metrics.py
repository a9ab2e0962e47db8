"""Sums of per-example metrics that stay on the device until a row is logged."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Sums:
    """Weighted sums of named scalars over micro-batches; read once a logged step, so the device is synced once.

    `add` takes sums over the examples of one micro-batch, `means` divides by all examples added since `reset`.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weight = 0.0

    def add(self, sums: Mapping[str, Tensor], weight: float) -> None:
        """Add scalars that were summed over `weight` examples."""
        for name, value in sums.items():
            held = self._sums.get(name)
            self._sums[name] = value.detach().double() if held is None else held + value.detach()
        self._weight += weight

    @property
    def weight(self) -> float:
        """Number of examples added since the last reset."""
        return self._weight

    def stacked(self) -> tuple[list[str], Tensor]:
        """Return the names and the sums with the weight as the last entry, (names + 1,) in float64."""
        names = list(self._sums)
        weight = torch.tensor(self._weight, dtype=torch.float64)
        device = self._sums[names[0]].device if names else weight.device
        return names, torch.stack([*(self._sums[n] for n in names), weight.to(device)])

    def state(self) -> dict[str, Any]:
        """Return what was added since the last row, for a checkpoint between two rows."""
        names, stacked = self.stacked()
        return {"sums": dict(zip(names, stacked.tolist())), "weight": self._weight}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `state()`, exactly."""
        self._sums = {name: torch.tensor(v, dtype=torch.float64) for name, v in state["sums"].items()}
        self._weight = state["weight"]

    def reset(self) -> None:
        """Forget everything added so far."""
        self._sums.clear()
        self._weight = 0.0


def means(names: list[str], stacked: Tensor) -> dict[str, float]:
    """Divide stacked sums (n + 1,) by their last entry, the weight; one transfer from the device."""
    values = stacked.tolist()
    weight = values[-1]
    return {name: value / weight for name, value in zip(names, values[:-1], strict=True)} if weight else {}
