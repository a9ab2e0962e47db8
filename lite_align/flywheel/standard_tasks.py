"""Standard tasks, such as arc_easy, before and after: what a run has forgotten. Measured by lm-evaluation-harness.

The base in memory is handed over as it is, with the adapter off and on (github.com/EleutherAI/lm-evaluation-harness).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lite_align.errors import UserError
from lite_align.evaluate import figures
from lite_align.evaluate.figures import Figures
from lite_align.flywheel.bench import Bench
from lite_align.model.backbone import Role

TOGETHER = 8
"""Rows of a pass."""


@dataclass(frozen=True)
class Tasks:
    """Which tasks are measured.

    Attributes:
        names: as the harness knows them.
        limit: most questions of each; None: all.
        folder: with YAML files of tasks of your own.
    """

    names: tuple[str, ...]
    limit: int | None = None
    folder: Path | None = None


def measure(tasks: Tasks, bench: Bench) -> Figures:
    """Every metric of every task as `TASK.METRIC`, the REFERENCE before and the POLICY after, paired by question.

    Raises:
        UserError: the harness is not installed, or does not know a task.
    """
    library = harness()
    manager = library.tasks.TaskManager(include_path=str(tasks.folder) if tasks.folder else None)
    unknown = [name for name in tasks.names if not manager.match_tasks([name])]
    if unknown:
        raise UserError(
            f"lm-eval knows no task {', '.join(unknown)}.",
            remedy="lm_eval ls tasks lists them; --tasks-path adds yours.",
        )
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

    model = HFLM(
        pretrained=bench.backbone.model,
        tokenizer=bench.renderer.tokenizer,
        batch_size=TOGETHER,
        max_length=bench.positions,
    )
    before, after = (
        _samples(library, model, manager, tasks, bench, role) for role in (Role.REFERENCE, Role.POLICY)
    )
    found: Figures = {}
    for task, rows in after.items():
        for metric in sorted(_metrics(rows)):
            column = [_value(row, metric) for row in rows]
            was = {row["doc_id"]: _value(row, metric) for row in before[task]}
            places = {figures.ALL: range(len(rows))}
            counted = all(value in (0.0, 1.0, None) for value in (*column, *was.values()))
            paired = [was.get(row["doc_id"]) for row in rows]
            found |= figures.measure(
                f"{task}.{metric}", places, column, paired, unit="share" if counted else "", counted=counted
            )
    return found


def _samples(
    library: Any, model: Any, manager: Any, tasks: Tasks, bench: Bench, role: Role
) -> Mapping[str, Any]:
    """Rows of every question by task, with its metrics."""
    with bench.backbone.role(role):
        found = library.simple_evaluate(
            model=model,
            tasks=list(tasks.names),
            task_manager=manager,
            limit=tasks.limit,
            bootstrap_iters=0,
            log_samples=True,
        )
    return found["samples"]


def _metrics(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    return {name for row in rows for name in row.get("metrics", ()) if _value(row, name) is not None}


def _value(row: Mapping[str, Any], metric: str) -> float | None:
    value = row.get(metric)
    return float(value) if isinstance(value, bool | int | float) else None


def harness() -> Any:
    """The library.

    Raises:
        UserError: it is not installed.
    """
    try:
        import lm_eval  # pyright: ignore[reportMissingImports]
        import lm_eval.tasks  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            "Standard tasks need lm-evaluation-harness, which is not installed.",
            remedy="pip install 'lite-align[lm-eval]'",
        ) from error
    return lm_eval
