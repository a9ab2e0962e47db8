"""Training verbs run in this process on a tiny model, for the tests of what they leave and say."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lite_align.recipe import load
from lite_align.stages import training
from lite_align.stages.command import CommandOptions
from lite_align.train.record import read_record
from lite_align.view import View
from tests.stages import small

ROWS = small.rows(24)
SETS = (
    "train.max_steps=4",
    "train.batch_size=4",
    "train.learning_rate=0.01",
    "train.save_steps=2",
    "train.eval_steps=2",
    "data.held_out=0.25",
    "loss.beta=0.5",
)


@dataclass(frozen=True)
class Done:
    """A command that has ended: its run folder, and what it printed."""

    path: Path | None
    out: str

    @property
    def record(self) -> dict[str, Any]:
        assert self.path is not None
        return read_record(self.path)

    def lines(self, name: str) -> list[dict[str, Any]]:
        assert self.path is not None
        return [json.loads(line) for line in (self.path / name).read_text(encoding="utf-8").splitlines()]


def dpo(tiny: Path, folder: Path, *sets: str, json_only: bool = False, **command: Any) -> Done:
    """Train on `ROWS` in a folder; a setting given twice counts as given here."""
    data = folder / "rows.jsonl"
    if not data.exists():
        small.write(data, ROWS)
    given = {text.partition("=")[0] for text in sets}
    both = [*sets, *(text for text in SETS if text.partition("=")[0] not in given)]
    resolved = load("dpo", data=str(data), flags={"model.name": str(tiny)}, sets=both)
    out = io.StringIO()
    view = View(json=json_only, file=out, errors=io.StringIO())
    options = {"out": folder / "out", "command": "lite-align dpo rows.jsonl", **command}
    path = training.train(resolved, CommandOptions(**options), view)
    return Done(path, out.getvalue())
