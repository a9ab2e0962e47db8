"""The decoder blocks of a model: which of them recompute their activations, and whether they are compiled."""

import types
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

Contexts = Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]
"""Makes the contexts of a forward pass and of its recomputation, as torch's `checkpoint` takes them."""

RECOMPUTED = (
    "ban_recompute_used_far_apart",
    "ban_recompute_long_fusible_chains",
    "ban_recompute_materialized_backward",
)
"""What torch's compiler does not recompute by itself, to save time: elementwise results (norms, activations, casts).
Recomputed inside of fused kernels they cost next to nothing and are half of what a block saves. Products and
attention stay on the list of what is kept. A budget (`activation_memory_budget`) would not: it takes operations that
torch has no formula for, bitsandbytes' and ours, for free, and repeats them where a model's proportions ask for it."""


class Blocks:
    """Takes over the forward of every decoder block, so that recomputation stands outside of what is compiled.

    transformers' own switch is left off: it makes the embeddings ask for a gradient that nobody needs, and from
    5.23 on it lies inside of the block's forward, where a compiler cannot follow our contexts.

    Args:
        model: a causal language model with its adapters.
        contexts: re-enter the role of the forward pass where activations are recomputed.
        random: whether blocks draw random numbers (dropout), which a recomputation must draw again.
    """

    def __init__(self, model: nn.Module, contexts: Contexts, *, random: bool) -> None:
        self._blocks = [
            module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
        ]
        self._contexts = contexts
        self._random = random
        self._recomputed = 0
        for number, block in enumerate(self._blocks):
            own = types.MethodType(type(block).forward, block)
            block.forward = self._forward(number, own, own)

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def recomputed(self) -> int:
        """How many blocks recompute their activations in the backward pass: the first ones."""
        return self._recomputed

    def recompute(self, count: int) -> None:
        """Let the first `count` blocks keep nothing but their input; the results are the same bit by bit."""
        self._recomputed = max(0, min(count, len(self._blocks)))

    def compile(self, *, backend: str = "inductor") -> None:
        """Compile every block as one graph; blocks of one shape share it, each role has its own.

        Packed rows of all lengths use the same graph. Generation, which has no plan, runs as before.
        """
        # Only here in the process is anything compiled, and a graph may be made at any later call.
        for name in RECOMPUTED:
            setattr(torch._functorch.config, name, False)  # pyright: ignore[reportAttributeAccessIssue]
        for number, block in enumerate(self._blocks):
            own = types.MethodType(type(block).forward, block)
            compiled = torch.compile(own, fullgraph=True, dynamic=True, backend=backend)
            block.forward = self._forward(number, own, compiled)

    def _forward(
        self, number: int, own: Callable[..., Any], packed: Callable[..., Any]
    ) -> Callable[..., Any]:
        """The forward of one block: `packed` for packed rows, `own` for everything else."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            run = own if kwargs.get("plan") is None else packed
            if number >= self._recomputed or not torch.is_grad_enabled():
                return run(*args, **kwargs)
            return checkpoint(
                run,
                *args,
                use_reentrant=False,
                context_fn=self._contexts,
                preserve_rng_state=self._random,
                **kwargs,
            )

        return forward
