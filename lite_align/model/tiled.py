"""Shared-prefix attention in tiles: exact on any device, made for the CPU.

Shape letters: T tokens in the row, H query heads, G query heads for one key head, D head size. Queries, keys
and values have the shape (T, heads, D).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lite_align.model.kernels import BatchLike

TILE = 96
"""Queries in a tile of 8 heads or more: on a CPU, attention over 160 to 600 tokens was fastest with 64 to 128."""

ON_A_GPU = 512
"""Queries in a tile on a GPU, which needs more work at once."""


def tile_size(heads: int) -> int:
    """Queries in a tile on a CPU: fewer heads leave each product so small that calling it takes longer than it."""
    return min(2 * TILE, max(TILE, 8 * TILE // heads))


class _Tile(NamedTuple):
    """Queries `start:stop` with the keys `shared_start:shared_stop` and `own_start:stop`."""

    start: int
    stop: int
    shared_start: int
    shared_stop: int
    own_start: int

    @property
    def keys(self) -> int:
        return self.shared_stop - self.shared_start + self.stop - self.own_start

    def within(self, window: int) -> "_Tile":
        """Leave out keys that lie outside the sliding window of all queries of the tile."""
        hidden = self.keys - (self.stop - self.start) - window + 1
        if window == 0 or hidden <= 0:
            return self
        from_root = min(hidden, self.shared_stop - self.shared_start)
        return self._replace(
            shared_start=self.shared_start + from_root, own_start=self.own_start + hidden - from_root
        )

    def take(self, x: Tensor) -> Tensor:
        """Select the keys of the tile from (heads, T, D): a view, or a copy where they are in two places."""
        own = x[:, self.own_start : self.stop]
        if self.shared_start == self.shared_stop:
            return own
        return torch.cat((x[:, self.shared_start : self.shared_stop], own), 1)

    def give(self, x: Tensor, values: Tensor) -> None:
        """Add (heads, keys, D) to the rows of x (heads, T, D) that `take` read."""
        shared = self.shared_stop - self.shared_start
        # add_, as `x[...] += y` also copies the sum onto itself.
        if shared:
            x[:, self.shared_start : self.shared_stop].add_(values[:, :shared])
        x[:, self.own_start : self.stop].add_(values[:, shared:])


class _Tiles:
    """The tiles of one call, and the scores of each."""

    def __init__(self, tiles: Tensor, groups: int, scale: float, window: int, softcap: float, like: Tensor):
        self.tiles = [_Tile(*numbers).within(window) for numbers in tiles.tolist()]
        self.groups, self.scale, self.window, self.softcap = groups, scale, window, softcap
        longest = max((tile.stop - tile.start for tile in self.tiles), default=0)
        self.future = like.new_full((longest, longest), -math.inf).triu(1)
        self.unused = like.new_empty(1, 1, 1)

    def rows(self, x: Tensor, tile: _Tile) -> Tensor:
        """Queries of a tile, the G heads of one key head under each other: (H / G, G * queries, D)."""
        size = tile.stop - tile.start
        return x.unflatten(0, (-1, self.groups))[:, :, tile.start : tile.stop].reshape(
            -1, self.groups * size, x.shape[-1]
        )

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """Batched matrix product times the scale, in one pass."""
        return torch.baddbmm(self.unused, a, b, beta=0, alpha=self.scale)

    def weights(self, rows: Tensor, keys: Tensor, tile: _Tile) -> tuple[Tensor, Tensor | None]:
        """Attention weights (H / G, G * queries, keys), and the derivative of the softcap if there is one."""
        scores, slope = self.product(rows, keys.mT), None
        if self.softcap:
            bent = torch.tanh(scores / self.softcap)
            scores, slope = bent * self.softcap, 1 - bent.square()
        size = tile.stop - tile.start
        corner = tile.keys - size
        heads = scores.unflatten(1, (self.groups, size))
        heads[..., corner:].add_(self.future[:size, :size])
        if 0 < self.window < tile.keys:
            heads += scores.new_full((size, tile.keys), -math.inf).tril(corner - self.window)
        return torch.softmax(scores, -1), slope


@torch.library.custom_op("lite_align::tiled_attention", mutates_args=())
def _tiled_attention(
    query: Tensor, key: Tensor, value: Tensor, tiles: Tensor, scale: float, window: int, softcap: float
) -> Tensor:
    """Attend tile by tile: (T, H, D)."""
    exact = torch.promote_types(query.dtype, torch.float32)
    q, k, v = (x.to(exact).transpose(0, 1) for x in (query, key, value))
    plan = _Tiles(tiles, query.shape[1] // key.shape[1], scale, window, softcap, q)
    out = query.new_empty(query.shape[0], query.shape[1], value.shape[2])
    heads = out.transpose(0, 1).unflatten(0, (-1, plan.groups))
    for tile in plan.tiles:
        weights, _ = plan.weights(plan.rows(q, tile), tile.take(k), tile)
        mixed = torch.bmm(weights, tile.take(v))
        heads[:, :, tile.start : tile.stop] = mixed.unflatten(1, (plan.groups, -1))
    return out


@_tiled_attention.register_fake
def _(query, key, value, tiles, scale, window, softcap):
    return query.new_empty(query.shape[0], query.shape[1], value.shape[2])


@torch.library.custom_op("lite_align::tiled_attention_backward", mutates_args=())
def _tiled_attention_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tiles: Tensor,
    scale: float,
    window: int,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, each shaped like its tensor.

    The weights are computed again: on a CPU this takes as long as to keep them, in a quarter of the memory.
    """
    exact = torch.promote_types(query.dtype, torch.float32)
    g, q, k, v = (x.to(exact).transpose(0, 1) for x in (gradient, query, key, value))
    plan = _Tiles(tiles, query.shape[1] // key.shape[1], scale, window, softcap, q)
    dquery = torch.empty_like(query, memory_format=torch.contiguous_format)
    heads = dquery.transpose(0, 1).unflatten(0, (-1, plan.groups))
    dkey, dvalue = q.new_zeros(key.shape), q.new_zeros(value.shape)
    for tile in plan.tiles:
        rows, keys, outer = plan.rows(q, tile), tile.take(k), plan.rows(g, tile)
        weights, slope = plan.weights(rows, keys, tile)
        dweights = torch.bmm(outer, tile.take(v).mT)
        # The fused form of weights * (dweights - (weights * dweights).sum(-1, keepdim=True)).
        dscores = torch.ops.aten._softmax_backward_data(dweights, weights, -1, exact)
        if slope is not None:
            dscores *= slope
        heads[:, :, tile.start : tile.stop] = plan.product(dscores, keys).unflatten(1, (plan.groups, -1))
        tile.give(dkey.transpose(0, 1), plan.product(dscores.mT, rows))
        tile.give(dvalue.transpose(0, 1), torch.bmm(weights.mT, outer))
    return dquery, dkey.to(key.dtype), dvalue.to(value.dtype)


@_tiled_attention_backward.register_fake
def _(gradient, query, key, value, tiles, scale, window, softcap):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key, value))


def _tiled_setup(ctx, inputs, output) -> None:
    *tensors, ctx.scale, ctx.window, ctx.softcap = inputs
    ctx.save_for_backward(*tensors)


def _tiled_backward(ctx, gradient):
    gradients = _tiled_attention_backward(gradient, *ctx.saved_tensors, ctx.scale, ctx.window, ctx.softcap)
    return *gradients, None, None, None, None


_tiled_attention.register_autograd(_tiled_backward, setup_context=_tiled_setup)


class TiledPlan(NamedTuple):
    """Segments cut into tiles of at most `TILE` queries, so that few masked scores are computed.

    Scores, probabilities and sums are fp32 (fp64 for fp64 inputs), whatever the inputs are.

    Attributes:
        mask: (1, 1, 1, 1), a 4-D stand-in that keeps transformers from building a mask of T * T.
        tiles: (number of tiles, 5) int64 on the CPU, the fields of a tile.
        longest: the longest list of keys of a segment.
    """

    mask: Tensor
    tiles: Tensor
    longest: int

    @classmethod
    def of(cls, batch: BatchLike, tile: int = TILE) -> "TiledPlan":
        """Cut the segments of a batch into equal tiles."""
        tiles: list[_Tile] = []
        for segment in batch.segments:
            parts = -(-(segment.stop - segment.start) // tile)
            step = -(-(segment.stop - segment.start) // parts)
            for start in range(segment.start, segment.stop, step):
                stop = min(start + step, segment.stop)
                tiles.append(_Tile(start, stop, segment.shared_start, segment.shared_stop, segment.start))
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=batch.input_ids.device)
        return cls(mask, torch.tensor(tiles, dtype=torch.int64), batch.max_k)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int, softcap: float
    ) -> Tensor:
        """Return the attention output (T, H, D)."""
        window = window if window < self.longest else 0
        return _tiled_attention(query, key, value, self.tiles, scale, window, softcap)
