"""The physical limit: arithmetic and weight traffic that DPO with a frozen 4-bit base and LoRA cannot avoid.

Shape letters: P, C, R tokens of prompt, chosen and rejected answer; prompts are computed once for both answers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.gpu.job import RANK

NF4_BYTES = 4.127 / 8 + 2
"""Bytes moved to unpack one weight to bf16: packed with its scales in, bf16 out."""

REFERENCE_TOKENS = 16384
"""Tokens of a pass without gradients; larger ones gain nothing that shows."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder with gated feed-forward layers."""

    layers: int
    hidden: int
    query: int
    key_value: int
    feed_forward: int
    vocabulary: int

    def _linears(self) -> tuple[tuple[int, int], ...]:
        h, q, kv, f = self.hidden, self.query, self.key_value, self.feed_forward
        return ((h, q), (h, kv), (h, kv), (q, h), (h, f), (h, f), (f, h))

    @property
    def linear(self) -> int:
        """Weights of the linear layers in the blocks."""
        return self.layers * sum(a * b for a, b in self._linears())

    def adapter(self, rank: int = RANK) -> int:
        """Weights of LoRA on all of them."""
        return self.layers * rank * sum(a + b for a, b in self._linears())

    @property
    def head(self) -> int:
        """Weights of the language-model head."""
        return self.vocabulary * self.hidden


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of the parts of DPO; a product of two matrices counts 2 * M * N * K."""

    forward: float
    backward: float
    reference: float
    recompute: float

    @property
    def epoch(self) -> float:
        """The least for one epoch: nothing is recomputed, and every reference log-prob is computed once."""
        return self.forward + self.backward + self.reference

    @property
    def step(self) -> float:
        """The least for one epoch after the first."""
        return self.forward + self.backward


def pair_flops(
    shape: Shape, prompt: int, chosen: int, rejected: int, *, rank: int = RANK, shared: bool = True
) -> Flops:
    """Operations for one pair, its prompt computed once or (`shared=False`) for each answer.

    The base is frozen: its backward pass has the products for the inputs alone. Attention is causal, and its
    backward pass costs 2.5 times its forward pass.
    """
    tokens = chosen + rejected + prompt * (1 if shared else 2)
    both = (prompt + chosen) ** 2 / 2
    both += rejected * prompt + rejected**2 / 2 if shared else (prompt + rejected) ** 2 / 2
    base = 2.0 * shape.linear * tokens
    attention = 4.0 * shape.query * shape.layers * both
    adapter = 2.0 * shape.adapter(rank) * tokens
    head = 2.0 * shape.head * (chosen + rejected)
    return Flops(
        forward=base + attention + adapter + head,
        backward=base + 2.5 * attention + 2 * adapter + head,
        reference=base + attention + head,
        recompute=base + attention + adapter,
    )


@dataclass(frozen=True)
class Card:
    """What a card was measured to do: bf16 products and bytes moved, a second."""

    flops: float
    bandwidth: float


def floor_seconds(
    shape: Shape, pairs: Sequence[tuple[int, int, int]], steps: int, card: Card
) -> tuple[float, float]:
    """Least seconds for some pairs in `steps` optimiser steps: the steps alone, and with the reference pass.

    The 4-bit weights are unpacked twice a step (forward and backward, one micro-batch), and once for every
    `REFERENCE_TOKENS` of the reference pass.
    """
    flops = [pair_flops(shape, *lengths) for lengths in pairs]
    unpack = NF4_BYTES * shape.linear / card.bandwidth
    training = sum(f.step for f in flops) / card.flops + 2 * steps * unpack
    passes = total_tokens(pairs) / REFERENCE_TOKENS
    reference = sum(f.reference for f in flops) / card.flops + passes * unpack
    return training, training + reference


def total_tokens(pairs: Iterable[tuple[int, int, int]]) -> int:
    """Tokens with every prompt counted once."""
    return sum(map(sum, pairs))
