"""fit: a toy stage (one small layer with dropout, no transformer) under the real engine, run folder and loop."""

import errno
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lite_align.errors import DiskFull, Interrupted, TooLittleMemory, TrainingStopped
from lite_align.recipe import TrainOptions
from lite_align.train import checkpoint, files
from lite_align.train.engine import Engine, Loss, Window
from lite_align.train.faults import Lowered, TokenBudget
from lite_align.train.fit import METER_STEPS, Cadence, Clock, due, fit, progress_fields, restore, tell_lowered
from lite_align.train.record import read_metrics, read_record
from lite_align.train.run import Run
from lite_align.view import View

SPEEDS = {"examples_per_second", "tokens_per_second"}
ROWS, BATCH = 10, 4  # three steps an epoch, the last of two rows


@dataclass(frozen=True)
class Rows:
    """A micro-batch: numbers of rows."""

    keys: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return 5 * len(self.keys)


@dataclass
class Toy:
    """Dropout, then one linear layer; squared error. `broken` maps a step (from 0) to what its loss is times."""

    scale: float = 1.0
    dropout: float = 0.5
    broken: Mapping[int, float] = field(default_factory=dict)
    broken_metric: int | None = None
    name: str = "toy"
    events: list[str] = field(default_factory=list)
    budget: TokenBudget = field(default_factory=lambda: TokenBudget(10))
    steps_per_round: int = 1
    rate_factor: float = 1.0
    ended: str = ""
    kept: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(ROWS, 6, generator=generator)
        self.targets = self.inputs.sum(1)
        self.a = nn.Parameter(torch.randn(4, 6, generator=generator) * self.scale)
        self.b = nn.Parameter(torch.ones(4) * self.scale)
        self.noise = nn.Dropout(self.dropout)

    def window(self, step: int) -> Window[Rows]:
        self.step = step
        epoch, index = divmod(step, -(-ROWS // BATCH))
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(epoch)).tolist()
        keys = order[index * BATCH : (index + 1) * BATCH]
        rows = max(1, self.budget.tokens // 5)
        return Window([Rows(tuple(keys[i : i + rows])) for i in range(0, len(keys), rows)], float(len(keys)))

    def loss(self, batch: Rows) -> Loss:
        rows = list(batch.keys)
        error = ((self.noise(self.inputs[rows]) @ self.a.T @ self.b) - self.targets[rows]) ** 2
        total = error.sum() * self.broken.get(self.step, 1.0)
        logged = total.detach() * (float("nan") if self.step == self.broken_metric else 1.0)
        return Loss(total, {"loss": logged, "rewards/margins": error.detach().max()}, len(rows))

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        self.events.append(f"evaluate {self.step + 1}")
        return {"loss": float(((self.inputs @ self.a.T @ self.b - self.targets) ** 2).mean())}

    def epoch(self, step: int) -> float:
        return step / -(-ROWS // BATCH)

    def measured(self) -> dict[str, float]:
        return {}

    def state(self) -> dict[str, Any]:
        return self.kept

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.kept = dict(state)

    def adapters(self) -> dict[str, dict[str, Tensor]]:
        return {"policy": {"a": self.a.detach().clone(), "b": self.b.detach().clone()}}

    @torch.no_grad()
    def load_adapters(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.a.copy_(tensors["policy"]["a"])
        self.b.copy_(tensors["policy"]["b"])


@dataclass
class Training:
    """A run folder with its toy and its engine; `go` is what a process does."""

    path: Path
    toy: Toy
    engine: Engine[Rows]
    cadence: Cadence

    def go(self, after_step: Callable[[int], None] = lambda step: None) -> None:
        resumed = self.path.exists()
        opened = Run.resume(self.path) if resumed else Run.create(stage="dpo", recipe={}, out=self.path)
        with opened as run:
            if resumed:
                restore(self.toy, self.engine, run)
            fit(self.toy, self.engine, run, View(quiet=True), self.cadence, after_step=after_step)

    def metrics(self) -> list[dict[str, float]]:
        return [{k: v for k, v in row.items() if k not in SPEEDS} for row in read_metrics(self.path)]

    def newest(self) -> checkpoint.Loaded:
        loaded = checkpoint.latest(self.path, pytest.fail)
        assert loaded is not None
        return loaded

    def assert_equals(self, other: "Training") -> None:
        ours, theirs = self.newest(), other.newest()
        assert ours.step == theirs.step
        assert ours.state == theirs.state, "Python's and numpy's generators, sums between two logged rows"
        assert ours.tensors.keys() == theirs.tensors.keys() == {"policy", "optimizer", "random"}
        for part, tensors in ours.tensors.items():
            assert tensors.keys() == theirs.tensors[part].keys()
            assert [n for n in tensors if not torch.equal(tensors[n], theirs.tensors[part][n])] == [], part
        assert self.metrics() == other.metrics()


def training(
    path: Path,
    *,
    steps: int = 9,
    toy: Toy | None = None,
    log: int = 1,
    evaluate: int = 3,
    save: int = 2,
    **options: Any,
) -> Training:
    toy = toy or Toy()
    torch.seed()  # whatever this process drew before must not matter
    settings = TrainOptions(**{"learning_rate": 0.05, "warmup": 0.3, "max_grad_norm": 1.0, **options})
    named = [("lora_A", toy.a), ("lora_B", toy.b)]
    engine: Engine[Rows] = Engine(Accelerator(cpu=True), named, settings, steps)
    return Training(path, toy, engine, Cadence(log, evaluate, save, 2, {"data": "1234"}))


class Stopped(Exception):
    """Stands for whatever ends a process in the middle."""


def crash_after(step: int) -> Callable[[int], None]:
    def after_step(now: int) -> None:
        if now == step:
            raise Stopped

    return after_step


def signal_after(step: int, number: int) -> Callable[[int], None]:
    def after_step(now: int) -> None:
        if now == step:
            os.kill(os.getpid(), number)

    return after_step


# Order and cadence.


def test_a_step_is_logged_then_evaluated_then_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = training(tmp_path / "run", steps=7, log=2, evaluate=3, save=2)
    events = one.toy.events
    real_log, real_save = Run.log_metrics, checkpoint.save

    def log(run: Run, row: Mapping[str, Any]) -> None:
        if "loss" in row:
            events.append(f"log {row['step']}")
        real_log(run, row)

    def save(folder: Path, step: int, *args: Any, **keywords: Any) -> Path:
        events.append(f"save {step}")
        return real_save(folder, step, *args, **keywords)

    monkeypatch.setattr(Run, "log_metrics", log)
    monkeypatch.setattr(checkpoint, "save", save)
    one.go(lambda step: events.append(f"after {step}"))
    assert " · ".join(events) == (
        "after 1 · log 2 · save 2 · after 2 · evaluate 3 · after 3 · log 4 · save 4 · after 4 · after 5 · "
        "log 6 · evaluate 6 · save 6 · after 6 · log 7 · evaluate 7 · save 7 · after 7"
    )
    rows = one.metrics()
    assert [row["step"] for row in rows] == [2, 3, 4, 6, 6, 7, 7]
    assert [row["epoch"] for row in rows] == [row["step"] / 3 for row in rows]
    assert {"eval/loss"} < rows[1].keys()
    assert {"loss", "rewards/margins", "grad_norm", "learning_rate", "moved"} < rows[0].keys()
    assert checkpoint.steps(one.path) == [7, 6], "two are kept"
    assert one.newest().manifest["hashes"] == {"data": "1234"}


def test_a_logged_row_is_the_mean_since_the_row_before(tmp_path: Path) -> None:
    every, third = training(tmp_path / "every", steps=3), training(tmp_path / "third", steps=3, log=3)
    every.go()
    third.go()
    rows = [row for row in every.metrics() if "loss" in row]
    sizes = (4, 4, 2)  # rows of each step
    expected = sum(row["loss"] * size for row, size in zip(rows, sizes)) / sum(sizes)
    assert third.metrics()[0]["loss"] == pytest.approx(expected, rel=1e-12)
    assert rows[0]["learning_rate"] == pytest.approx(0.05), "the rate that the logged step was made with"
    speeds = read_metrics(third.path)[0]
    assert speeds["tokens_per_second"] == pytest.approx(5 * speeds["examples_per_second"])


# Stopped and resumed.


@pytest.mark.parametrize(("log", "save"), [(1, 1), (1, 2), (4, 3), (9, 1)])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path: Path, log: int, save: int) -> None:
    """With dropout, before the first checkpoint and in every epoch, also between two logged rows."""
    whole = training(tmp_path / "whole", log=log, save=save)
    whole.go()
    for step in range(1, 10):
        path = tmp_path / str(step)
        with pytest.raises(Stopped):
            training(path, log=log, save=save).go(crash_after(step))
        again = training(path, log=log, save=save)
        again.go()
        again.assert_equals(whole)


def test_dropout_is_on_in_those_runs(tmp_path: Path) -> None:
    """The test above would also pass without randomness, so randomness must change the result."""
    noisy, plain = training(tmp_path / "noisy"), training(tmp_path / "plain", toy=Toy(dropout=0.0))
    noisy.go()
    plain.go()
    assert not torch.equal(noisy.toy.a, plain.toy.a)


def test_another_seed_draws_other_numbers(tmp_path: Path) -> None:
    one, other = training(tmp_path / "one"), training(tmp_path / "other", seed=43)
    one.go()
    other.go()
    assert not torch.equal(one.toy.a, other.toy.a)


def test_the_rate_of_now_is_used_with_the_moments_of_before(tmp_path: Path) -> None:
    """A learning rate changed on purpose acts: with rate 1e-30 nothing moves any more."""
    with pytest.raises(Stopped):
        training(tmp_path / "run").go(crash_after(4))
    slow = training(tmp_path / "run", learning_rate=1e-30)
    before = slow.newest()
    slow.go()
    after = slow.newest()
    assert torch.equal(after.tensors["policy"]["a"], before.tensors["policy"]["a"])
    assert not torch.equal(after.tensors["optimizer"]["exp_avg"], before.tensors["optimizer"]["exp_avg"])
    assert slow.metrics()[-2]["moved"] == 1.0, "against the start of the run, not of the process"


# Signals.


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_and_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    stopped = training(tmp_path / "run", save=100)
    real_loss, sent = stopped.toy.loss, []

    def loss(batch: Rows) -> Loss:
        if stopped.toy.step == 3 and not sent:
            sent.append(number)
            os.kill(os.getpid(), number)  # in the middle of step 4
        return real_loss(batch)

    monkeypatch.setattr(stopped.toy, "loss", loss)
    with pytest.raises(Interrupted, match="after step 4 of 9") as told:
        stopped.go()
    assert told.value.exit_code == code
    assert "--resume" in told.value.remedy
    assert checkpoint.steps(stopped.path) == [4]
    assert read_record(stopped.path)["status"] == "interrupted"
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    whole, again = training(tmp_path / "whole", save=100), training(stopped.path, save=100)
    whole.go()
    again.go()
    again.assert_equals(whole)


def test_a_signal_that_comes_after_the_save_waits_for_the_next_one(tmp_path: Path) -> None:
    """What the message says to be saved must be saved: nothing is claimed of a step without a checkpoint."""
    stopped = training(tmp_path / "run", save=100)
    with pytest.raises(Interrupted, match="after step 3 of 9"):
        stopped.go(signal_after(2, signal.SIGTERM))
    assert checkpoint.steps(stopped.path) == [3]


def test_a_signal_in_the_last_step_lets_the_run_end(tmp_path: Path) -> None:
    one = training(tmp_path / "run", steps=3)
    one.go(signal_after(2, signal.SIGINT))
    assert checkpoint.steps(one.path)[0] == 3


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("numbers", [(signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)])
def test_the_second_signal_ends_the_process_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbers: Sequence[int]
) -> None:
    one = training(tmp_path / "run", toy=Toy(dropout=0.0))
    with pytest.raises(Stopped):
        one.go(crash_after(2))
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            again = training(one.path, toy=Toy(dropout=0.0))

            def evaluate() -> dict[str, float]:
                for number in numbers:
                    os.kill(os.getpid(), number)
                return {}  # not reached

            monkeypatch.setattr(again.toy, "evaluate", evaluate)
            again.go()
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + numbers[1]
    assert one.newest().step == 2, "the last checkpoint stays good"
    whole, again = (
        training(tmp_path / "whole", toy=Toy(dropout=0.0)),
        training(one.path, toy=Toy(dropout=0.0)),
    )
    whole.go()
    again.go()
    again.assert_equals(whole)


# Not finite, not moving.


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, value: float) -> None:
    """1e38 is finite itself; its gradient is not."""
    one = training(tmp_path / "run", toy=Toy(broken={4: value}), save=1)
    with pytest.raises(TrainingStopped, match="gradient of step 5 is not finite") as told:
        one.go()
    assert told.value.exit_code == 1
    keys = {key for batch in one.toy.window(4).batches for key in batch.keys}
    assert set(map(int, told.value.details[0].rpartition(": ")[2].split(", "))) == keys
    good = one.newest()
    assert good.step == 4
    assert all(bool(tensor.isfinite().all()) for part in good.tensors.values() for tensor in part.values())
    assert torch.equal(good.tensors["policy"]["a"], one.toy.a), "the step was not made"
    assert max(row["step"] for row in one.metrics()) == 4
    # The cause is mended: the run goes on and ends as one that never had it.
    whole, again = training(tmp_path / "whole", save=1), training(tmp_path / "run", save=1)
    whole.go()
    again.go()
    again.assert_equals(whole)


@pytest.mark.parametrize(("log", "evaluate", "save"), [(9, 3, 9), (9, 9, 2), (2, 9, 9), (9, 9, 9)])
def test_nothing_is_evaluated_logged_or_saved_after_a_gradient_that_is_not_finite(
    tmp_path: Path, log: int, evaluate: int, save: int
) -> None:
    """However late the host asks, it hears of step 5 first, and the adapter is that of step 4."""
    one = training(tmp_path / "run", toy=Toy(broken={4: float("nan")}), log=log, evaluate=evaluate, save=save)
    with pytest.raises(TrainingStopped, match="gradient of step 5 is not finite"):
        one.go()
    assert one.toy.events in ([], ["evaluate 3"])
    assert all(step <= 4 for step in checkpoint.steps(one.path))
    assert all(row["step"] <= 4 for row in one.metrics())
    known = training(tmp_path / "known", steps=9)
    with pytest.raises(Stopped):
        known.go(crash_after(4))
    assert torch.equal(one.toy.a, known.toy.a)
    assert one.engine.step == 4


@pytest.mark.parametrize("log", [1, 2, 9])
def test_a_metric_that_is_not_finite_is_neither_logged_nor_saved(tmp_path: Path, log: int) -> None:
    one = training(tmp_path / "run", toy=Toy(broken_metric=2), log=log, save=2)
    with pytest.raises(TrainingStopped, match="not finite") as told:
        one.go()
    assert "loss" in told.value.details[0]
    assert checkpoint.steps(one.path) == [2]
    assert "NaN" not in (one.path / "metrics.jsonl").read_text()


def test_an_evaluation_that_is_not_finite_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = training(tmp_path / "run", save=1)
    monkeypatch.setattr(one.toy, "evaluate", lambda: {"loss": float("nan")})
    with pytest.raises(TrainingStopped, match="metric of step 3 is not finite"):
        one.go()
    assert checkpoint.steps(one.path) == [2, 1]


def test_an_adapter_that_does_not_move_stops_the_run(tmp_path: Path) -> None:
    """Steps below the rounding of the weights, as bf16 adapters have at DPO learning rates, change nothing."""
    stuck = training(tmp_path / "run", steps=25, toy=Toy(scale=1.0), learning_rate=1e-9, warmup=0.0, save=8)
    with pytest.raises(TrainingStopped, match=f"moved in {METER_STEPS} steps") as told:
        stuck.go()
    assert {"lora_A", "lora_B"} & set(told.value.details)
    assert max(row["step"] for row in stuck.metrics()) == METER_STEPS
    moving = training(tmp_path / "moving", steps=25, warmup=0.0)
    moving.go()
    assert moving.metrics()[-2]["moved"] == 1.0


def test_the_meter_is_read_in_a_resumed_run_too(tmp_path: Path) -> None:
    def stuck() -> Training:
        return training(tmp_path / "run", steps=25, learning_rate=1e-9, warmup=0.0, save=8)

    with pytest.raises(Stopped):
        stuck().go(crash_after(17))
    with pytest.raises(TrainingStopped, match=f"moved in {METER_STEPS} steps"):
        stuck().go()


# Memory.


class Fails(torch.autograd.Function):
    """The identity; its backward pass runs out of memory."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@dataclass
class Short(Toy):
    """Runs out of memory in a pass (number of the pass from the start of the run, phase) as often as it is listed."""

    struck: Sequence[tuple[int, str]] = ()
    passes: int = 0
    seen: list[tuple[int, tuple[int, ...], Tensor]] = field(default_factory=list)

    def loss(self, batch: Rows) -> Loss:
        number, self.passes = self.passes, self.passes + 1
        self.seen.append((self.step, batch.keys, torch.get_rng_state()))
        if (number, "forward") in self.struck:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        found = super().loss(batch)
        if (number, "backward") in self.struck:
            return Loss(Fails.apply(found.total), found.sums, found.count)  # type: ignore[arg-type]
        return found


def short(
    path: Path, *struck: tuple[int, str], tokens: int = 10, dropout: float = 0.0, **more: Any
) -> Training:
    toy = Short(dropout=dropout, struck=struck)
    one = training(path, toy=toy, **more)
    toy.budget = TokenBudget(tokens, tell=lambda lowered: toy.events.append(lowered.where))
    return one


@pytest.mark.parametrize("phase", ["forward", "backward"])
@pytest.mark.parametrize("number", range(5))  # 2 passes of 2 rows in steps 1 and 2, then one
def test_memory_that_runs_out_in_any_pass_changes_no_update(tmp_path: Path, number: int, phase: str) -> None:
    plain, struck = short(tmp_path / "plain", steps=4), short(tmp_path / "struck", (number, phase), steps=4)
    plain.go()
    struck.go()
    step = number // 2
    assert struck.toy.events[0] == f"the {phase} pass of step {step + 1}", "the fault fired"
    seen = [keys for at, keys, _ in struck.toy.seen if at == step]  # type: ignore[attr-defined]
    failed, made = seen[: number % 2 + 1], seen[number % 2 + 1 :]
    assert {len(keys) for keys in failed} == {2}
    assert {len(keys) for keys in made} == {1}
    expected = [keys for at, keys, _ in plain.toy.seen if at == step]  # type: ignore[attr-defined]
    assert sorted(chain(*made)) == sorted(chain(*expected)), "the same examples"
    torch.testing.assert_close(struck.toy.a, plain.toy.a, rtol=1e-6, atol=0)
    torch.testing.assert_close(struck.toy.b, plain.toy.b, rtol=1e-6, atol=0)
    for ours, theirs in zip(struck.metrics(), plain.metrics(), strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - {"rewards/margins"}:  # the toy logs the largest of each pass
            assert ours[name] == pytest.approx(theirs[name], rel=1e-6), name


def test_memory_may_run_out_again_and_random_numbers_start_again(tmp_path: Path) -> None:
    one = short(tmp_path / "run", (1, "backward"), (2, "forward"), tokens=20, dropout=0.5, steps=2, save=1)
    one.go()
    seen = one.toy.seen  # type: ignore[attr-defined]
    # Step 1 in one pass of four rows; step 2 in one of four, in two of two, in four of one.
    assert [len(keys) for _, keys, _ in seen] == [4, 4, 2, 1, 1, 1, 1]
    assert torch.equal(seen[1][2], seen[2][2])
    assert torch.equal(seen[1][2], seen[3][2])
    assert not torch.equal(seen[3][2], seen[4][2]), "dropout draws numbers"
    assert one.toy.budget.tokens == 5


def test_a_resumed_run_goes_on_with_the_lowered_budget(tmp_path: Path) -> None:
    whole, stopped = (short(tmp_path / name, (3, "backward"), dropout=0.5) for name in ("whole", "stopped"))
    whole.go()
    with pytest.raises(Stopped):
        stopped.go(crash_after(4))
    again = short(stopped.path, dropout=0.5)
    again.go()
    assert {len(keys) for _, keys, _ in again.toy.seen} == {1}  # type: ignore[attr-defined]
    again.assert_equals(whole)
    assert "memory ran out before" in (again.path / "log.txt").read_text()


def test_memory_that_is_too_small_for_one_example_stops_the_run(tmp_path: Path) -> None:
    one = short(tmp_path / "run", *((n, "backward") for n in range(4, 20)), save=1)
    with pytest.raises(TooLittleMemory, match="the backward pass of step 3") as told:
        one.go()
    assert [len(keys) for step, keys, _ in one.toy.seen if step == 2] == [2, 1]  # type: ignore[attr-defined]
    assert "5 tokens" in told.value.details[0]
    assert one.newest().step == 2
    assert torch.equal(one.newest().tensors["policy"]["a"], one.toy.a), "the step was not made"


def test_a_lowered_budget_is_in_the_record_the_log_and_on_the_screen(tmp_path: Path) -> None:
    screen = io.StringIO()
    with Run.create(stage="dpo", recipe={}, out=tmp_path / "run") as run:
        tell_lowered(
            run, View(file=screen, errors=screen), Lowered("the evaluation", 4096, 1000, "no memory")
        )
    (event,) = read_record(tmp_path / "run")["events"]
    assert event["kind"] == "out_of_memory"
    assert (event["where"], event["before"], event["after"]) == ("the evaluation", 4096, 1000)
    for text in (
        event["text"],
        (tmp_path / "run" / "log.txt").read_text(),
        " ".join(screen.getvalue().split()),
    ):
        assert "Memory ran out in the evaluation" in text


def test_a_lost_device_is_not_saved_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = training(tmp_path / "run", save=2)
    real = one.toy.loss

    def loss(batch: Rows) -> Loss:
        if one.toy.step == 3:
            raise torch.AcceleratorError("CUDA error: unspecified launch failure")
        return real(batch)

    monkeypatch.setattr(one.toy, "loss", loss)
    with pytest.raises(torch.AcceleratorError):
        one.go()
    assert checkpoint.steps(one.path) == [2]
    whole, again = training(tmp_path / "whole"), training(one.path)
    whole.go()
    again.go()
    again.assert_equals(whole)


# Rounds.


@given(every=st.integers(1, 12), together=st.integers(1, 7), rounds=st.integers(1, 12))
def test_what_is_due_is_due_between_rounds_and_often_enough(every: int, together: int, rounds: int) -> None:
    """At ends of rounds only, in the first that ends at or after each multiple: in all, every max(n, k) steps."""
    steps = range(1, rounds * together + 1)
    found = [step for step in steps if due(step, every, together)]
    assert all(step % together == 0 for step in found)
    assert set(found) == {-(-n // together) * together for n in range(every, steps[-1] + 1, every)}
    assert len(found) == steps[-1] // max(every, together)


@dataclass
class Rounds(Toy):
    """Rounds of three steps; some windows are empty; evaluations may lower the rate, and end the run."""

    steps_per_round: int = 3
    empty: frozenset[int] = frozenset()
    lower: bool = False
    ends_at: int = 0

    def window(self, step: int) -> Window[Rows]:
        full = super().window(step)
        return Window([], 0.0) if step in self.empty else full

    def evaluate(self) -> dict[str, float]:
        if self.lower:
            self.rate_factor *= 0.5
        if self.step + 1 == self.ends_at:
            self.ended = "the answers became too long"
        return super().evaluate()

    def state(self) -> dict[str, Any]:
        return {"rate_factor": self.rate_factor, "ended": self.ended}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.rate_factor, self.ended = state["rate_factor"], state["ended"]


def test_a_run_in_rounds_is_logged_evaluated_and_saved_between_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds end at 3, 6, 9 and, cut short by the end of the run, at 11: evaluated every 4 steps, saved every 5."""
    saved: list[int] = []
    real_save = checkpoint.save

    def save(folder: Path, step: int, *args: Any, **keywords: Any) -> Path:
        saved.append(step)
        return real_save(folder, step, *args, **keywords)

    monkeypatch.setattr(checkpoint, "save", save)
    one = training(tmp_path / "run", toy=Rounds(), steps=11, log=2, evaluate=4, save=5)
    one.go()
    assert [row["step"] for row in one.metrics() if "loss" in row] == [3, 6, 9, 11]
    assert [row["step"] for row in one.metrics() if "eval/loss" in row] == [6, 9, 11]
    assert one.toy.events == ["evaluate 6", "evaluate 9", "evaluate 11"]
    assert saved == [6, 11]


def test_a_signal_within_a_round_saves_at_its_end(tmp_path: Path) -> None:
    whole = training(tmp_path / "whole", toy=Rounds(), save=100)
    whole.go()
    stopped = training(tmp_path / "run", toy=Rounds(), save=100)
    with pytest.raises(Interrupted, match="after step 6 of 9") as told:
        stopped.go(signal_after(4, signal.SIGTERM))
    assert told.value.exit_code == 143
    assert checkpoint.steps(stopped.path) == [6]
    again = training(stopped.path, toy=Rounds(), save=100)
    again.go()
    again.assert_equals(whole)


EMPTY = {
    "ends of rounds": frozenset({1, 2, 5, 8}),
    "a whole round": frozenset({3, 4, 5}),
    "the first round": frozenset({0, 1, 2}),
    "all but one": frozenset(range(9)) - {4},
}


@pytest.mark.parametrize("log", [1, 6])
@pytest.mark.parametrize("name", EMPTY)
def test_windows_without_batches_are_skipped_and_survive_a_resume(
    tmp_path: Path, name: str, log: int
) -> None:
    def toy() -> Rounds:
        return Rounds(empty=EMPTY[name], lower=True)

    whole = training(tmp_path / "whole", toy=toy(), log=log, save=1)
    whole.go()
    assert whole.newest().state["skipped"] == whole.engine.skipped == len(EMPTY[name])
    assert whole.engine.made == 9 - len(EMPTY[name])
    for step in (2, 5, 8):  # one in each round, after its last save
        path = tmp_path / str(step)
        with pytest.raises(Stopped):
            training(path, toy=toy(), log=log, save=1).go(crash_after(step))
        again = training(path, toy=toy(), log=log, save=1)
        again.go()
        again.assert_equals(whole)


def test_a_row_of_a_round_without_an_update_has_no_loss_and_no_norm(tmp_path: Path) -> None:
    one = training(tmp_path / "run", toy=Rounds(empty=EMPTY["a whole round"]), log=1, evaluate=9)
    one.go()
    rows = [row for row in one.metrics() if "eval/loss" not in row]
    assert [{"loss", "grad_norm"} <= row.keys() for row in rows] == [True, False, True]
    assert [row["step"] for row in rows] == [3, 6, 9]


def test_an_update_is_the_same_however_many_steps_are_skipped_before_it(tmp_path: Path) -> None:
    """At a constant rate and without dropout, the only update of a run is its first."""
    rate: dict[str, Any] = {"warmup": 0.0, "schedule": "constant"}
    late = training(tmp_path / "late", toy=Rounds(dropout=0.0, empty=EMPTY["all but one"]), **rate)
    first = training(tmp_path / "first", toy=Toy(dropout=0.0), **rate)
    late.go()
    first.engine.update(first.toy.window(4), first.toy.loss)
    assert torch.equal(late.engine.parameters.flat, first.engine.parameters.flat)


def test_skipped_steps_are_no_reason_to_call_an_adapter_still(tmp_path: Path) -> None:
    """The meter is read after so many updates, not steps."""
    late = training(
        tmp_path / "late", toy=Rounds(empty=frozenset(range(21))), steps=27, warmup=0.0, evaluate=27
    )
    late.go()
    assert late.engine.made == 6
    empty = frozenset(range(3, 9))
    stuck = training(tmp_path / "stuck", toy=Rounds(empty=empty), steps=30, learning_rate=1e-9, warmup=0.0)
    with pytest.raises(TrainingStopped, match=f"moved in {METER_STEPS} steps"):
        stuck.go()
    assert (stuck.engine.step, stuck.engine.made) == (METER_STEPS + 6, METER_STEPS)


# What a stage says to the loop.


def test_a_stage_that_ends_is_saved_and_goes_no_further(tmp_path: Path) -> None:
    """Nor does a run that is stopped between that save and its end, and resumed."""

    def ending(name: str) -> Training:
        return training(tmp_path / name, toy=Rounds(ends_at=6), evaluate=3, save=100)

    whole, stopped, again = ending("whole"), ending("stopped"), ending("stopped")
    whole.go()
    assert checkpoint.steps(whole.path) == [6]
    assert max(row["step"] for row in whole.metrics()) == 6
    assert whole.newest().state["stage"]["ended"] == "the answers became too long"
    with pytest.raises(Stopped):
        stopped.go(crash_after(6))
    again.go(lambda step: pytest.fail(f"step {step} was made"))
    assert (again.engine.step, again.toy.ended) == (6, whole.toy.ended)
    again.assert_equals(whole)


def test_the_factor_of_the_rate_acts_from_the_next_step_on(tmp_path: Path) -> None:
    """Halved by the evaluations after steps 3 and 6."""
    one = training(tmp_path / "run", toy=Rounds(lower=True, steps_per_round=1), warmup=0.0)
    plain = training(tmp_path / "plain", warmup=0.0)
    one.go()
    plain.go()
    ours, theirs = (
        [row["learning_rate"] for row in each.metrics() if "learning_rate" in row] for each in (one, plain)
    )
    factors = [a / b for a, b in zip(ours, theirs, strict=True)]
    assert factors == pytest.approx([1.0] * 3 + [0.5] * 3 + [0.25] * 3)
    assert not torch.equal(one.toy.a, plain.toy.a)


def test_the_state_of_a_stage_comes_back(tmp_path: Path) -> None:
    state = {"beta": 0.1, "guards": [{"step": 3, "text": "größer"}], "best": None}
    with pytest.raises(Stopped):
        training(tmp_path / "run", toy=Toy(kept=state)).go(crash_after(4))
    again = training(tmp_path / "run")
    again.go()
    assert again.toy.kept == state


def test_a_checkpoint_from_before_rounds_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = training(tmp_path / "whole")
    whole.go()
    real_save = checkpoint.save

    def older(*args: Any, state: dict[str, Any], **keywords: Any) -> Path:
        kept = {name: value for name, value in state.items() if name not in ("stage", "skipped")}
        return real_save(*args, state=kept, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", older)
        with pytest.raises(Stopped):
            training(tmp_path / "run").go(crash_after(4))
    again = training(tmp_path / "run")
    assert not {"stage", "skipped"} & again.newest().state.keys()
    again.go()
    again.assert_equals(whole)


# Speeds.


def test_speeds_leave_out_evaluation_and_saving(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 102.0, 150.0, 153.0, 153.0, 160.0, 160.0])
    monkeypatch.setattr("lite_align.train.fit.time.perf_counter", lambda: next(now))
    clock = Clock()
    clock.count(6, 30)
    clock.pause()  # 2 s of training, then 48 of something else
    clock.go_on()
    clock.count(4, 20)
    assert clock.speeds() == {"examples_per_second": 2.0, "tokens_per_second": 10.0}
    clock.count(14, 7)
    assert clock.speeds() == {"examples_per_second": 2.0, "tokens_per_second": 1.0}


# Disk.


def test_a_full_disk_in_a_save_leaves_the_checkpoint_before_it(tmp_path: Path) -> None:
    struck = []

    def full(operation: files.Operation) -> None:
        if operation.kind == "write" and operation.path.parent.name.startswith(".tmp-00000004-"):
            struck.append(operation.path.name)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    one = training(tmp_path / "run")
    with files.observed(full), pytest.raises(DiskFull) as told:
        one.go()
    assert told.value.exit_code == 74
    assert struck
    assert one.newest().step == 2
    assert not list(one.path.glob("checkpoints/.tmp-*"))
    whole, again = training(tmp_path / "whole"), training(one.path)
    whole.go()
    again.go()
    again.assert_equals(whole)


# Several processes: the stages refuse them for now (LA412), the engine is ready for them.


def updates(accelerator: Accelerator) -> dict[str, Any]:
    """Three updates of a toy, this process with its share of the rows, and what is logged of all rows."""
    toy = Toy(dropout=0.0)
    settings = TrainOptions(learning_rate=0.05, warmup=0.0, max_grad_norm=1.0)
    engine: Engine[Rows] = Engine(accelerator, [("lora_A", toy.a), ("lora_B", toy.b)], settings, 3)
    for step in range(3):
        window = toy.window(step)
        rows = [key for batch in window.batches for key in batch.keys]
        share = rows[accelerator.process_index :: accelerator.num_processes]
        engine.update(Window([Rows((key,)) for key in share], window.weight), toy.loss)
    logged = engine.logged()
    return {"a": toy.a.tolist(), "b": toy.b.tolist(), "processes": accelerator.num_processes, **logged}


@pytest.mark.slow
def test_two_processes_make_the_update_of_one() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "import json, test_fit as t; print(json.dumps(t.updates(t.Accelerator(cpu=True))))"
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    common |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    children = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    found = [json.loads(child.communicate(timeout=120)[0].splitlines()[-1]) for child in children]
    alone = updates(Accelerator(cpu=True))
    assert (alone.pop("processes"), found[0].pop("processes"), found[1].pop("processes")) == (1, 2, 2)
    assert found[0] == found[1]
    del (
        alone["rewards/margins"],
        found[0]["rewards/margins"],
    )  # a maximum of each micro-batch: depends on the split
    for name, value in alone.items():
        assert torch.tensor(found[0][name]).allclose(torch.tensor(value), rtol=1e-5, atol=1e-7), name


def test_the_progress_line_tells_sampling_and_learning_apart():
    usual = {"loss": 0.5, "examples_per_second": 12.345, "tokens_per_second": 1234.5}
    assert progress_fields(usual) == {"loss": 0.5, "speed": "12.3 ex/s  1,234 tok/s"}
    rewarded = {
        **usual,
        "objective/reward": 0.2,
        "objective/kl": 1.5,
        "objective/length": 20.0,
        "speed/generated_tokens_per_second": 2100.0,
        "speed/learned_tokens_per_second": 3800.4,
    }
    assert progress_fields(rewarded) == {
        "loss": 0.5,
        "reward": 0.2,
        "kl": 1.5,
        "tokens": 20.0,
        "speed": "2,100 tok/s sampled  3,800 learned",
    }


def test_what_a_stage_measured_of_a_round_stands_in_the_row_of_that_round(tmp_path, monkeypatch):
    toy = Toy(steps_per_round=2)
    monkeypatch.setattr(toy, "measured", lambda: {"objective/reward": float(toy.step)})
    run = training(tmp_path / "run", toy=toy, steps=6)
    run.go()
    rows = [row for row in run.metrics() if "objective/reward" in row]
    assert [(row["step"], row["objective/reward"]) for row in rows] == [(2, 1.0), (4, 3.0), (6, 5.0)]
