"""Counters that do not depend on the clock: tokens, matrix products, unpacked weights, saved bytes."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lite_align.train.engine import Engine

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "gemm_4bit")
DEQUANTISATIONS = ("dequantize_4bit", "dequantize_blockwise")


class Operations(TorchDispatchMode):
    """Counts the operations that torch dispatches, by name; what runs inside of an operation is part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func._overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))

    def total(self, names: tuple[str, ...]) -> int:
        """How often any of the named operations ran."""
        return sum(self.counts[name] for name in names)


def saved_bytes(model: nn.Module, forward: Callable[[], object]) -> int:
    """Bytes that a forward pass keeps for its backward pass; storages count once, the model's weights never."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}
    held: list[Tensor] = []  # so that no address is given away twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    del result
    return sum(saved.values())


def measure(stage: Any, engine: Engine[Any]) -> dict[str, float]:
    """Counters of one optimiser step over the first window of the data; the step is made."""
    window = stage.window(0)
    tokens = sum(batch.tokens for batch in window.batches)
    model = stage.backbone.model
    saved = sum(saved_bytes(model, lambda batch=batch: stage.loss(batch)) for batch in window.batches)
    with Operations() as operations:
        engine.update(window, stage.loss)
    return {
        "microbatches_per_step": len(window.batches),
        "products_per_microbatch": operations.total(PRODUCTS) / len(window.batches),
        "dequantisations_per_microbatch": operations.total(DEQUANTISATIONS) / len(window.batches),
        "saved_bytes_per_token": saved / tokens,
    }
