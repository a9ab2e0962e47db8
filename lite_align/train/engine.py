"""One optimiser step: micro-batches in, one exact update out, on Accelerate.

The trainable tensors of a role live in one flat fp32 buffer, so clipping, AdamW and the finite check are single
kernels. The loss is weighted over the whole optimiser step: how examples fall into micro-batches changes nothing.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lite_align.errors import TrainingStopped
from lite_align.recipe import TrainOptions
from lite_align.train.metrics import Counted, Sums, means


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
        sums: scalars to log, summed over what they are means of.
        count: how many that were: examples, or the trained tokens of the examples; a sum may come with its own.
    """

    total: Tensor
    sums: Mapping[str, Tensor | Counted]
    count: int


@dataclass(frozen=True)
class Window(Generic[BatchT]):
    """The micro-batches of one optimiser step; `weight` is the sum of the weights of all its examples.

    One without micro-batches makes no update.
    """

    batches: Sequence[BatchT]
    weight: float


@dataclass(frozen=True)
class Group:
    """Tensors with a peak learning rate of their own: they follow the schedule, and are clipped by their own norm."""

    named: Sequence[tuple[str, nn.Parameter]]
    learning_rate: float


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
        """Share of trainable elements that differ from the start of the run (1.0 is all of them)."""
        return int((self.flat.data != self.start).count_nonzero()) / self.start.numel()

    def still(self, *, gradient: bool) -> list[str]:
        """Names of tensors of which no element has moved (or, with `gradient`, has a gradient)."""
        differs = self.gradient != 0 if gradient else self.flat.data != self.start
        parts = differs.split([parameter.numel() for _, parameter in self.named])
        flags = torch.stack([part.any() for part in parts]).tolist()  # one transfer from the device
        return [name for (name, _), flag in zip(self.named, flags) if not flag]


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
    """Accelerate, flat AdamW and the optimiser step.

    The host never waits for the device inside a step. A gradient that is not finite makes this step and all later
    ones change nothing, on the device; `check` tells the host.

    Args:
        accelerator: gives the backward pass and the sum over processes; the device is that of the tensors.
        named: trainable tensors of the role.
        options: train options of the recipe, with no "auto" left.
        total_steps: length of the schedule.
        fused: AdamW as one kernel; if not, its plain path, which waits for the device in every step.
        others: further tensors, with learning rates of their own.

    Attributes:
        step: finished updates, skipped ones included.
        skipped: steps that made no update.
        rate_factor: of every learning rate.
        phase: what the update is doing or did last, for messages: "forward", "backward" or "optimizer".
        sums: metrics of finished updates since the last `logged`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        named: Sequence[tuple[str, nn.Parameter]],
        options: TrainOptions,
        total_steps: int,
        *,
        fused: bool = True,
        others: Sequence[Group] = (),
    ) -> None:
        assert not isinstance(options.learning_rate, str), "learning_rate must be resolved before training"
        groups = [Group(named, options.learning_rate), *others]
        self.accelerator = accelerator
        self.parameters = FlatParameters([one for group in groups for one in group.named])
        self.options = options
        self.peaks = [group.learning_rate for group in groups]
        self.total_steps = total_steps
        self.fused = fused
        self.step = self.skipped = 0
        self.rate_factor = 1.0
        self.phase = ""
        self.sums = Sums()
        flat = self.parameters.flat
        self._parts = _slices([sum(p.numel() for _, p in group.named) for group in groups])
        self._leaves = [nn.Parameter(flat.data[part]) for part in self._parts]
        for leaf, part in zip(self._leaves, self._parts):
            leaf.grad = self.parameters.gradient[part]
        self.optimizer = torch.optim.AdamW(
            [{"params": [leaf]} for leaf in self._leaves],  # each with a learning rate of its own
            lr=self.peaks[0],
            betas=(options.adam_beta1, options.adam_beta2),
            eps=options.adam_epsilon,
            weight_decay=options.weight_decay,
            fused=fused,
            foreach=False,
        )
        # The moments take their memory now: memory that runs out later is never that of `optimizer.step`.
        self._set_moments(torch.zeros_like(flat), torch.zeros_like(flat), 0)
        self._broken = torch.zeros((), device=flat.device)  # 1 from the first gradient on that is not finite
        self._unchecked: dict[int, list[int]] = {}  # examples of the updates since `check`, by step from 0
        self._checked = 0  # updates before these

    def update(self, window: Window[BatchT], loss_of: Callable[[BatchT], Loss]) -> None:
        """Run forward and backward over the window and make one step; then its metrics are added to `sums`.

        An error of a micro-batch leaves everything but the gradient as it was: the update can be made again.

        Raises:
            TrainingStopped: at the first step, an adapter tensor gets no gradient. Nothing was changed.
        """
        gradient = self.parameters.gradient
        gradient.zero_()
        losses: list[tuple[Mapping[str, Tensor | Counted], int]] = []
        for batch in window.batches:
            self.phase = "forward"
            loss = loss_of(batch)
            self.phase = "backward"
            self.accelerator.backward(loss.total / window.weight)
            losses.append((loss.sums, loss.count))
        self.phase = "optimizer"
        if self.accelerator.num_processes > 1:
            gradient.copy_(self._summed(gradient))
        if self.made == 0:
            self._require_gradients()
        norms = torch.stack([gradient[part].norm() for part in self._parts])
        if self.options.max_grad_norm:
            for part, norm in zip(self._parts, norms):
                gradient[part].mul_((self.options.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        self._unchecked[self.step] = [key for batch in window.batches for key in batch.keys]
        self._broken = torch.maximum(self._broken, 1.0 - norms.isfinite().all().float())
        if self.fused:
            # As torch's GradScaler does: where this is 1, the kernel changes neither weights nor moments nor `step`.
            self.optimizer.found_inf = self._broken  # pyright: ignore[reportAttributeAccessIssue]
        else:
            self.check()
        for own, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            own["lr"] = self._rate(peak)
        self.optimizer.step()
        for sums, count in losses:
            self.sums.add(sums, count)
        self.sums.add({"grad_norm": Counted(norms[0], 1)}, 0)
        self.step += 1

    def skip(self) -> None:
        """Go on to the next step without an update."""
        self.step += 1
        self.skipped += 1

    def check(self) -> None:
        """Wait for the device; stop the run if a gradient since the last call was not finite.

        Raises:
            TrainingStopped: weights and moments are those before that step.
        """
        broken, made = torch.stack([self._broken, self._updates.to(self._broken.device)]).tolist()
        if broken:
            self.step = list(self._unchecked)[int(made) - self._checked]
            self.skipped = self.step - int(made)
            keys = self._unchecked[self.step]
            raise TrainingStopped(
                f"The gradient of step {self.step + 1} is not finite; the step was not made.",
                details=[f"examples of that step: {', '.join(map(str, keys[:32]))}"],
                remedy="Lower train.learning_rate, or look at these rows; the last checkpoint is intact.",
            )
        self._checked += len(self._unchecked)
        self._unchecked.clear()

    @property
    def made(self) -> int:
        """Steps that made an update."""
        return self.step - self.skipped

    @property
    def rate(self) -> float:
        """Learning rate of the next update."""
        return self._rate(self.peaks[0])

    def _rate(self, peak: float) -> float:
        return self.rate_factor * learning_rate(self.step, self.total_steps, self.options, peak)

    def _require_gradients(self) -> None:
        # lora_B starts at 0, so at the first step lora_A has no gradient yet; all others must have one.
        if frozen := [name for name in self.parameters.still(gradient=True) if "lora_A" not in name]:
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
        """Return the means since the last call, over all processes, and forget them.

        Raises:
            TrainingStopped: see `check`.
        """
        self.check()
        names, stacked = self.sums.stacked()
        if self.accelerator.num_processes > 1:
            stacked = self._summed(stacked)
        self.sums.reset()
        return means(names, stacked)

    @property
    def _updates(self) -> Tensor:
        """How many updates AdamW has made."""
        return self.optimizer.state[self._leaves[0]]["step"]

    def _set_moments(self, mean: Tensor, square: Tensor, updates: int) -> None:
        self._mean, self._square = mean.detach(), square.detach()
        # The plain path reads the number of updates on the host.
        counted_on = mean.device if self.fused else torch.device("cpu")
        for leaf, part in zip(self._leaves, self._parts):
            self.optimizer.state[leaf] = {
                "step": torch.tensor(float(updates), dtype=torch.float32, device=counted_on),
                "exp_avg": self._mean[part],
                "exp_avg_sq": self._square[part],
            }

    def state(self) -> dict[str, Tensor]:
        """AdamW moments and the start of the moving-parameter meter, by name, for a checkpoint."""
        return {"exp_avg": self._mean, "exp_avg_sq": self._square, "start": self.parameters.start}

    def load_state(self, tensors: dict[str, Tensor], step: int, skipped: int = 0) -> None:
        """Continue after `step` steps, `skipped` of them without an update, with a checkpoint's moments (exact)."""
        device = self.parameters.flat.device
        self.parameters.start.copy_(tensors["start"])
        mean, square = (tensors[name].to(device).clone() for name in ("exp_avg", "exp_avg_sq"))
        self._set_moments(mean, square, step - skipped)
        self.step, self.skipped = step, skipped
        self._checked = step - skipped


def _slices(sizes: Sequence[int]) -> list[slice]:
    """Where stretches of these sizes lie, one after the other."""
    ends = list(itertools.accumulate(sizes))
    return [slice(end - size, end) for size, end in zip(sizes, ends)]
