"""Floating-point operations of a training step, from the sizes of a model and the lengths of the rows.

A product of (T, N) and (N, M) counts 2 * T * N * M; elementwise work is left out. The base is frozen, so the backward
pass has the gradient of the inputs alone, except in the adapter.
"""

from dataclasses import dataclass
from functools import reduce
from operator import add

from lite_align.model.budget import Sizes

ATTENTION_BACKWARD = 2.5
"""Five products in place of two: the scores are made again (FlashAttention, arXiv 2205.14135, algorithm 4)."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a pass has to do with some rows.

    Attributes:
        tokens: T, every shared prompt counted once.
        scored: tokens whose log-prob is asked for.
        visible: pairs of a query and a key that it sees.
    """

    tokens: int = 0
    scored: int = 0
    visible: float = 0.0

    @classmethod
    def of(cls, root: int, leaves: list[int], scored: int) -> "Work":
        """Work of a tree with a root and leaves of so many tokens, of which `scored` are trained."""
        visible = root**2 / 2 + sum(leaf * root + leaf**2 / 2 for leaf in leaves)
        return cls(root + sum(leaves), scored, visible)

    def __add__(self, other: "Work") -> "Work":
        """Both together."""
        return Work(self.tokens + other.tokens, self.scored + other.scored, self.visible + other.visible)


def total(parts: list[Work]) -> Work:
    """All of them together."""
    return reduce(add, parts, Work())


def _attention(size: Sizes, work: Work) -> float:
    return 4.0 * size.query * size.layers * work.visible


def _head(size: Sizes, work: Work) -> float:
    return 2.0 * size.vocabulary * size.hidden * work.scored


def forward(size: Sizes, work: Work, *, rank: int) -> float:
    """Operations of a forward pass, with an adapter of a rank on every linear layer of the blocks (0: none)."""
    linear = 2.0 * (size.block_weights + rank * size.adapter_inputs_outputs) * work.tokens
    return linear + _attention(size, work) + _head(size, work)


def backward(size: Sizes, work: Work, *, rank: int) -> float:
    """Operations of a backward pass; the head's second product counts here, though it runs in the forward pass."""
    linear = 2.0 * (size.block_weights + 2 * rank * size.adapter_inputs_outputs) * work.tokens
    return linear + ATTENTION_BACKWARD * _attention(size, work) + _head(size, work)


def recomputation(size: Sizes, work: Work, *, rank: int, blocks: int) -> float:
    """Operations of recomputing the activations of so many blocks."""
    return (forward(size, work, rank=rank) - _head(size, work)) * blocks / size.layers


def least(size: Sizes, work: Work, *, rank: int) -> float:
    """What one epoch cannot do without: forward and backward pass, and the reference pass."""
    return forward(size, work, rank=rank) + backward(size, work, rank=rank) + forward(size, work, rank=0)
