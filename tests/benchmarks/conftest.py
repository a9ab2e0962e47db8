"""Small comparisons without imports: each side is a child of one warm process, with memory of its own."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks import sides

PRELOADED = (
    "benchmarks.lite_ppo",
    "benchmarks.lite_sft",
    "benchmarks.lite_reward",
    "benchmarks.opponent_ppo",
    "trl",
    "benchmarks.gpu.memory",
    "transformers.models.llama.modeling_llama",
)

Measure = Callable[..., dict[str, Any]]


def measured(measure: Measure, arguments: tuple[Any, ...], cache: str) -> dict[str, Any]:
    """What the child does."""
    os.environ["LITE_ALIGN_CACHE"] = os.environ["HF_DATASETS_CACHE"] = cache
    return measure(*arguments)


@pytest.fixture
def forked(tmp_path: Path) -> Measure:
    """Calls a function of a module, with what follows it, in a forked child."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED])

    def run(measure: Measure, *arguments: Any) -> dict[str, Any]:
        with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
            return pool.submit(measured, measure, arguments, str(tmp_path / "cache")).result()

    return run


@pytest.fixture
def warm_sides(forked: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    """All sides are measured in forked children."""
    monkeypatch.setattr(sides, "run", partial(forked, sides.measure))
