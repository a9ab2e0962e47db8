"""Small comparisons without imports: each side is a child of one warm process, with memory of its own."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmarks import sides
from benchmarks.sides import Side, Work

PRELOADED = (
    "benchmarks.lite_ppo",
    "benchmarks.lite_sft",
    "benchmarks.lite_reward",
    "benchmarks.opponent_ppo",
    "trl",
    "transformers.models.llama.modeling_llama",
)


def measure(side: Side, work: Work, cache: str) -> dict[str, Any]:
    """What the child does."""
    os.environ["LITE_ALIGN_CACHE"] = os.environ["HF_DATASETS_CACHE"] = cache
    return sides.measure(side, work)


@pytest.fixture
def forked(tmp_path: Path) -> Callable[[Side, Work], dict[str, Any]]:
    """Measures a side in a forked child."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED])

    def run(side: Side, work: Work) -> dict[str, Any]:
        with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
            return pool.submit(measure, side, work, str(tmp_path / "cache")).result()

    return run


@pytest.fixture
def warm_sides(forked: Callable[[Side, Work], dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """All sides are measured in forked children."""
    monkeypatch.setattr(sides, "run", forked)
