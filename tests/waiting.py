"""Refuses, on a CPU, what would make the host wait for a GPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = ("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2")
READS = ("tolist", "numpy", "cpu")  # on a CPU nothing is dispatched for these


class NoWaiting(TorchDispatchMode):
    """Refuses operators that wait. What a custom operator does inside is its own affair: a GPU has another one."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        by_mask = any(index is not None and index.dtype == torch.bool for index in indices)
        if name in WAITS or by_mask:
            raise AssertionError(f"{func} waits for the device")
        self.inside += 1
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.inside -= 1


@contextmanager
def without_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test that waits for the device in the block, or reads a tensor as Python values."""
    mode = NoWaiting()

    def watched(read: Callable[..., Any]) -> Callable[..., Any]:
        def reading(self: torch.Tensor, *args: Any, **keywords: Any) -> Any:
            assert mode.inside, f"Tensor.{read.__name__} waits for the device"
            return read(self, *args, **keywords)

        return reading

    with monkeypatch.context() as patched, mode:
        for name in READS:
            patched.setattr(torch.Tensor, name, watched(getattr(torch.Tensor, name)))
        yield
