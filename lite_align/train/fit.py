"""The training loop, the same for every stage: window, update, log, evaluate, checkpoint, stop on a signal."""

import math
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from types import FrameType
from typing import Any, Protocol

from accelerate.utils import set_seed
from torch import Tensor

from lite_align.errors import Interrupted, TrainingStopped
from lite_align.train import checkpoint
from lite_align.train.engine import BatchT, Engine, Loss, Window
from lite_align.train.faults import Lowered, Size, TokenBudget, attempt
from lite_align.train.run import Run, library_versions
from lite_align.view import View

METER_STEPS = 20  # the moving-parameter meter is read once after this many updates (rule LA406)
METER_SHARE = 0.99  # bf16 adapters move less than 1 % at DPO learning rates, fp32 ones all


class Stage(Protocol[BatchT]):
    """What the loop asks of a stage.

    Attributes:
        name: of the stage.
        budget: tokens of a pass.
        steps_per_round: optimiser steps that belong together; the run is logged, evaluated and saved between rounds.
        rate_factor: of every learning rate.
        ended: why the run ends before its last step; empty while it goes on.
    """

    name: str
    budget: TokenBudget
    steps_per_round: int
    rate_factor: float
    ended: str

    def window(self, step: int) -> Window[BatchT]:
        """The examples of optimiser step `step`, a function of step and state alone, in passes within the budget."""
        ...

    def loss(self, batch: BatchT) -> Loss:
        """The loss of one micro-batch under the trained role."""
        ...

    def evaluate(self) -> dict[str, float]:
        """Held-out metrics, without the prefix `eval/`."""
        ...

    def epoch(self, step: int) -> float:
        """Epochs finished after `step` updates."""
        ...

    def measured(self) -> dict[str, float]:
        """What else belongs in the next row of metrics, since the last call."""
        ...

    def state(self) -> dict[str, Any]:
        """What a resumed run needs besides tensors and the step, as JSON values."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`."""
        ...

    def adapters(self) -> dict[str, dict[str, Tensor]]:
        """Tensors to save, by file name without suffix: `policy`, and others that a resumed run needs."""
        ...

    def load_adapters(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Put the tensors of `adapters()` back in place, exactly."""
        ...


@dataclass(frozen=True)
class Cadence:
    """Every how many steps to log, evaluate and save; how many checkpoints to keep; what to bind them to."""

    log: int
    evaluate: int
    save: int
    keep: int
    hashes: Mapping[str, str]


class Signals:
    """Turns the first SIGINT or SIGTERM into a request to stop; the second ends the process at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(128 + number)
        self.received = number

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def fit(
    stage: Stage[BatchT],
    engine: Engine[BatchT],
    run: Run,
    view: View,
    cadence: Cadence,
    *,
    after_step: Callable[[int], None] = lambda step: None,
) -> None:
    """Train from `engine.step` to the end, leaving metrics, evaluations and checkpoints in the run folder.

    Raises:
        Interrupted: a signal came; the state after the current step was saved.
        TrainingStopped: the loss is not finite or the adapter does not move; the last checkpoint is intact.
        TooLittleMemory: memory runs out with one example at a time; the last checkpoint is intact.
    """
    total, together = engine.total_steps, stage.steps_per_round
    if engine.step == 0:  # so that a run that starts over before its first checkpoint draws the same numbers
        set_seed(engine.options.seed)
    clock = Clock()
    with Signals() as signals, view.bar(stage.name, total, "steps", done=engine.step, speed=False) as bar:
        while engine.step < total and not stage.ended:
            # 1. One exact update over the examples of this step.
            engine.rate_factor = stage.rate_factor
            rate = engine.rate
            window = make_step(stage, engine)
            for batch in window.batches:
                clock.count(len(batch.keys), batch.tokens)
            step = engine.step
            last = step == total
            # 2. What happened, to the metrics file and the progress line.
            if due(step, cadence.log, together) or last:
                row = log_row(engine, run, stage, rate, clock)
                bar.advance(0, **progress_fields(row))
            bar.advance(1)
            if engine.made == METER_STEPS and window.batches:
                check_meter(engine)
            # 3. Held-out metrics before the checkpoint, so that a resumed run does not repeat them.
            if due(step, cadence.evaluate, together) or last:
                engine.check()
                clock.pause()
                held_out = {f"eval/{name}": value for name, value in stage.evaluate().items()}
                run.log_metrics({"step": step, "epoch": stage.epoch(step), **held_out})
                clock.go_on()
            # 4. State to disk: on the cadence, at the end, and when somebody asks the run to stop.
            stop = (
                step % together == 0 and signals.received
            )  # read once: what comes later waits for the next save
            if due(step, cadence.save, together) or last or stage.ended or stop:
                engine.check()
                clock.pause()
                save(stage, engine, run, cadence)
                clock.go_on()
            after_step(step)
            if stop and step < total:
                raise Interrupted(
                    f"Stopped after step {step} of {total}; everything up to it is saved.",
                    signal_number=stop,
                    remedy="Continue with the same command and --resume.",
                )


def due(step: int, every: int, together: int = 1) -> bool:
    """Whether what is done every so many steps is due after `step`, if it can be done between rounds only."""
    return step % together == 0 and step // every > (step - together) // every


def make_step(stage: Stage[BatchT], engine: Engine[BatchT]) -> Window[BatchT]:
    """Make one update; where memory runs out, the same one again: same examples and random numbers, smaller passes.

    A window without micro-batches makes no update. Returns the window as it was made.

    Raises:
        TooLittleMemory: each pass held a single example.
    """
    tensors, numbers = checkpoint.random_state()
    while True:
        window = stage.window(engine.step)
        if not window.batches:
            engine.skip()
            return window
        shortage = attempt(partial(engine.update, window, stage.loss))
        if shortage is None:
            return window
        sizes = [Size(batch.tokens, len(batch.keys)) for batch in window.batches]
        stage.budget.lower(shortage, f"the {engine.phase} pass of step {engine.step + 1}", sizes)
        checkpoint.restore_random_state(tensors, numbers)


def tell_lowered(run: Run, view: View, lowered: Lowered) -> None:
    """Leave a lowered token budget in run.json, in the log and on the screen."""
    run.event("out_of_memory", str(lowered), asdict(lowered))
    view.warn(str(lowered))


class Clock:
    """Examples and tokens per second of training alone, without evaluation and saving.

    It is read after the host has waited for the device: in the middle of steps the host is ahead of it.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._examples = self._tokens = 0
        self._since = time.perf_counter()

    def count(self, examples: int, tokens: int) -> None:
        """Count examples that were trained on, and their tokens."""
        self._examples += examples
        self._tokens += tokens

    def pause(self) -> None:
        """Stop counting time."""
        self._seconds += time.perf_counter() - self._since

    def go_on(self) -> None:
        """Count time again."""
        self._since = time.perf_counter()

    def speeds(self) -> dict[str, float]:
        """Rates since the last call."""
        self.pause()
        self.go_on()
        seconds = max(self._seconds, 1e-9)
        rates = {
            "examples_per_second": self._examples / seconds,
            "tokens_per_second": self._tokens / seconds,
        }
        self._seconds, self._examples, self._tokens = 0.0, 0, 0
        return rates


def log_row(
    engine: Engine[BatchT], run: Run, stage: Stage[BatchT], rate: float, clock: Clock
) -> dict[str, float]:
    """Write one row of metrics.jsonl and return it; a value that is not finite stops the run there."""
    row = {
        "step": engine.step,
        "epoch": stage.epoch(engine.step),
        **engine.logged(),  # waits for the device, so the clock comes after it
        **stage.measured(),
        "learning_rate": rate,
        **clock.speeds(),
        "moved": engine.parameters.moved(),
    }
    run.log_metrics(row)
    return row


def progress_fields(row: Mapping[str, float]) -> dict[str, float | str]:
    """The few numbers that stand beside the progress bar."""
    shown = {
        "loss": "loss",
        "rewards/accuracies": "acc",
        "rewards/margins": "margin",
        "mean_token_accuracy": "acc",
        "objective/reward": "reward",
        "objective/kl": "kl",
        "objective/length": "tokens",
    }
    fields: dict[str, float | str] = {short: row[name] for name, short in shown.items() if name in row}
    apart = [row.get(f"speed/{what}_tokens_per_second") for what in ("generated", "learned")]
    if apart[0] is not None and apart[1] is not None:
        fields["speed"] = f"{apart[0]:,.0f} tok/s sampled  {apart[1]:,.0f} learned"
    else:
        fields["speed"] = f"{row['examples_per_second']:.3g} ex/s  {row['tokens_per_second']:,.0f} tok/s"
    return fields


def check_meter(engine: Engine[BatchT]) -> None:
    """Stop a run whose adapter does not move.

    Raises:
        TrainingStopped: after `METER_STEPS` updates less than 99 % of the trainable elements have changed.
    """
    engine.check()
    share = engine.parameters.moved()
    if share < METER_SHARE:
        raise TrainingStopped(
            f"Only {share:.1%} of the adapter's elements moved in {METER_STEPS} steps.",
            details=engine.parameters.still(gradient=False)[:8],
            remedy="Raise train.learning_rate; adapters must be float32.",
        )


def save(stage: Stage[BatchT], engine: Engine[BatchT], run: Run, cadence: Cadence) -> None:
    """Write a checkpoint from which `restore` continues bit-identically.

    Raises:
        TrainingStopped: a metric of a step that is not logged yet is not finite; nothing was written.
    """
    metrics = engine.sums.state()
    if broken := [name for name, value in metrics["sums"].items() if not math.isfinite(value)]:
        raise TrainingStopped(
            f"A metric is not finite up to step {engine.step}.",
            details=broken,
            remedy="Lower train.learning_rate, or look at these rows; the last checkpoint is intact.",
        )
    random_tensors, random_numbers = checkpoint.random_state()
    checkpoint.save(
        run.path,
        engine.step,
        tensors={**stage.adapters(), "optimizer": engine.state(), "random": random_tensors},
        state={
            "random": random_numbers,
            "metrics": metrics,
            "budget": stage.budget.state(),
            "stage": stage.state(),
            "skipped": engine.skipped,
        },
        keep=cadence.keep,
        hashes=cadence.hashes,
        versions=library_versions(),
    )


def restore(stage: Stage[BatchT], engine: Engine[BatchT], run: Run) -> bool:
    """Continue from the newest good checkpoint: adapters, moments, random states, step; later metrics rows go.

    Returns False, with the metrics emptied, if the run was stopped before its first checkpoint.
    """
    expected = {**stage.adapters(), "optimizer": engine.state(), "random": checkpoint.random_state()[0]}
    loaded = checkpoint.latest(run.path, run.log.warning, expected=expected)
    if loaded is None:
        run.truncate_metrics(-1)  # what was measured at step 0 is measured again
        return False
    # Checkpoints from before rounds have neither skipped steps nor a state of the stage.
    engine.load_state(loaded.tensors["optimizer"], loaded.step, loaded.state.get("skipped", 0))
    stage.load_state(loaded.state.get("stage", {}))
    stage.load_adapters({k: v for k, v in loaded.tensors.items() if k not in ("optimizer", "random")})
    engine.sums.load_state(loaded.state["metrics"])
    stage.budget.load_state(loaded.state["budget"])
    if stage.budget.tokens < stage.budget.planned:
        run.log.warning("passes hold at most %d tokens, as memory ran out before", stage.budget.tokens)
    numbers = loaded.state["random"]
    assert isinstance(numbers, dict)
    for warning in checkpoint.restore_random_state(loaded.tensors["random"], numbers):
        run.log.warning("%s", warning)
    run.truncate_metrics(engine.step)
    return True
