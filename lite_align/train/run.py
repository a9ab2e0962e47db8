"""A run folder that is being written: its lock, its record `run.json`, `metrics.jsonl` and `log.txt`.

`with Run.create(...) as run:` holds the folder for one process; the status ends as finished, interrupted or
failed whatever happens inside. Nothing here imports torch, so the folder and its lock exist before a model loads.
"""

import copy
import logging
import math
import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lite_align.errors import Interrupted, LiteAlignError, TrainingStopped, UserError
from lite_align.recipe.secrets import redact
from lite_align.train import drift, files
from lite_align.train.lock import LOCK, FolderLock, in_use, is_live, now
from lite_align.train.record import (
    METRICS,
    RECORD,
    SCHEMA,
    data_path,
    library_versions,
    metrics_row,
    read_record,
)

LOG = "log.txt"
FINAL = ("finished", "interrupted", "failed")
SECTIONS = frozenset(
    [
        "recipe",
        "provenance",
        "versions",
        "hardware",
        "hashes",
        "data",
        "model",
        "reference",
        "adapters",
        "plan",
        "ppo",
        "forecast",
        "measured",
        "reward",
        "reward_model",
        "evaluation",
        "verdict",
    ]
)
_NUMBERED = re.compile(r"-(\d{4,})$")


class RunLog(logging.Handler):
    """Append each record of the `lite_align` loggers to `log.txt`, secrets redacted, tracebacks included."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.INFO)
        self.path = path
        formatter = logging.Formatter("%(asctime)sZ %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%S")
        formatter.converter = time.gmtime
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; a full disk raises DiskFull, as every other write of the run does."""
        with files.explained(self.path):
            files.append(self.path, files.encode(self.format(record) + "\n"))


@dataclass(frozen=True, eq=False)
class Run:
    """An open run folder at `path`. `record` is what `run.json` holds: read it freely, change it by `update`."""

    path: Path
    record: dict[str, Any]
    _lock: FolderLock
    _handler: RunLog
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("lite_align"))

    @classmethod
    def create(
        cls,
        *,
        stage: str,
        recipe: Mapping[str, object],
        provenance: Mapping[str, str] | None = None,
        out: Path | None = None,
        root: Path = Path("runs"),
        command: Sequence[str] = (),
        parents: Sequence[Mapping[str, object]] = (),
    ) -> Self:
        """Make a run folder, lock it and write its record with the status "running".

        Args:
            stage: "sft", "reward", "dpo" or "ppo".
            recipe: the recipe as a nested mapping; `data.path` names the folder.
            provenance: dotted key -> where its value came from.
            out: the folder to use; by default a new `root/<stage>-<data>-0001`.
            root: where numbered run folders live.
            command: the command line.
            parents: {"run": folder, …} of each run this one continues.

        Raises:
            UserError: `out` is not empty, or cannot be written.
            RunInUse: another process is running in `out`.
        """
        if out is None:
            with files.explained(root):
                root.mkdir(parents=True, exist_ok=True)
                path = _numbered_folder(root, f"{stage}-{_stem(data_path(recipe))}")
        else:
            path = _given_folder(out)
        lock = FolderLock.acquire(path)
        try:
            with files.explained(path):
                _require_empty(path)  # again, now that no one else can write into it
                for leftover in sorted(path.glob(f".{RECORD}.tmp-*")):
                    files.unlink(leftover)
                files.sync_folder(path.parent)
        except BaseException:
            lock.release()
            raise
        record: dict[str, Any] = {
            "schema": SCHEMA,
            "stage": stage,
            "status": "running",
            "started": now(),
            "finished": None,
            "command": list(command),
            "parents": list(parents),
            "recipe": dict(recipe),
            "provenance": dict(provenance or {}),
            "versions": library_versions(),
            "verdict": None,
            "resumes": [],
            "events": [],
        }
        return cls._open(path, record, lock)

    @classmethod
    def resume(cls, path: Path) -> Self:
        """Lock an unfinished run folder and continue its record with the status "running".

        Raises:
            UserError: no run is there, it is finished, or its record cannot be read.
            RunInUse: another process is running in it.
        """
        if not (path / RECORD).is_file():
            raise UserError(
                f"{path} holds no run ({RECORD} is missing).", remedy="List runs with: lite-align runs"
            )
        lock = FolderLock.acquire(path)
        try:
            record = read_record(path)
            if record["status"] == "finished":
                raise UserError(
                    f"{path} is finished; nothing is left to resume.",
                    remedy="Start a new run with another --out.",
                )
            with files.explained(path):
                for leftover in sorted(path.glob(".*.tmp-*")):
                    files.unlink(leftover)
        except BaseException:
            lock.release()
            raise
        record["resumes"].append(
            {"at": now(), "status_before": record["status"], "versions": library_versions()}
        )
        record.update(status="running", finished=None)
        record.pop("error", None)
        return cls._open(path, record, lock)

    @classmethod
    def _open(cls, path: Path, record: dict[str, Any], lock: FolderLock) -> Self:
        run = cls(path, record, lock, RunLog(path / LOG))
        try:
            run._write_record()
            run.log.addHandler(run._handler)
            run.log.setLevel(min(run.log.level or logging.INFO, logging.INFO))
            run.log.info("%s %s: %s", "resumed" if record["resumes"] else "started", record["stage"], path)
        except BaseException:
            run.close()
            raise
        return run

    # --- record ---

    def update(self, section: str, value: object) -> None:
        """Set one section of `run.json` and write it, atomically; an unknown section is a ValueError."""
        if section not in SECTIONS:
            raise ValueError(
                f"{section!r} is no section of {RECORD}: expected one of {', '.join(sorted(SECTIONS))}"
            )
        self.record[section] = copy.deepcopy(value)
        self._write_record()

    def event(self, kind: str, text: str, facts: Mapping[str, object] | None = None) -> None:
        """Record what a reader of the run must know (memory ran out and the step was replayed, …)."""
        self.record["events"].append({"at": now(), "kind": kind, "text": text, **(facts or {})})
        self._write_record()
        self.log.warning("%s: %s", kind, text)

    def _write_record(self) -> None:
        with files.explained(self.path / RECORD):
            files.replace(self.path / RECORD, files.dump_json(self.record, indent=1))

    def check_drift(
        self,
        recipe: Mapping[str, object],
        classes: Mapping[str, str],
        *,
        hashes: Mapping[str, str] | None = None,
        accept: Collection[str] = (),
    ) -> list[drift.Change]:
        """Compare a resumed run with its record, take on the accepted changes, and return and log them.

        Args:
            recipe: the recipe of now; as resolved as the stored one ("auto" differs from the value it stands for).
            classes: dotted key -> "refuse" | "ask" | "free"; a key without one is refused.
            hashes: content hashes (base, tokenizer, template, data, reference). Every difference from the
                section "hashes" is refused; a run that stopped before it had that section takes these.
            accept: the "ask" keys that may change.

        Raises:
            DriftError: every refused or unaccepted change, with its old and new value.
        """
        found = drift.changes(self.record["recipe"], recipe, classes)
        if self.record.get("hashes"):
            found += drift.changes({"hash": self.record["hashes"]}, {"hash": dict(hashes or {})}, {})
        taken = drift.accepted(found, classes, accept)
        if self.record["resumes"]:
            self.record["resumes"][-1]["changes"] = [str(change) for change in taken]
        self.record["recipe"] = copy.deepcopy(dict(recipe))
        self.record.setdefault("hashes", dict(hashes or {}))
        self._write_record()
        for warning in self.version_warnings():
            self.log.warning("%s", warning)
        for change in taken:
            self.log.warning("changed on resume: %s", change)
        return taken

    def version_warnings(self) -> list[str]:
        """One line for each library that is not the version the run was started with."""
        return drift.version_warnings(self.record["versions"], library_versions())

    # --- files ---

    def write(self, name: str, text: str) -> Path:
        """Write a text file of the run folder (`report.html`), atomically, secrets redacted."""
        path = self.path / name
        with files.explained(path):
            files.replace(path, files.encode(text))
        return path

    def write_rows(self, name: str, rows: Iterable[Mapping[str, object]]) -> Path:
        """Write a JSON-lines file of the run folder (`held_out.jsonl`), atomically, secrets redacted."""
        path = self.path / name
        with files.explained(path):
            files.replace(path, b"".join(files.dump_json(row) for row in rows))
        return path

    def log_metrics(self, row: Mapping[str, float | int | str | None]) -> None:
        """Append one row to `metrics.jsonl`; it must have an integer `step`.

        Raises:
            TrainingStopped: a value is not finite; names all such metrics.
        """
        assert isinstance(row.get("step"), int)
        broken = [
            f"{name} is {value}"
            for name, value in row.items()
            if isinstance(value, float) and not math.isfinite(value)
        ]
        if broken:
            raise TrainingStopped(
                f"A metric of step {row['step']} is not finite.",
                details=broken,
                remedy="Lower train.learning_rate, or look at these rows; the last checkpoint is intact.",
            )
        with files.explained(self.path / METRICS):
            files.append(self.path / METRICS, files.dump_json(row))

    def truncate_metrics(self, step: int) -> int:
        """Drop the rows after checkpoint `step` and what cannot be read (a torn last line); return how many."""
        path = self.path / METRICS
        if not path.exists():
            return 0
        with files.explained(path):
            lines = path.read_bytes().splitlines()
            rows = [row for row in map(metrics_row, lines) if row is not None]
            kept = [row for row in rows if row["step"] <= step]
            files.replace(path, b"".join(map(files.dump_json, kept)))
        dropped, torn = len(lines) - len(kept), len(lines) - len(rows)
        if dropped:
            self.log.info(
                "left out of %s: %d rows after step %d, %d torn", METRICS, dropped - torn, step, torn
            )
        return dropped

    # --- end ---

    def finish(self, status: str = "finished", verdict: object = None, *, error: str = "") -> None:
        """Write the final status ("finished", "interrupted" or "failed"), the verdict and the time."""
        if status not in FINAL:
            raise ValueError(f"{status!r} is no final status: expected one of {', '.join(FINAL)}")
        self.record.update(status=status, finished=now())
        if verdict is not None:
            self.record["verdict"] = copy.deepcopy(verdict)
        if error:
            self.record["error"] = error[:2000]
        self._write_record()
        self.log.info("%s%s", status, f": {error}" if error else "")

    def close(self) -> None:
        """Give the folder free; the status stays what it is."""
        self.log.removeHandler(self._handler)
        self._handler.close()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                # What stopped the run must reach the person, even if the disk does not take a last word.
                with suppress(LiteAlignError, OSError):
                    self._record_failure(error)
            elif self.record["status"] == "running":
                self.finish()
        finally:
            self.close()

    def _record_failure(self, error: BaseException) -> None:
        stopped = isinstance(error, Interrupted | KeyboardInterrupt)
        self.finish("interrupted" if stopped else "failed", error=str(error) or type(error).__name__)
        if not stopped and not isinstance(error, LiteAlignError):
            self.log.error("unexpected failure", exc_info=error)


# --- folder names ---


def _stem(path: str) -> str:
    """A data path as part of a folder name: letters, digits, `_`, `-` and `.` of any script, at most 48."""
    return re.sub(r"[^\w.-]+", "-", Path(redact(path)).stem).strip("-.")[:48] or "data"


def _numbered_folder(root: Path, name: str) -> Path:
    taken = [_NUMBERED.search(path.name) for path in root.iterdir() if path.name.startswith(f"{name}-")]
    number = 1 + max((int(match[1]) for match in taken if match), default=0)
    while True:  # another process may take the same number at the same moment
        folder = root / f"{name}-{number:04d}"
        try:
            files.make_folder(folder)
        except FileExistsError:
            number += 1
        else:
            return folder


def require_unused(out: Path) -> None:
    """Raise UserError or RunInUse unless a run can start in `out`: it is not there yet, or an empty folder."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file, not a folder.", remedy="Choose another --out.")
    if is_live(out):
        raise in_use(out)
    _require_empty(out)


def _given_folder(out: Path) -> Path:
    """Make `out`, or take it if it is an empty folder; what others put there is not touched."""
    with files.explained(out):
        require_unused(out)
        if out.exists():
            out.chmod(files.FOLDER_MODE)
        else:
            out.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):  # made by another process at this moment: the lock decides
                files.make_folder(out)
    return out


def _require_empty(folder: Path) -> None:
    """Raise UserError unless the folder is empty but for what a start leaves that was killed before its record."""
    names = sorted(
        path.name for path in folder.iterdir() if path.name != LOCK and not path.match(f".{RECORD}.tmp-*")
    )
    if names:
        raise UserError(
            f"The output folder {folder} is already in use.",
            details=[f"It holds {', '.join(names[:5])}{' …' if len(names) > 5 else ''}."],
            remedy="Continue the run that is there with --resume, or choose another --out.",
        )
