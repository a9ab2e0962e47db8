"""Shared-prefix attention on CUDA: a varlen kernel over gathered keys, and a mask where that cannot run.

Shape letters: T tokens in the row, S segments, K keys of all segments together, H query heads, D head size.
Queries, keys and values have the shape (T, heads, D).
"""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn

from lite_align.errors import ModelError


class SegmentLike(Protocol):
    """Row positions `start:stop` that attend to `shared_start:shared_stop`, then causally to themselves."""

    @property
    def start(self) -> int:
        """First row position."""
        ...

    @property
    def stop(self) -> int:
        """One past the last row position."""
        ...

    @property
    def shared_start(self) -> int:
        """First shared position."""
        ...

    @property
    def shared_stop(self) -> int:
        """One past the last shared position."""
        ...


class BatchLike(Protocol):
    """What a plan needs to know of a batch (see `lite_align.data.forest.Batch`)."""

    @property
    def input_ids(self) -> Tensor:
        """(1, T) int64."""
        ...

    @property
    def position_ids(self) -> Tensor:
        """(1, T) int64."""
        ...

    @property
    def kv_index(self) -> Tensor:
        """(K,) int64, the keys of the segments one after the other."""
        ...

    @property
    def cu_q(self) -> Tensor:
        """(S + 1,) int32, where segments begin."""
        ...

    @property
    def cu_k(self) -> Tensor:
        """(S + 1,) int32, where the keys of segments begin."""
        ...

    @property
    def max_q(self) -> int:
        """The longest segment."""
        ...

    @property
    def max_k(self) -> int:
        """The longest list of keys."""
        ...

    @property
    def segments(self) -> Sequence[SegmentLike]:
        """The S segments."""
        ...


@torch.library.custom_op("lite_align::gather_keys", mutates_args=())
def _gather_keys(x: Tensor, index: Tensor, order: Tensor, counts: Tensor) -> Tensor:
    """Copy rows of x (T, heads, D) to (K, heads, D)."""
    return x.index_select(0, index)


@_gather_keys.register_fake
def _(x, index, order, counts):
    return x.new_empty(len(index), *x.shape[1:])


@torch.library.custom_op("lite_align::fold_keys", mutates_args=())
def _fold_keys(gradient: Tensor, order: Tensor, counts: Tensor) -> Tensor:
    """Sum the copies of each row in a fixed order and in fp32: (K, heads, D) -> (T, heads, D)."""
    exact = torch.promote_types(gradient.dtype, torch.float32)
    copies = gradient.index_select(0, order).to(exact).flatten(1)
    # `unsafe` skips a check of the lengths that would wait for the device.
    summed = torch.segment_reduce(copies, "sum", lengths=counts, axis=0, unsafe=True)
    return summed.to(gradient.dtype).unflatten(1, gradient.shape[1:])


@_fold_keys.register_fake
def _(gradient, order, counts):
    return gradient.new_empty(len(counts), *gradient.shape[1:])


def _gather_setup(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[2:])


def _gather_backward(ctx, gradient):
    return _fold_keys(gradient, *ctx.saved_tensors), None, None, None


_gather_keys.register_autograd(_gather_backward, setup_context=_gather_setup)

# torch 2.11 has no `enable_gqa` and takes fewer key heads without it; drop this with torch 2.11.
_grouped = "enable_gqa" in inspect.signature(varlen_attn).parameters
_varlen_attn = functools.partial(varlen_attn, enable_gqa=True) if _grouped else varlen_attn


class VarlenCall(NamedTuple):
    """Segment s: queries `cu_q[s]:cu_q[s + 1]` over keys `cu_k[s]:cu_k[s + 1]`, causal from the bottom right.

    `window` is the number of keys that a query sees, itself included; 0 means all.
    """

    cu_q: Tensor
    cu_k: Tensor
    max_q: int
    max_k: int
    scale: float
    window: int


def flash(query: Tensor, key: Tensor, value: Tensor, call: VarlenCall) -> Tensor:
    """Run torch's varlen flash attention (fp16 or bf16, CUDA, compute capability 8.0 and up)."""
    out = _varlen_attn(
        query,
        key,
        value,
        call.cu_q,
        call.cu_k,
        call.max_q,
        call.max_k,
        scale=call.scale,
        window_size=(call.window - 1, 0) if call.window else (-1, 0),
    )
    assert isinstance(out, Tensor)
    return out


class VarlenPlan(NamedTuple):
    """Keys and values gathered segment by segment, then one call of a varlen kernel.

    Attributes:
        mask: (1, 1, 1, 1), as in `TiledPlan`.
        gathered: (K,) the row position of each gathered key.
        order: (K,) gathered keys sorted by row position, and `counts` (T,) how many each position has.
        cu_q, cu_k, max_q, max_k: as in a batch; the maxima are rounded up, so that few values occur.
        kernel: the varlen kernel.
    """

    mask: Tensor
    gathered: Tensor
    order: Tensor
    counts: Tensor
    cu_q: Tensor
    cu_k: Tensor
    max_q: int
    max_k: int
    kernel: Callable[[Tensor, Tensor, Tensor, VarlenCall], Tensor] = flash

    @classmethod
    def of(cls, batch: BatchLike) -> "VarlenPlan":
        """Sort the gathered keys by row position, on the device and without waiting for it."""
        index = batch.kv_index
        counts = index.new_zeros(batch.input_ids.shape[1]).index_add(0, index, torch.ones_like(index))
        return cls(
            torch.ones(1, 1, 1, 1, dtype=torch.bool, device=index.device),
            index,
            torch.argsort(index, stable=True),
            counts,
            batch.cu_q,
            batch.cu_k,
            -(-batch.max_q // 256) * 256,
            -(-batch.max_k // 256) * 256,
        )

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int, softcap: float
    ) -> Tensor:
        """Return the attention output (T, H, D).

        Raises:
            ModelError: the layer has a softcap, which flash attention lacks.
        """
        if softcap:
            raise ModelError("varlen attention cannot cap attention scores")
        if len(self.gathered) != len(self.counts):
            key = _gather_keys(key, self.gathered, self.order, self.counts)
            value = _gather_keys(value, self.gathered, self.order, self.counts)
        call = VarlenCall(self.cu_q, self.cu_k, self.max_q, self.max_k, scale, window)
        return self.kernel(query, key, value, call)


def masked_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, softcap: float
) -> Tensor:
    """Attend with an additive mask (…, queries, keys): (N, H, T, D) with fewer key heads -> (N, H, T, D).

    Without a mask every query sees every key.
    """
    groups = query.shape[1] // key.shape[1]
    # Repeated, not enable_gqa: with a mask that option falls back to a slow kernel on CUDA.
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if not softcap:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    exact = torch.promote_types(query.dtype, torch.float32)
    scores = torch.tanh((query @ key.mT).to(exact) * (scale / softcap)) * softcap
    if mask is not None:
        scores = scores + mask
    return scores.softmax(-1).to(value.dtype) @ value


class MaskedPlan(NamedTuple):
    """One additive mask for the whole row, and one for each sliding window.

    Attributes:
        mask: (1, 1, T, T), 0 where a query sees a key, -inf elsewhere.
        windows: pairs of a window and its mask.
    """

    mask: Tensor
    windows: tuple[tuple[int, Tensor], ...]

    @classmethod
    def of(cls, batch: BatchLike, dtype: torch.dtype, windows: Sequence[int]) -> "MaskedPlan":
        """Build the masks of a batch; windows count positions, not places in the row."""
        sizes = torch.tensor([segment.stop - segment.start for segment in batch.segments])
        columns = torch.tensor(
            [(segment.start, segment.shared_start, segment.shared_stop) for segment in batch.segments]
        )
        start, shared_start, shared_stop = (
            columns.repeat_interleave(sizes, 0).to(batch.input_ids.device).T[..., None]
        )
        place = torch.arange(len(start), device=start.device)
        visible = (place >= start) & (place <= place[:, None])
        visible |= (place >= shared_start) & (place < shared_stop)
        position = batch.position_ids[0]
        distance = position[:, None] - position

        def additive(seen: Tensor) -> Tensor:
            return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, -math.inf)[
                None, None
            ]

        return cls(
            additive(visible), tuple((size, additive(visible & (distance < size))) for size in windows)
        )

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int, softcap: float
    ) -> Tensor:
        """Return the attention output (T, H, D).

        Raises:
            ModelError: the layer has a sliding window that the plan was not made for.
        """
        masks = {0: self.mask, **dict(self.windows)}
        if window not in masks:
            raise ModelError(f"no attention mask was made for a sliding window of {window}")
        q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
        return masked_attention(q, k, v, masks[window], scale, softcap)[0].transpose(0, 1)
