"""lite-align's side of `eval` and `compare`: the commands as they are, on run folders made without training."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest.mock import patch

from benchmarks import lite, machine
from benchmarks.lite_ppo import randomize
from benchmarks.sides import COMMAND_PARTS, Side, Work, command_parts
from benchmarks.stopwatch import Stopwatch
from benchmarks.workload import runs_beside
from lite_align.flywheel import bench, compare, evaluation
from lite_align.flywheel.judges.opening import Asked
from lite_align.model.backbone import Role
from lite_align.recipe import to_dict
from lite_align.stages.rollouts import Collector
from lite_align.stages.speaker import Sampling
from lite_align.train.run import Run
from lite_align.view import View

RUNS = {"a": ("dpo", Role.POLICY), "b": ("dpo", Role.POLICY), "reward": ("reward", Role.REWARD)}
"""The runs of the benchmark: stage, and the role of their adapter."""


def side(command: str, precision: str, new_tokens: int) -> Side:
    """Our side of a command in a precision."""
    settings = {"command": command, "precision": precision, "new_tokens": new_tokens}
    return Side("benchmarks.lite_evaluation", settings)


def make_runs(work: Work, precision: str) -> None:
    """Make the folders of `RUNS` where they are not there yet: finished runs with random adapters of one shape."""
    for seed, (name, (stage, role)) in enumerate(RUNS.items(), 1):
        folder = runs_beside(work.rows, precision) / name
        if folder.exists():
            continue
        recipe = lite.resolve_stage(stage, work, precision, [], {})
        backbone = lite.load_backbone(recipe, role)
        randomize(backbone, role, seed)
        with Run.create(stage=stage, recipe=to_dict(recipe), out=folder) as run:
            run.update("hashes", {"base": backbone.loaded.identity["base"]})
            backbone.save_adapter(role, folder / "adapters" / role.value)


@contextmanager
def watched() -> Iterator[tuple[dict[str, Stopwatch], list[int]]]:
    """Stopwatches of the parts of a command, on the calls that they are made of, and the tokens of its answers."""
    watches, tokens = {part: Stopwatch() for part in COMMAND_PARTS}, []
    answers = bench.Bench.answers

    def counted(*args: Any, **kwargs: Any) -> list[bench.Answer]:
        found = answers(*args, **kwargs)
        tokens.extend(answer.tokens for answer in found)
        return found

    calls = {
        "load": ((bench.Bench, "__init__"), (bench.Bench, "put"), (compare, "open_judge")),
        "generate": ((bench.Bench, "answers"),),
        "score": ((compare, "judge_all"), (bench.Bench, "logps"), (Collector, "score")),
    }
    with patch.object(bench.Bench, "answers", counted), ExitStack() as stack:
        for part, owners in calls.items():
            for owner, name in owners:
                stack.enter_context(patch.object(owner, name, watches[part].timed(getattr(owner, name))))
        yield watches, tokens


def run(work: Work, settings: dict[str, Any], out: Path) -> None:
    """One command, from its options to its files in a folder."""
    sampling = Sampling(1.0, 1.0, settings["new_tokens"], seed=42)
    runs = runs_beside(work.rows, settings["precision"])
    first, second, reward = (str(runs / name) for name in RUNS)
    asked = {"data": work.rows, "prompts": work.examples, "samples": 1, "sampling": sampling, "out": out}
    view = View(quiet=True)
    if settings["command"] == "eval":
        evaluation.evaluate(first, evaluation.Options(probes=None, **asked), view)
    else:
        compare.compare((first, second), compare.Options(judge=Asked(by=reward), **asked), view)


def measure(work: Work, settings: dict[str, Any]) -> dict[str, float]:
    """One command: CPU seconds a prompt by part, and memory at the peak above the start."""
    import scipy.stats  # noqa: F401  what is imported is counted on neither side
    import transformers.models.llama.modeling_llama  # noqa: F401  nor this

    with tempfile.TemporaryDirectory() as folder, watched() as (watches, tokens):
        held = machine.resident_bytes()
        machine.reset_peak()
        whole = Stopwatch()
        whole.timed(run)(work, settings, Path(folder) / "out")
        memory = machine.peak_bytes() - held
    return {
        **command_parts(watches, whole, work.examples),
        "tokens_per_example": fmean(tokens),
        "memory": memory,
    }
