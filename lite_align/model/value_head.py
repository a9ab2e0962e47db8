"""VALUE: what an answer is expected to earn, read from hidden states token by token by a small fp32 head.

A `PROBE` reads the frozen REWARD role's states, which the scoring pass has computed anyway: a layer of tanh units. A
`LINEAR` head reads the policy's own states and sends its gradient through them. Shape letters: M tokens, H hidden size.
"""

from enum import StrEnum

import torch
from torch import Tensor, nn

UNITS = 64
"""Of the probe."""

SMALL = 0.01
"""Standard deviation of the last layer's start, times the root of its inputs: near 0, and yet all tensors learn."""


class Kind(StrEnum):
    """What a value head is."""

    PROBE = "probe"
    LINEAR = "linear"


class ValueHead(nn.Module):
    """Values (M,) fp32 of hidden states (M, H).

    Args:
        kind: of the head.
        size: H.
        seed: of its start, the same on every device.
        device: of its weights.
    """

    def __init__(self, kind: Kind, size: int, *, seed: int, device: torch.device) -> None:
        super().__init__()
        self.kind = kind
        generator = torch.Generator().manual_seed(seed)

        def drawn(*shape: int, scale: float = 1.0) -> nn.Parameter:
            start = torch.randn(*shape, generator=generator) * scale / shape[-1] ** 0.5
            return nn.Parameter(start.to(device))

        self.hidden_weight = drawn(UNITS, size) if kind is Kind.PROBE else None
        self.hidden_bias = nn.Parameter(torch.zeros(UNITS, device=device)) if kind is Kind.PROBE else None
        self.weight = drawn(UNITS if kind is Kind.PROBE else size, scale=SMALL)
        self.bias = nn.Parameter(torch.zeros(1, device=device))

    def forward(self, states: Tensor) -> Tensor:
        """Values of states."""
        states = states.float()
        if self.hidden_weight is not None:
            states = torch.tanh(nn.functional.linear(states, self.hidden_weight, self.hidden_bias))
        return states @ self.weight + self.bias
