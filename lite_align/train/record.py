"""What stands in run folders, for readers: records, metrics rows, the list of runs. It changes nothing."""

import json
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from lite_align import __version__
from lite_align.errors import UserError
from lite_align.recipe.secrets import redact
from lite_align.train.lock import is_live

SCHEMA = 1
RECORD, METRICS = "run.json", "metrics.jsonl"
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "safetensors", "tokenizers")


def library_versions() -> dict[str, str]:
    """The versions that decide a run's numbers, read from package metadata (nothing is imported)."""
    versions = {"lite-align": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def read_record(folder: Path) -> dict[str, Any]:
    """Read `run.json`; UserError if it is missing, damaged or of another format."""
    path = folder / RECORD
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read: {error}.", remedy="List runs with: lite-align runs"
        ) from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise UserError(f"{path} has another format than this lite-align writes ({SCHEMA}).")
    return record


def finished_record(folder: Path) -> dict[str, Any]:
    """The record of a run whose training is over.

    Raises:
        UserError: it is no run folder, cannot be read, or the run has not finished.
    """
    if not (folder / RECORD).is_file():
        raise UserError(f"{folder} is not a run folder", remedy="lite-align runs lists them.")
    record = read_record(folder)
    if record["status"] != "finished":
        raise UserError(
            f"{folder} is not finished (status {record['status']}).",
            remedy=f"Finish it first: the command in {folder / RECORD} with --resume.",
        )
    return record


def continued_run(path: Path) -> tuple[Path, dict[str, Any]] | None:
    """The run to which a folder to continue belongs, itself or as one of its adapters; None for other folders.

    Raises:
        UserError: there is no such folder, or the run has not finished.
    """
    run = next((folder for folder in (path, path.parent.parent) if (folder / RECORD).is_file()), None)
    if run is None:
        if not path.exists():
            raise UserError(
                f"{path} does not exist, so nothing can continue it.",
                remedy="Give a finished run (lite-align runs lists them) or the folder of an adapter.",
            )
        return None
    record = read_record(run)
    if record["status"] != "finished":
        raise UserError(
            f"{run} is not finished (status: {record['status']}), so nothing can continue it.",
            remedy=f"Finish it first: lite-align {record['stage']} … --out {run} --resume",
        )
    return run, record


def data_path(recipe: Mapping[str, object]) -> str:
    """`data.path` of a recipe as a nested mapping, "" if it has none."""
    data = recipe.get("data")
    return str(data.get("path", "")) if isinstance(data, Mapping) else ""


def metrics_row(line: bytes) -> dict[str, float] | None:
    """One line of `metrics.jsonl`, or None if it is torn or no row."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of `metrics.jsonl`, also while a run appends to it; a torn last line is left out."""
    path = folder / METRICS
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    return [row for row in map(metrics_row, lines) if row is not None]


def _run_folders(root: Path) -> list[Path]:
    return sorted(path.parent for path in root.glob(f"*/{RECORD}"))


@dataclass(frozen=True)
class RunSummary:
    """One line of `lite-align runs`; "killed" is a run that says "running" but that no process holds.

    `adapters` are the hashes of the adapters it left, `parent_adapter` is that of the one it started from, and
    `parent` the folder which that had then.
    """

    folder: Path
    stage: str
    status: str
    started: str
    finished: str
    model: str
    data: str
    verdict: str
    adapters: tuple[str, ...] = ()
    parent: str = ""
    parent_adapter: str = ""


def list_runs(root: Path) -> list[RunSummary]:
    """The runs under `root`, in the pipelines and in the rounds of loops there, oldest first; a damaged record is
    "unreadable".
    """
    nested = sorted(
        path.parent for depth in ("*/*", "*/round-*/*") for path in root.glob(f"{depth}/{RECORD}")
    )
    return sorted(
        map(_summary, _run_folders(root) + nested), key=lambda summary: (summary.started, summary.folder.name)
    )


def _summary(folder: Path) -> RunSummary:
    try:
        record = read_record(folder)
    except UserError:
        return RunSummary(folder, "", "unreadable", "", "", "", "", "")
    model, verdict = record.get("model"), record.get("verdict")
    parent = next((p for p in record.get("parents") or () if isinstance(p, Mapping)), {})
    status = str(record["status"])
    if status == "running" and not is_live(folder):
        status = "killed"
    return RunSummary(
        folder=folder,
        stage=str(record["stage"]),
        status=status,
        started=str(record["started"]),
        finished=str(record["finished"] or ""),
        model=str(model.get("name", "")) if isinstance(model, Mapping) else "",
        data=data_path(record["recipe"]),
        verdict=str(verdict.get("word", "")) if isinstance(verdict, Mapping) else "",
        adapters=tuple(map(str, (record.get("adapters") or {}).values())),
        parent=str(parent.get("run", "")),
        parent_adapter=str(parent.get("adapter", "")),
    )


def find_unfinished(root: Path, stage: str, data: str) -> Path | None:
    """The newest run folder under `root` of this stage and data path that did not finish, or None."""
    found: list[tuple[str, str, Path]] = []
    for folder in _run_folders(root):
        with suppress(UserError):
            record = read_record(folder)
            if record["stage"] == stage and record["status"] != "finished" and _same_data(record, data):
                found.append((str(record["started"]), folder.name, folder))
    return max(found)[2] if found else None


def _same_data(record: Mapping[str, Any], data: str) -> bool:
    stored = data_path(record["recipe"])
    return stored == redact(data) or Path(stored).absolute() == Path(data).absolute()
