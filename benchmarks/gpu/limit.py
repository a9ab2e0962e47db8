"""The physical limit: arithmetic and weight traffic that DPO with a frozen 4-bit base and LoRA cannot avoid."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.gpu.job import RANK
from lite_align.model import flops
from lite_align.model.budget import BITS, Sizes

NF4_BYTES = (BITS["nf4"] or 0) / 8 + 2
"""Bytes moved to unpack one weight to bf16: packed with its scales in, bf16 out."""

REFERENCE_TOKENS = 16384
"""Tokens of a pass without gradients; larger ones gain nothing that shows."""


@dataclass(frozen=True)
class Card:
    """What a card was measured to do: bf16 products and bytes moved, a second."""

    flops: float
    bandwidth: float


def floor_seconds(
    size: Sizes, pairs: Sequence[tuple[int, int, int]], steps: int, card: Card
) -> tuple[float, float]:
    """Least seconds for some pairs in `steps` optimiser steps: the steps alone, and with the reference pass.

    A pair is the tokens of prompt, chosen and rejected answer; the prompt is computed once. The 4-bit weights are
    unpacked twice a step (forward and backward, one micro-batch), and once for every `REFERENCE_TOKENS` of the
    reference pass.
    """
    done = flops.total(
        [flops.Work.of(prompt, [chosen, rejected], chosen + rejected) for prompt, chosen, rejected in pairs]
    )
    unpack = NF4_BYTES * size.block_weights / card.bandwidth
    step = flops.forward(size, done, rank=RANK) + flops.backward(size, done, rank=RANK)
    training = step / card.flops + 2 * steps * unpack
    passes = done.tokens / REFERENCE_TOKENS
    reference = flops.forward(size, done, rank=0) / card.flops + passes * unpack
    return training, training + reference
