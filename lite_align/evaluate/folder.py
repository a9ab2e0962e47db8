"""What a run folder says: run.json and its JSONL files, read without trust and without torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from lite_align.errors import UserError

Record = Mapping[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """The parsed files of a run; a file that is not there yet is empty."""

    path: Path
    run: Record
    metrics: list[Record]
    held_out: list[Record]
    answers: list[Record]
    samples: list[Record] = field(default_factory=list[Record])
    evaluation: Record = field(default_factory=dict[str, Any])
    gates: Record = field(default_factory=dict[str, Any])
    promotion: Record = field(default_factory=dict[str, Any])

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """Steps and finite values of one metric, in the order of the file."""
        rows = [(row.get("step"), row.get(name)) for row in self.metrics]
        kept = [(float(s), float(v)) for s, v in rows if is_number(s) and is_number(v)]
        return [s for s, _ in kept], [v for _, v in kept]

    def part(self, name: str) -> Record:
        """A block of run.json; {} where it is missing."""
        block = self.run.get(name)
        return block if isinstance(block, Mapping) else {}


def learned_from_thumbs(folder: RunFolder) -> bool:
    """Whether the rows of a run were single answers with a thumb."""
    return folder.part("data").get("kind") == "thumbs"


def is_number(value: object) -> TypeGuard[float]:
    """Whether a JSON value is a finite number (bool is not)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def read(run_dir: Path) -> RunFolder:
    """Read a run folder. Raises UserError if it has no readable run.json."""
    if not (run_dir / "run.json").is_file():
        raise UserError(
            f"{run_dir} is not a run folder: it has no run.json.",
            remedy="lite-align runs lists the runs of this folder.",
        )
    run = json_object(run_dir / "run.json", "lite-align runs lists the runs of this folder.")
    return RunFolder(
        run_dir,
        run,
        metrics=lines(run_dir / "metrics.jsonl"),
        held_out=lines(run_dir / "held_out.jsonl"),
        answers=lines(run_dir / "answers.jsonl"),
        samples=lines(run_dir / "samples.jsonl"),
        evaluation=_if_there(run_dir / "eval.json"),
        gates=_if_there(run_dir / "gates.json"),
        promotion=_if_there(run_dir / "promotion.json", verb="promote"),
    )


def _if_there(path: Path, verb: str = "eval") -> Record:
    return json_object(path, f"Run lite-align {verb} again.") if path.exists() else {}


def json_object(path: Path, remedy: str) -> Record:
    """The object of a JSON file. Raises UserError if it cannot be read or is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read.", details=[str(error)], remedy=remedy) from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: an object was expected.", remedy=remedy)
    return found


def lines(path: Path) -> list[Record]:
    """Objects of a JSONL file. A last line cut off by a crash is left out; any other bad line is an error."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows: list[Record] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise UserError(
                f"{path}:{number}: not JSON ({error}).", remedy="The run wrote it; resume or repeat it."
            ) from error
        if isinstance(row, dict):
            rows.append(row)
    return rows
