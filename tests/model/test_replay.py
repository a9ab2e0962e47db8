"""Runners of steps: when rows leave, when a step is captured, and what happens if it cannot be."""

from collections.abc import Callable

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from lite_align.model.replay import Eager, Replayed, Step, capturable, runner_of
from tests.model.small_models import SIZES


class Log(Replayed):
    """Says what was done; `fail` is raised by captures."""

    def __init__(self, fail: Exception | None = None) -> None:
        super().__init__()
        self.log: list[str] = []
        self._fail = fail

    def warm_up(self, step: Step) -> None:
        self.log.append("warm up")
        step()

    def capture(self, step: Step) -> Step:
        self.log.append("capture")
        if self._fail is not None:
            raise self._fail
        return lambda: self.log.append("replay")

    def step(self) -> None:
        self.log.append("step")


def test_every_call_makes_one_step_and_a_bucket_is_captured_once():
    runner = Log()
    for bucket in (1, 1, 1, 2, 1, 2):
        runner.run(bucket, runner.step)
    first = ["warm up", "step", "capture", "replay", "replay"]
    assert runner.log == [*first, "warm up", "step", "replay", "capture", "replay"]
    assert not runner.note


def test_where_capture_fails_every_step_is_made_and_it_is_said():
    runner = Log(RuntimeError("operation not permitted when stream is capturing\nmore"))
    for bucket in (1, 1, 1, 2, 2):
        runner.run(bucket, runner.step)
    assert runner.log == ["warm up", "step", "capture", "step", "step", "step", "step"]
    assert runner.note.endswith("(slower): operation not permitted when stream is capturing")


def test_memory_that_runs_out_is_not_hidden():
    runner = Log(torch.OutOfMemoryError("out of memory"))
    runner.run(1, runner.step)
    with pytest.raises(torch.OutOfMemoryError):
        runner.run(1, runner.step)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (Eager().rows, {(8, 8): 8, (8, 7): 7, (16, 15): 16, (16, 14): 14, (1, 1): 1, (1, 0): 0, (64, 3): 3}),
        (
            Log().rows,
            {(8, 8): 8, (8, 5): 8, (8, 4): 4, (8, 3): 4, (64, 17): 32, (24, 12): 16, (1, 1): 1, (9, 0): 0},
        ),
    ],
    ids=["eager", "replayed"],
)
def test_rows_leave_when_it_pays(rows: Callable[[int, int], int], expected: dict[tuple[int, int], int]):
    assert {case: rows(*case) for case in expected} == expected


def test_models_whose_steps_ask_the_host_are_not_captured():
    def of(config) -> bool:
        with torch.device("meta"):
            return capturable(AutoModelForCausalLM.from_config(config))

    assert of(LlamaConfig(**SIZES))
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert not of(LlamaConfig(**SIZES, rope_parameters=dynamic))


def test_on_the_cpu_steps_are_run_as_they_are():
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES))
    assert isinstance(runner_of(model), Eager)
