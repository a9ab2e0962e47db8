"""Memory and time of a run: settled before anything is loaded, probed before step 1, compared at the end."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, TypeVar

import torch

from lite_align.data.types import Tree
from lite_align.model import attention, flops, load, planner
from lite_align.model.backbone import Backbone
from lite_align.model.budget import Layout, Sizes, sizes
from lite_align.recipe import ModelOptions, Resolved, TrainOptions, resolve_auto
from lite_align.train import checkpoint
from lite_align.train.engine import Engine, Loss, Window
from lite_align.train.faults import Shortage, attempt
from lite_align.train.meter import Meter, Rate, measure_rate
from lite_align.view import View

AnyResolved = TypeVar("AnyResolved", bound=Resolved[Any])

SHARE = {"cpu": 0.5, "cuda": 0.6}
"""Share of the time that a device spends in matrix products at the speed they have alone: 0.3 to 0.6 on two cores of a
CPU with models of 2.6 to 60 M parameters; on a GPU it is what is asked for, not what was measured."""

COMPILING = 60.0
"""Seconds to compile the blocks for one role (an estimate for a GPU); each of the two roles is compiled."""

COMPILE_GAIN = 0.2
"""Share of the time that compiled blocks save (an estimate: 1.15 to 1.35 times as fast)."""


@dataclass(frozen=True)
class Amount:
    """What a run works on.

    Args:
        train: work of every tree of the training examples.
        held_out: work of every tree of the held-out examples.
        examples: number of training examples.
        batch_size: examples an optimiser step.
        steps: of the whole run.
        evaluations: passes over the held-out examples.
        has_reference: whether all trees go through the reference once.
        scores_mismatched: whether every step scores as many mismatched answers too, without gradients, and so does the
            reference.
        forward_passes: passes without gradients over an example for each one with gradients (sampling and scoring).
    """

    train: Sequence[flops.Work]
    held_out: Sequence[flops.Work]
    examples: int
    batch_size: int
    steps: int
    evaluations: int
    has_reference: bool
    scores_mismatched: bool = False
    forward_passes: float = 0.0

    @classmethod
    def of(
        cls,
        options: TrainOptions,
        train: Sequence[Tree],
        held_out: Sequence[Tree],
        *,
        examples: int,
        steps: int,
        has_reference: bool,
        scores_mismatched: bool = False,
        forward_passes: float = 0.0,
    ) -> "Amount":
        """What a run works on: its trees as they are computed, which hold so many training examples."""
        every = options.eval_steps
        assert every != "auto"
        evaluations = -(-steps // (every or steps))
        works = ([work_of(tree) for tree in train], [work_of(tree) for tree in held_out])
        flags = (has_reference, scores_mismatched, forward_passes)
        return cls(*works, examples, options.batch_size, steps, evaluations, *flags)

    @property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return max(work.tokens for work in (*self.train, *self.held_out))

    @property
    def window(self) -> int:
        """Tokens of a usual optimiser step, with a quarter more for unusual ones."""
        return int(1.25 * self.batch_size * flops.total(list(self.train)).tokens / self.examples)

    @property
    def epochs(self) -> float:
        """Passes over the training examples."""
        return self.steps * self.batch_size / self.examples


@dataclass(frozen=True)
class Machine:
    """A device and a model on it, as far as they are known without the weights.

    Attributes:
        device: of the run.
        free: bytes that the device can give.
        rate: speed of the device on products of the model's shapes.
        size: of the model.
        kernel: how attention is computed.
    """

    device: torch.device
    free: int
    rate: Rate
    size: Sizes
    kernel: attention.Kernel

    @classmethod
    def of(cls, options: ModelOptions, meter: Meter, on: torch.device) -> "Machine":
        """Look at the device, for a model with no "auto" left."""
        config = load.configuration(options)
        size, dtype = sizes(config), getattr(torch, options.dtype)
        rate = measure_rate(size, quantization=options.quantization, dtype=dtype, device=on)
        return cls(on, meter.free(), rate, size, attention.choose(config, on, dtype))


@dataclass(frozen=True)
class Forecast:
    """What a run will need.

    Attributes:
        plan: of the memory.
        machine: that it was made for.
        seconds: of the reference pass, the training and the evaluations.
        chosen: whether the number of recomputing blocks was left to the plan.
        longest: tokens of the longest example.
    """

    plan: planner.Plan
    machine: Machine
    seconds: float
    chosen: bool
    longest: int

    def record(self) -> dict[str, Any]:
        """For run.json."""
        layout = {**asdict(self.plan.layout), "dtype": str(self.plan.layout.dtype).removeprefix("torch.")}
        parts = {**asdict(self.plan.memory), "total": self.plan.memory.total, "free": self.machine.free}
        return {
            "seconds": round(self.seconds, 1),
            "operations_per_second": float(f"{self.machine.rate.operations:.3g}"),
            "attention": self.machine.kernel.reason,
            "layout": layout,
            "bytes": parts,
        }


def work_of(tree: Tree) -> flops.Work:
    """What a pass has to do with a tree."""
    scored = sum(tree.root_trained) + sum(sum(leaf.trained) for leaf in tree.leaves)
    return flops.Work.of(len(tree.root), [len(leaf.ids) for leaf in tree.leaves], scored)


# Before loading.


def settle(resolved: AnyResolved, amount: Amount, machine: Machine) -> tuple[AnyResolved, Forecast]:
    """Fill the settings that memory and time decide, and predict both.

    These are `train.tokens_per_microbatch`, `model.gradient_checkpointing` and the `speed` block; what the user has
    set stays, and the rest is chosen around it.
    """
    options, size, on = resolved.recipe, machine.size, machine.device
    start = Layout(
        options.model.quantization,
        options.lora.rank,
        0,
        dtype=getattr(torch, options.model.dtype),
        device=on.type,
        compiled=options.speed.compile == "on",
        masked=machine.kernel.kind is attention.KernelKind.MASKED,
        dropout=options.lora.dropout > 0,
    )
    wishes = _wishes(resolved, size)

    def planned(start: Layout) -> planner.Plan:
        return planner.plan(
            size, start, wishes, free=machine.free, longest=amount.longest, most=amount.window
        )

    plan = planned(start)
    needed = seconds(size, plan.layout, amount, machine.rate)
    if options.speed.compile == "auto" and pays(needed, on):
        plan = planned(replace(start, compiled=True))
        needed = seconds(size, plan.layout, amount, machine.rate) * (1 - COMPILE_GAIN) + 2 * COMPILING
    forecast = Forecast(plan, machine, needed, wishes.recomputed is None, amount.longest)
    return _filled(resolved, forecast), forecast


def _wishes(resolved: Resolved[Any], size: Sizes) -> planner.Wishes:
    """What the user has set."""
    recipe = resolved.recipe
    blocks: dict[object, int | None] = {"auto": None, "off": 0, "on": size.layers}
    switch: dict[str, bool | None] = {"auto": None, "off": False, "on": True}
    tokens, wish = recipe.train.tokens_per_microbatch, recipe.model.gradient_checkpointing
    return planner.Wishes(
        tokens=None if tokens == "auto" else tokens,
        recomputed=blocks.get(wish, wish),
        unnested=switch[recipe.speed.unnest_scales],
        offloaded=switch[recipe.speed.offload_embeddings],
    )


def _filled(resolved: AnyResolved, forecast: Forecast) -> AnyResolved:
    """The recipe with every setting of a plan."""
    layout, size = forecast.plan.layout, forecast.machine.size
    room = f"{gib(forecast.machine.free)} free"
    some = {0: "off", size.layers: "on"}
    cpu, gpu = layout.device == "cpu", f"a run of {duration(forecast.seconds)} on a GPU"
    compiling = "on a CPU it gains nothing" if cpu else gpu
    unnesting = "on a CPU it gains nothing" if cpu else room
    if layout.quantization != "nf4":
        unnesting = f"{layout.quantization} has no such scales"
    offloading = "it is there already" if cpu else "it is the head as well" if size.tied else room
    settings: dict[str, tuple[object, str]] = {
        "model.gradient_checkpointing": (some.get(layout.recomputed, layout.recomputed), room),
        "train.tokens_per_microbatch": (layout.tokens, room),
        "speed.compile": ("on" if layout.compiled else "off", compiling),
        "speed.unnest_scales": ("on" if layout.unnested else "off", unnesting),
        "speed.offload_embeddings": ("on" if layout.offloaded else "off", offloading),
    }
    for key, (value, reason) in settings.items():
        resolved = resolve_auto(resolved, key, value, reason)  # pyright: ignore[reportAssignmentType]
    return resolved


def pays(needed: float, on: torch.device) -> bool:
    """Whether compiled blocks save more time than compiling takes, in a run of so many seconds without them."""
    return on.type == "cuda" and needed * COMPILE_GAIN > 2 * COMPILING


def seconds(size: Sizes, layout: Layout, amount: Amount, rate: Rate) -> float:
    """Seconds of the reference pass, the training and the evaluations of a run."""
    rank = layout.rank
    train, held_out = flops.total(list(amount.train)), flops.total(list(amount.held_out))
    step = flops.forward(size, train, rank=rank) + flops.backward(size, train, rank=rank)
    step += flops.recomputation(size, train, rank=rank, blocks=layout.recomputed)
    operations = amount.epochs * step
    if amount.has_reference:
        operations += flops.forward(size, train + held_out, rank=0)
    operations += amount.evaluations * flops.forward(size, held_out, rank=rank)
    operations += amount.epochs * amount.forward_passes * flops.forward(size, train, rank=rank)
    if amount.scores_mismatched:
        operations += amount.epochs * (
            flops.forward(size, train, rank=rank) + flops.forward(size, train, rank=0)
        )
        operations += amount.evaluations * flops.forward(size, held_out, rank=rank)
    passes = max(amount.steps, amount.epochs * train.tokens / layout.tokens)
    once = (train.tokens + held_out.tokens) * amount.has_reference
    evaluated = amount.evaluations * held_out.tokens
    if amount.scores_mismatched:
        evaluated += 2 * amount.epochs * train.tokens + evaluated
    evaluated += amount.forward_passes * amount.epochs * train.tokens
    without_gradient = (once + evaluated) / layout.tokens
    unpacked = passes * (2 + layout.recomputed / size.layers) + without_gradient
    return operations / rate.operations / SHARE[layout.device] + unpacked * rate.unpacking


def show(forecast: Forecast, view: View) -> None:
    """What the run will need, part by part, and what to change where it does not fit."""
    plan, layout = forecast.plan, forecast.plan.layout
    total = plan.memory.total
    parts = " · ".join(f"{name} {gib(size)}" for name, size in asdict(plan.memory).items() if size)
    recomputed = f"{layout.recomputed} of {forecast.machine.size.layers} blocks recompute their activations"
    notes = [
        ("compiled blocks", layout.compiled),
        ("scales unpacked", layout.unnested),
        ("embedding on the host", layout.offloaded),
    ]
    view.section(
        "memory",
        f"about {gib(total)} of {gib(forecast.machine.free)} free (calculated)",
        parts,
        " · ".join([recomputed, *(text for text, holds in notes if holds)]),
        f"attention: {forecast.machine.kernel.reason}",
    )
    view.section(
        "time",
        f"about {duration(forecast.seconds)} (calculated: products of this model measured at "
        f"{forecast.machine.rate.operations / 1e12:.3g} TFLOP/s here)",
    )
    if plan.fits:
        return
    changes = planner.levers(forecast.machine.size, plan, longest=forecast.longest)
    told = [f"{lever.setting} needs {gib(lever.total)}" for lever in changes[:4]]
    view.warn(
        f"This needs about {gib(total)}, more than the {gib(plan.limit)} that are planned for. To fit: "
        f"{' · '.join([*told, 'a smaller model, see recipes/'])}."
    )


def gib(size: float) -> str:
    """Bytes for reading: 5.3 GiB, 412 MiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def duration(needed: float) -> str:
    """Seconds for reading: 48 s, 12 min, 3 h 20 min."""
    if needed < 100:
        return f"{needed:.0f} s"
    minutes = round(needed / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


# Before step 1.


class Probed(Protocol):
    """What a probe asks of a stage."""

    backbone: Backbone

    def window(self, step: int) -> Window[Any]:
        """The examples of an optimiser step."""
        ...

    def loss(self, batch: Any) -> Loss:
        """The loss of one micro-batch."""
        ...


def probe(stage: Probed, engine: Engine[Any], forecast: Forecast, meter: Meter) -> int | None:
    """Measure a forward and backward pass and set how many blocks recompute, where that was left open.

    Nothing is changed but that number, on which no result depends. Where the plan is far from the limit and no block
    recomputes, there is nothing to find out.

    Returns the measured peak in bytes, or None if nothing was measured.
    """
    plan, backbone = forecast.plan, stage.backbone
    far = plan.layout.recomputed == 0 and plan.memory.total < plan.limit / 2
    if not forecast.chosen or far:
        return None
    tensors, numbers = checkpoint.random_state()
    batch = max(stage.window(engine.step).batches, key=lambda batch: batch.tokens)
    meter.reset()

    def pass_once() -> None:
        engine.accelerator.backward(stage.loss(batch).total)

    outcome = attempt(pass_once)
    engine.parameters.gradient.zero_()
    checkpoint.restore_random_state(tensors, numbers)
    if isinstance(outcome, Shortage):
        backbone.recompute(len(backbone.blocks))
        return None
    peak = meter.peak()
    layout = replace(plan.layout, recomputed=backbone.blocks.recomputed)
    blocks = planner.blocks_to_recompute(
        forecast.machine.size, layout, peak=peak, limit=plan.limit, tokens=batch.tokens
    )
    backbone.recompute(blocks)
    return peak


# At the end.


class Watch:
    """Measures memory and time of what happens from now on.

    Args:
        meter: of the device.
        clock: seconds.
    """

    def __init__(self, meter: Meter, clock: Callable[[], float] = time.perf_counter) -> None:
        self._meter = meter
        self._clock = clock
        self._start = clock()
        self._peak = 0
        meter.reset()

    def keep(self, peak: int) -> None:
        """Take on a peak that somebody else read before he reset the meter."""
        self._peak = max(self._peak, peak)

    def read(self, forecast: Forecast, recomputed: int) -> dict[str, Any]:
        """The measured figures beside the predicted ones, for run.json."""
        peak = max(self._peak, self._meter.peak())
        needed = self._clock() - self._start
        predicted = forecast.plan.memory.total
        return {
            "bytes": {"peak": peak, "predicted": predicted},
            "seconds": {"spent": round(needed, 1), "predicted": round(forecast.seconds, 1)},
            "recomputed": recomputed,
        }


def compared(measured: dict[str, Any]) -> str:
    """Measured and predicted figures in one line."""
    memory, needed = measured["bytes"], measured["seconds"]
    return (
        f"{gib(memory['peak'])} of memory, predicted {gib(memory['predicted'])} · "
        f"{duration(needed['spent'])}, predicted {duration(needed['predicted'])}"
    )
