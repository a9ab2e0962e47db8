"""How the frozen base lies in memory: its hash, scales of 4-bit weights unpacked once, the embedding on the host.

The last two change time and memory and no number.
"""

import hashlib
import json
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lite_align.model.bits import Linear4bit, functional


@torch.no_grad()
def unnest_scales(model: nn.Module) -> int:
    """Unpack doubly quantised scales to fp32, once in place of once a product; returns how many layers had them.

    A weight costs 4 + 32/64 bits then, in place of 4 + 8/64 + 32/(64 * 256).
    """
    count = 0
    for module in model.modules():
        state = getattr(module.weight, "quant_state", None) if isinstance(module, Linear4bit) else None
        if state is None or not state.nested:
            continue
        state.absmax = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
        state.nested, state.state2, state.offset = False, None, None
        count += 1
    return count


class HostEmbedding:
    """The input embedding in the memory of the host; the rows of a batch go to the device when they are asked for.

    A tied embedding stays where it is: the head needs it on the device.

    Args:
        model: a causal language model on its device; the embedding is moved, its module stays in place.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.module: Any = model.get_input_embeddings()
        self.device: torch.device = self.module.weight.device
        head = model.get_output_embeddings()
        self.tied = head is not None and head.weight is self.module.weight
        self._ids: Tensor | None = None
        if self.tied:
            return
        self._own = type(self.module).forward
        self.module.weight.data = self._on_host(self.module.weight.data)
        self.module.forward = types.MethodType(self._forward, self.module)

    def _on_host(self, values: Tensor) -> Tensor:
        # From pinned memory a copy to the device runs beside everything else.
        return values.cpu().pin_memory() if self.device.type == "cuda" else values.cpu()

    def _forward(self, module: nn.Module, ids: Tensor) -> Tensor:
        if module.weight.device == ids.device and self._ids is None:  # while it is back on the device
            return self._own(module, ids)
        known = self._ids is not None and self._ids.shape == ids.shape
        rows = self._own(module, self._ids if known else ids.cpu())
        return self._on_host(rows).to(self.device, non_blocking=True)

    @contextmanager
    def reading(self, ids: Tensor | None) -> Iterator[None]:
        """Give the token ids of the next pass as they are on the host, so that nobody waits for the device."""
        self._ids = ids
        try:
            yield
        finally:
            self._ids = None

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Bring the embedding back for a while: to generate, which reads one row at a time and saves nothing."""
        kept = self.module.weight.data
        self.module.weight.data = kept.to(self.device)
        try:
            yield
        finally:
            self.module.weight.data = kept


def weights_sha256(model: nn.Module) -> str:
    """Sha256 over the base weights as they are in memory: packed values and scales, adapters left out."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if ".lora_" in name:
            continue
        name = name.replace(".base_layer.", ".")
        if not isinstance(value, torch.Tensor):  # what int8 layers say about their weight format
            digest.update(f"{name} {value!r}\n".encode())
            continue
        digest.update(f"{name} {value.dtype} {json.dumps(list(value.shape))}\n".encode())
        raw = value.detach().contiguous().flatten().view(torch.uint8)
        digest.update(raw.cpu().numpy().data if raw.numel() else b"")
    return digest.hexdigest()
