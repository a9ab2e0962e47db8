"""What every attention plan needs of a batch, and the plan that runs on any device: a mask over the whole row.

Shape letters: T tokens in the row, S segments, K keys of all segments together, H query heads, D head size.
Queries, keys and values have the shape (T, heads, D).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

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


def masked_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, softcap: float
) -> Tensor:
    """Attend with an additive mask (…, queries, keys): (N, H, T, D) with fewer key heads -> (N, H, T, D).

    Without a mask every query sees every key.
    """
    groups = query.shape[1] // key.shape[1]
    if not softcap:
        # Repeated, not enable_gqa: with a mask that option falls back to a slow kernel on CUDA.
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    exact = torch.promote_types(query.dtype, torch.float32)
    # The query heads of one key head under each other, so that no key is copied: (N, H / G, G * T, D).
    rows = query.unflatten(1, (-1, groups)).flatten(2, 3)
    scores = (rows @ key.mT).to(exact).mul_(scale / softcap).tanh_() * softcap
    if mask is not None:
        scores = scores.unflatten(2, (groups, -1)) + mask.unsqueeze(-3)
        scores = scores.flatten(2, 3)
    mixed = scores.softmax(-1).to(value.dtype) @ value
    return mixed.unflatten(2, (groups, -1)).flatten(1, 2)


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
        """Build the masks of a batch, on its device and without waiting for it.

        Windows count positions, not places in the row. One that no list of keys exceeds hides nothing.
        """
        place = torch.arange(batch.input_ids.shape[1], dtype=torch.int32, device=batch.input_ids.device)
        segment = torch.searchsorted(batch.cu_q[1:], place, right=True)
        begin = batch.cu_q[:-1]
        shared = batch.kv_index.index_select(0, batch.cu_k[:-1])
        sizes = batch.cu_k.diff() - batch.cu_q.diff()
        bounds = torch.stack((begin, shared, shared + sizes)).index_select(1, segment)
        start, shared_start, shared_stop = bounds[..., None]
        visible = (place >= start) & (place <= place[:, None])
        visible |= (place >= shared_start) & (place < shared_stop)
        position = batch.position_ids[0]
        distance = position[:, None] - position

        def additive(seen: Tensor) -> Tensor:
            return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, -math.inf)[
                None, None
            ]

        whole = additive(visible)
        hiding = [size for size in windows if size < batch.max_k]
        masks = {size: additive(visible & (distance < size)) for size in hiding}
        return cls(whole, tuple((size, masks.get(size, whole)) for size in windows))

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
