"""One optimiser step: micro-batches in, one exact update out, on Accelerate.

The trainable tensors of a role live in one flat fp32 buffer, so clipping, AdamW and the finite check are single
kernels. The loss is weighted over the whole optimiser step: how examples fall into micro-batches changes nothing.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lite_align.errors import TrainingStopped
from lite_align.recipe import TrainOptions
from lite_align.train.metrics import Sums, means


class MicroBatch(Protocol):
    """What the engine needs to know of a micro-batch."""

    @property
    def keys(self) -> Sequence[int]:
        """Numbers of the examples inside, for messages."""
        ...

    @property
    def tokens(self) -> int:
        """Tokens without padding, for the speed that is shown."""
        ...


BatchT = TypeVar("BatchT", bound=MicroBatch)


@dataclass(frozen=True)
class Loss:
    """The loss of one micro-batch.

    Args:
        total: scalar with a graph, summed (not averaged) over the examples, each times its weight.
        sums: scalars to log, summed over the examples.
        examples: how many examples were summed.
    """

    total: Tensor
    sums: dict[str, Tensor]
    examples: int


@dataclass(frozen=True)
class Window(Generic[BatchT]):
    """The micro-batches of one optimiser step; `weight` is the sum of the weights of all its examples."""

    batches: Sequence[BatchT]
    weight: float


class FlatParameters:
    """Trainable tensors and their gradients as views into one flat buffer each.

    Args:
        named: name and fp32 parameter, all on one device; their storage moves into the buffer.
    """

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]]) -> None:
        if not named:
            raise TrainingStopped("No trainable tensor was found in the adapter.")
        self.named = list(named)
        flat = torch.cat([p.detach().float().reshape(-1) for _, p in named])
        self.flat = nn.Parameter(flat)
        self.flat.grad = torch.zeros_like(flat)
        offset = 0
        for _, parameter in named:
            view = slice(offset, offset + parameter.numel())
            parameter.data = self.flat.data[view].view(parameter.shape)
            parameter.grad = self.flat.grad[view].view(parameter.shape)
            offset += parameter.numel()
        self.start = flat.clone()

    @property
    def gradient(self) -> Tensor:
        """The flat gradient, (P,) fp32."""
        assert self.flat.grad is not None
        return self.flat.grad

    def moved(self) -> float:
        """Share of trainable elements that differ from the start of the process (1.0 is all of them)."""
        return float((self.flat.data != self.start).float().mean())

    def still(self, *, gradient: bool, containing: str = "") -> list[str]:
        """Names of tensors of which no element has moved (or, with `gradient`, has a gradient)."""
        names, offset = [], 0
        for name, parameter in self.named:
            view = slice(offset, offset + parameter.numel())
            offset += parameter.numel()
            changed = self.gradient[view] if gradient else self.flat.data[view] - self.start[view]
            if containing in name and not bool(changed.any()):
                names.append(name)
        return names


def learning_rate(step: int, total: int, options: TrainOptions, peak: float) -> float:
    """Learning rate of optimiser step `step` (from 0) of `total`: linear warmup, then the recipe's schedule.

    Cosine follows SGDR (arXiv 1608.03983, eq. 5) without restarts, down to 0 after the last step.
    """
    warmup = math.ceil(total * options.warmup)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    shape = {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
    }
    return peak * shape[options.schedule]


class Engine(Generic[BatchT]):
    """Accelerate, flat AdamW and the optimiser step; `step` counts finished updates.

    Args:
        accelerator: gives the device, the backward pass and the sum over processes.
        named: trainable tensors of the role.
        options: train options of the recipe, with no "auto" left.
        total_steps: length of the schedule.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        named: Sequence[tuple[str, nn.Parameter]],
        options: TrainOptions,
        total_steps: int,
    ) -> None:
        assert not isinstance(options.learning_rate, str), "learning_rate must be resolved before training"
        self.accelerator = accelerator
        self.parameters = FlatParameters(named)
        self.options = options
        self.peak = options.learning_rate
        self.total_steps = total_steps
        self.step = 0
        self.sums = Sums()
        self.optimizer = torch.optim.AdamW(
            [self.parameters.flat],
            lr=self.peak,
            betas=(options.adam_beta1, options.adam_beta2),
            eps=options.adam_epsilon,
            weight_decay=options.weight_decay,
            fused=True,
        )

    def update(self, window: Window[BatchT], loss_of: Callable[[BatchT], Loss]) -> None:
        """Run forward and backward over the window and make one step; metrics are added to `sums`.

        Raises:
            TrainingStopped: the gradient is not finite, or an adapter tensor gets none. Nothing was changed.
        """
        gradient = self.parameters.gradient
        gradient.zero_()
        for batch in window.batches:
            loss = loss_of(batch)
            self.accelerator.backward(loss.total / window.weight)
            self.sums.add(loss.sums, loss.examples)
        if self.accelerator.num_processes > 1:
            gradient.copy_(self._summed(gradient))
        norm = gradient.norm()
        self._check(norm, window)
        if self.options.max_grad_norm:
            gradient.mul_((self.options.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        self.optimizer.param_groups[0]["lr"] = self.rate
        self.optimizer.step()
        self.grad_norm = norm
        self.step += 1

    @property
    def rate(self) -> float:
        """Learning rate of the next update."""
        return learning_rate(self.step, self.total_steps, self.options, self.peak)

    def _check(self, norm: Tensor, window: Window[BatchT]) -> None:
        if not bool(torch.isfinite(norm)):
            keys = [key for batch in window.batches for key in batch.keys]
            raise TrainingStopped(
                f"The gradient of step {self.step + 1} is not finite; the step was not made.",
                details=[f"examples of that step: {', '.join(map(str, keys[:32]))}"],
                remedy="Lower train.learning_rate, or look at these rows; the last checkpoint is intact.",
            )
        # lora_B starts at 0, so at the first step it alone must have a gradient everywhere (lora_A follows).
        if self.step == 0 and (frozen := self.parameters.still(gradient=True, containing="lora_B")):
            raise TrainingStopped(
                f"{len(frozen)} adapter tensors get no gradient.",
                details=frozen[:8],
                remedy="This is a fault of the model's support; please report it with the model's name.",
            )

    def _summed(self, tensor: Tensor) -> Tensor:
        total = self.accelerator.reduce(tensor, reduction="sum")
        assert isinstance(total, Tensor)
        return total

    def logged(self) -> dict[str, float]:
        """Return the means since the last call, over all processes, and forget them."""
        names, stacked = self.sums.stacked()
        if self.accelerator.num_processes > 1:
            stacked = self._summed(stacked)
        self.sums.reset()
        return {**means(names, stacked), "grad_norm": float(self.grad_norm)}

    def state(self) -> dict[str, Tensor]:
        """AdamW moments and the start of the moving-parameter meter, by name, for a checkpoint."""
        held = self.optimizer.state[self.parameters.flat]
        flat = self.parameters.flat
        return {
            "exp_avg": held.get("exp_avg", torch.zeros_like(flat)).detach(),
            "exp_avg_sq": held.get("exp_avg_sq", torch.zeros_like(flat)).detach(),
            "start": self.parameters.start,
        }

    def load_state(self, tensors: dict[str, Tensor], step: int) -> None:
        """Continue after `step` finished updates with the moments of a checkpoint (exact)."""
        flat = self.parameters.flat
        self.parameters.start.copy_(tensors["start"])
        self.optimizer.state[flat] = {
            "step": torch.tensor(float(step), dtype=torch.float32, device=flat.device),
            "exp_avg": tensors["exp_avg"].to(flat.device).clone(),
            "exp_avg_sq": tensors["exp_avg_sq"].to(flat.device).clone(),
        }
        self.step = step
