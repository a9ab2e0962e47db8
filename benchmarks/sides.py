"""Run one side after the other, each in a fresh process, and say what is usual and how far it spreads.

A side is a module with a function `measure(work, settings)`. It returns the figures of one run: CPU seconds and
bytes (see `timing`), what it counted, and what it knows of the work.
"""

import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from benchmarks.stopwatch import Stopwatch

LITE = "lite-align"


@dataclass(frozen=True)
class Work:
    """What every side does: the same weights, rows, epochs and threads.

    Args:
        model: folder of the model.
        rows: file of the rows.
        examples: how many there are.
        epochs: passes over them.
        threads: of torch.
    """

    model: str
    rows: str
    examples: int
    epochs: int = 1
    threads: int = 2


@dataclass(frozen=True)
class Side:
    """A module that measures, and the settings it gets (plain JSON values)."""

    module: str
    settings: dict[str, Any]


class Step(NamedTuple):
    """CPU seconds and tokens (padding included) of an optimiser step."""

    seconds: float
    tokens: int


def timing(reference: float, steps: Sequence[Step], work: Work) -> dict[str, float]:
    """CPU seconds an example and epoch: steps, and the reference pass shared out over the epochs.

    The first step warms up; its tokens are counted at the speed of the other steps.
    """
    warm = steps[1:]
    assert warm, "one step alone cannot be measured: more rows are needed"
    a_token = sum(step.seconds for step in warm) / sum(step.tokens for step in warm)
    trained = work.examples * work.epochs
    tokens = sum(step.tokens for step in steps)
    return {
        "tokens_per_example": tokens / trained,
        "step_seconds_per_example": a_token * tokens / trained,
        "reference_seconds_per_example": reference / work.examples,
        "seconds_per_example": a_token * tokens / trained + reference / trained,
    }


PARTS = ("generate", "score", "learn")
"""Of a round of PPO."""


def parts(rounds: Sequence[Sequence[float]], episodes: int) -> dict[str, float]:
    """CPU seconds an episode of a round's parts and together, from rounds of so many episodes; the first warms up."""
    warm = rounds[1:]
    assert warm, "one round alone cannot be measured: more prompts are needed"
    each = [sum(seconds) / (len(warm) * episodes) for seconds in zip(*warm, strict=True)]
    return {
        "seconds_per_example": sum(each),
        **{f"{name}_seconds_per_example": seconds for name, seconds in zip(PARTS, each, strict=True)},
    }


COMMAND_PARTS = ("load", "generate", "score", "rest")
"""Of `eval` and `compare`; the rest is reading, rendering, statistics and writing."""


def command_parts(watches: Mapping[str, Stopwatch], whole: Stopwatch, prompts: int) -> dict[str, float]:
    """CPU seconds a prompt of a command and of its parts, from a stopwatch of each but the rest."""
    total = whole.take()
    known = {name: watches[name].take() for name in COMMAND_PARTS[:-1]}
    seconds = {**known, COMMAND_PARTS[-1]: total - sum(known.values())}
    return {
        "seconds_per_example": total / prompts,
        **{f"{name}_seconds_per_example": value / prompts for name, value in seconds.items()},
    }


def run(side: Side, work: Work) -> dict[str, Any]:
    """Measure one side in a fresh process with a cache of its own.

    Raises:
        SystemExit: the process failed; holds what it printed.
    """
    order = json.dumps({**asdict(side), "work": asdict(work)})
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TQDM_DISABLE": "1",
            "HF_DATASETS_CACHE": cache,
            "LITE_ALIGN_CACHE": cache,
            "OMP_NUM_THREADS": str(work.threads),
            "CUDA_VISIBLE_DEVICES": "",
        }
        command = [sys.executable, "-m", "benchmarks.sides", order]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{side.module} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def interleave(sides: Mapping[str, Side], work: Work, repeats: int) -> dict[str, list[dict[str, Any]]]:
    """Measure all sides in turn, `repeats` times, every second time in the opposite order."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for repeat in range(repeats):
        for name in list(sides)[:: -1 if repeat % 2 else 1]:
            runs[name].append(run(sides[name], work))
    return runs


def summary(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Median, lowest and highest of every figure of every side."""
    return {
        name: {
            key: {"median": statistics.median(values), "low": min(values), "high": max(values)}
            for key in measured[0]
            for values in [[run[key] for run in measured]]
        }
        for name, measured in runs.items()
    }


class Comparison(NamedTuple):
    """A side against another one: `speed` above 1 is faster, `memory` below 1 is smaller."""

    against: str
    speed: float
    memory: float


def compare(sides: Mapping[str, Mapping[str, Any]], one: str, others: Sequence[str]) -> Comparison:
    """Compare a side of a summary with the fastest of some others."""

    def usual(name: str, key: str) -> float:
        return sides[name][key]["median"]

    best = min(others, key=lambda name: usual(name, "seconds_per_example"))
    speed = usual(best, "seconds_per_example") / usual(one, "seconds_per_example")
    return Comparison(best, speed, usual(one, "memory") / usual(best, "memory"))


def opponents(sides: Mapping[str, Any]) -> list[str]:
    """Names of all sides but ours."""
    return [name for name in sides if name != LITE]


def measure(side: Side, work: Work) -> dict[str, Any]:
    """Measure a side in this process."""
    import torch

    torch.set_num_threads(work.threads)
    return importlib.import_module(side.module).measure(work, side.settings)


def main(order: str) -> None:
    """Measure what the order says and print the figures as the last line."""
    told = json.loads(order)
    print(json.dumps(measure(Side(told["module"], told["settings"]), Work(**told["work"]))))


if __name__ == "__main__":
    main(sys.argv[1])
