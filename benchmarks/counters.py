"""Counters that do not depend on the clock: tokens, matrix products, saved bytes."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lite_align.stages.dpo import DPO
from lite_align.train.engine import Engine

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "gemm_4bit", "matmul_4bit")


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func._overloadpacket.__name__ in PRODUCTS
        return func(*args, **(kwargs or {}))


def measure(stage: DPO, engine: Engine[Any]) -> dict[str, dict[str, float]]:
    """Counters of one optimiser step over the first window of the data."""
    window = stage.window(0)
    tokens = sum(batch.tokens for batch in window.batches)
    pairs = sum(len(batch.keys) for batch in window.batches)
    own = {p.untyped_storage().data_ptr() for p in stage.backbone.model.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    held = 0.0
    for batch in window.batches:
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = stage.loss(batch)
        held += sum(saved.values())
        del loss
    with Products() as products:
        engine.update(window, stage.loss)
    return {
        "counters": {
            "tokens per pair": tokens / pairs,
            "microbatches per step": len(window.batches),
            "matrix products per microbatch": products.count / len(window.batches),
            "saved bytes per token": held / tokens,
        }
    }
