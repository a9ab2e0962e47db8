"""Shared-prefix attention by a varlen flash kernel: gather and attend in one operator, with a backward of its own.

Shape letters: T tokens in the row, S segments, K keys of all segments together, H query heads, D head size.
Queries, keys and values have the shape (T, heads, D), with fewer key heads than query heads or as many.

One operator, so that gathered keys and values live only while it runs: its backward gathers them again, which
costs a copy and spares K - T rows of keys and values in every layer.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import register_flop_formula

from lite_align.errors import ModelError
from lite_align.model.kernels import BatchLike


class VarlenCall(NamedTuple):
    """Segment s: queries `cu_q[s]:cu_q[s + 1]` over keys `cu_k[s]:cu_k[s + 1]`, causal from the bottom right.

    `window` is the number of keys that a query sees, itself included; 0 means all. `max_q` and `max_k` are no
    smaller than the longest segment and the longest list of keys.
    """

    cu_q: Tensor
    cu_k: Tensor
    max_q: int
    max_k: int
    scale: float
    window: int


class VarlenKernel(NamedTuple):
    """Attention over keys that are already gathered.

    Attributes:
        forward: (query, key, value, call) -> output (T, H, D) and fp32 log-sum-exp of the scores (H, T).
        backward: (gradient, query, key, value, output, log-sum-exp, call) -> gradients of query, key, value.
    """

    forward: Callable[[Tensor, Tensor, Tensor, VarlenCall], tuple[Tensor, Tensor]]
    backward: Callable[
        [Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, VarlenCall], tuple[Tensor, Tensor, Tensor]
    ]


# CUDA: the flash kernels of torch, called as torch.nn.attention.varlen calls them. Not through that module: its
# signatures differ between torch 2.11 (no `enable_gqa`), 2.12 and 2.13, those of the operators below do not.


def flash_is_usable() -> bool:
    """Whether this torch was built with the flash kernels, and they take the arguments that are passed here."""
    forward = torch.ops.aten._flash_attention_forward.default._schema
    backward = torch.ops.aten._flash_attention_backward.default._schema
    needed = {"cum_seq_q", "cum_seq_k", "max_q", "max_k", "scale", "window_size_left", "window_size_right"}
    known = all(needed <= {argument.name for argument in schema.arguments} for schema in (forward, backward))
    return known and torch.backends.cuda.is_flash_attention_available()


def _window(call: VarlenCall) -> dict[str, int]:
    # The kernel counts the keys left of the query, without its own; -1 is no limit. It also drops a window that
    # no segment reaches, and then takes its faster causal path.
    return {"window_size_left": call.window - 1, "window_size_right": 0}


def _flash_forward(query: Tensor, key: Tensor, value: Tensor, call: VarlenCall) -> tuple[Tensor, Tensor]:
    # Positional: dropout 0, causal (the kernel wants it false beside a window, which is causal by its right
    # end of 0), no debug mask.
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        call.cu_q,
        call.cu_k,
        call.max_q,
        call.max_k,
        0.0,
        not call.window,
        False,
        scale=call.scale,
        **_window(call),
    )
    return out, lse


@contextmanager
def _repeatable() -> Iterator[None]:
    """Let the flash backward add up the gradient of queries in a fixed order, as torch lets one ask for it.

    The price is one fp32 gradient of the queries for each (multiprocessors / (S * H), rounded up), filled with
    zeros: one for most packed rows, which without this is there as well, unfilled.
    """
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch._C._get_deterministic_fill_uninitialized_memory()
    # Not torch.use_deterministic_algorithms: that also moves a setting of inductor.
    torch._C._set_deterministic_algorithms(True, warn_only=False)
    torch._C._set_deterministic_fill_uninitialized_memory(False)
    try:
        yield
    finally:
        torch._C._set_deterministic_algorithms(before, warn_only=warn_only)
        torch._C._set_deterministic_fill_uninitialized_memory(fill)


def _flash_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, call: VarlenCall
) -> tuple[Tensor, Tensor, Tensor]:
    # The state of the random numbers, which is read with dropout only.
    random = torch.empty(2, dtype=torch.uint64, device=query.device)
    with _repeatable():
        return torch.ops.aten._flash_attention_backward(
            gradient,
            query,
            key,
            value,
            out,
            lse,
            call.cu_q,
            call.cu_k,
            call.max_q,
            call.max_k,
            0.0,
            not call.window,
            random,
            random.new_empty(0),
            scale=call.scale,
            **_window(call),
        )


# Everywhere else: the same by the definition of attention, so that all but the kernel is tested without a GPU.


class _Part(NamedTuple):
    """A segment: the slices of its queries and of its keys."""

    queries: slice
    keys: slice


def _parts(call: VarlenCall) -> list[_Part]:
    bounds = zip(pairwise(call.cu_q.tolist()), pairwise(call.cu_k.tolist()), strict=True)
    return [_Part(slice(*queries), slice(*keys)) for queries, keys in bounds]


def _heads(x: Tensor, part: slice, groups: int = 1) -> Tensor:
    """Rows of x (rows, heads, D) as (heads * groups, rows, D), exact."""
    rows = x[part].to(torch.promote_types(x.dtype, torch.float32))
    return rows.transpose(0, 1).repeat_interleave(groups, 0)


def _scores(query: Tensor, key: Tensor, call: VarlenCall) -> Tensor:
    """Scores (H, queries, keys), -inf where a query does not see a key."""
    size, keys = query.shape[1], key.shape[1]
    place = torch.arange(keys, device=query.device)
    own = torch.arange(size, device=query.device)[:, None] + keys - size
    hidden = place > own
    if call.window:
        hidden |= place <= own - call.window
    return (query @ key.mT * call.scale).masked_fill(hidden, -torch.inf)


def _exact_forward(query: Tensor, key: Tensor, value: Tensor, call: VarlenCall) -> tuple[Tensor, Tensor]:
    groups = query.shape[1] // key.shape[1]
    exact = torch.promote_types(query.dtype, torch.float32)
    out = torch.empty_like(query)
    lse = query.new_empty(query.shape[1], query.shape[0], dtype=exact)
    for queries, keys in _parts(call):
        scores = _scores(_heads(query, queries), _heads(key, keys, groups), call)
        lse[:, queries] = scores.logsumexp(-1)
        out[queries] = (scores.softmax(-1) @ _heads(value, keys, groups)).transpose(0, 1).to(out.dtype)
    return out, lse


def _exact_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, call: VarlenCall
) -> tuple[Tensor, Tensor, Tensor]:
    groups = query.shape[1] // key.shape[1]
    dquery, dkey, dvalue = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    for queries, keys in _parts(call):
        q, k, v = _heads(query, queries), _heads(key, keys, groups), _heads(value, keys, groups)
        g, o = _heads(gradient, queries), _heads(out, queries)
        weights = (_scores(q, k, call) - lse[:, queries, None]).exp()
        dscores = weights * (g @ v.mT - (g * o).sum(-1, keepdim=True)) * call.scale
        dquery[queries] = (dscores @ k).transpose(0, 1).to(query.dtype)
        for target, heads in ((dkey, dscores.mT @ q), (dvalue, weights.mT @ g)):
            target[keys] = heads.unflatten(0, (-1, groups)).sum(1).transpose(0, 1).to(target.dtype)
    return dquery, dkey, dvalue


FLASH = VarlenKernel(_flash_forward, _flash_backward)
EXACT = VarlenKernel(_exact_forward, _exact_backward)


def _kernel(query: Tensor) -> VarlenKernel:
    # A plain choice and not one more operator with a kernel for each device, whose call would cost as much host
    # time as all launches of a layer's gather.
    return FLASH if query.is_cuda else EXACT


# The operator: gather, attend; and backwards: gather again, attend backwards, fold.


def _gather(x: Tensor, gathered: Tensor) -> Tensor:
    """Copy rows of x (T, heads, D) to (K, heads, D)."""
    # As many keys as tokens: nothing is shared, and every row would be copied to its own place.
    return x if len(gathered) == len(x) else x.index_select(0, gathered)


def fold(gradient: Tensor, order: Tensor, bounds: Tensor) -> Tensor:
    """Sum the copies of each row in a fixed order and in fp32: (K, heads, D) -> (T, heads, D).

    Copies of row t: `order[bounds[t]:bounds[t + 1]]`.
    """
    # A bag of an embedding is such a sum: one launch, a thread for each number of the result, fp32 sums, no
    # atomics; it reads K rows and writes T. Copying what stands alone and adding the rest at unique places takes
    # eight launches and moves twice as much or more; segment_reduce adds in the dtype of its input, so that it
    # needs fp32 copies.
    if len(order) == len(bounds) - 1:
        return gradient
    copies = gradient.flatten(1)
    summed = functional.embedding_bag(order, copies, bounds, mode="sum", include_last_offset=True)
    return summed.unflatten(1, gradient.shape[1:])


@torch.library.custom_op("lite_align::varlen_attention", mutates_args=())
def _varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gathered: Tensor,
    order: Tensor,
    bounds: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    scale: float,
    window: int,
) -> tuple[Tensor, Tensor]:
    """Gather keys and values and attend: (T, H, D), and the log-sum-exp (H, T) that the backward needs."""
    call = VarlenCall(cu_q, cu_k, max_q, max_k, scale, window)
    out, lse = _kernel(query).forward(query, _gather(key, gathered), _gather(value, gathered), call)
    return out.contiguous(), lse


@_varlen_attention.register_fake
def _(query, key, value, gathered, order, bounds, cu_q, cu_k, max_q, max_k, scale, window):
    exact = torch.promote_types(query.dtype, torch.float32)
    return query.new_empty(query.shape), query.new_empty(query.shape[1], query.shape[0], dtype=exact)


@torch.library.custom_op("lite_align::varlen_attention_backward", mutates_args=())
def _varlen_attention_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gathered: Tensor,
    order: Tensor,
    bounds: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    out: Tensor,
    lse: Tensor,
    max_q: int,
    max_k: int,
    scale: float,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, each shaped like its tensor."""
    call = VarlenCall(cu_q, cu_k, max_q, max_k, scale, window)
    dquery, dkey, dvalue = _kernel(query).backward(
        gradient, query, _gather(key, gathered), _gather(value, gathered), out, lse, call
    )
    return (
        dquery.contiguous(),
        fold(dkey, order, bounds).contiguous(),
        fold(dvalue, order, bounds).contiguous(),
    )


@_varlen_attention_backward.register_fake
def _(
    gradient, query, key, value, gathered, order, bounds, cu_q, cu_k, out, lse, max_q, max_k, scale, window
):
    return tuple(x.new_empty(x.shape) for x in (query, key, value))


def _setup(ctx, inputs, output) -> None:
    *tensors, ctx.max_q, ctx.max_k, ctx.scale, ctx.window = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx, gradient, _):
    gradients = _varlen_attention_backward(
        gradient, *ctx.saved_tensors, ctx.max_q, ctx.max_k, ctx.scale, ctx.window
    )
    return *gradients, *[None] * 9


_varlen_attention.register_autograd(_backward, setup_context=_setup)


# What the partitioner of torch.compile believes these to cost when it chooses what to compute again; without a
# formula: nothing. From shapes alone: every query sees K / S keys, as the flash kernels' own formulas ignore
# that attention is causal.


@register_flop_formula(torch.ops.lite_align.varlen_attention)
def _flops(query, key, value, gathered, order, bounds, cu_q, *rest, **named) -> int:
    tokens, heads, size = query
    return 4 * tokens * heads * size * gathered[0] // max(1, cu_q[0] - 1)


@register_flop_formula(torch.ops.lite_align.varlen_attention_backward)
def _backward_flops(gradient, *shapes, **named) -> int:
    return 5 * _flops(*shapes) // 2


class VarlenPlan(NamedTuple):
    """Keys and values gathered segment by segment, then one call of a varlen kernel.

    Attributes:
        mask: (1, 1, 1, 1), as in `TiledPlan`.
        gathered: (K,) the row position of each gathered key.
        order: (K,) gathered keys sorted by row position.
        bounds: (T + 1,) where the copies of each row position begin in `order`.
        cu_q, cu_k, max_q, max_k: as in a batch; the maxima are rounded up, so that few values occur.
    """

    mask: Tensor
    gathered: Tensor
    order: Tensor
    bounds: Tensor
    cu_q: Tensor
    cu_k: Tensor
    max_q: int
    max_k: int

    @classmethod
    def of(cls, batch: BatchLike) -> "VarlenPlan":
        """Sort the gathered keys by row position, on the device and without waiting for it."""
        places, order = batch.kv_index.sort(stable=True)
        rows = torch.arange(batch.input_ids.shape[1] + 1, device=places.device)
        return cls(
            torch.ones(1, 1, 1, 1, dtype=torch.bool, device=places.device),
            batch.kv_index,
            order,
            torch.searchsorted(places, rows),
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
        out, _ = _varlen_attention(query, key, value, *self[1:], scale, window)
        return out
