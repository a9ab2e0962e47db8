"""Gates as a command has them: judged, written beside the figures, shown, and turned into an exit code."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from lite_align.errors import GateFailed
from lite_align.evaluate import gates
from lite_align.evaluate.figures import Figures
from lite_align.evaluate.gates import Gate, Outcome
from lite_align.evaluate.statistics import Interval
from lite_align.train import files
from lite_align.view import View, number

FILE = "gates.json"


def settle(wanted: Sequence[Gate], figures: Figures, folder: Path, view: View) -> list[Outcome]:
    """Judge gates, write gates.json into a folder, and show them."""
    outcomes = gates.judge(wanted, figures)
    write(outcomes, folder)
    show(outcomes, view)
    return outcomes


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """0 if every gate passed, as where there is none, else 3."""
    return 0 if gates.passed(outcomes) else GateFailed.exit_code


def write(outcomes: Sequence[Outcome], folder: Path) -> None:
    """Write gates.json."""
    record = {
        "schema": 1,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "gates": [outcome.record() for outcome in outcomes],
    }
    with files.explained(folder / FILE):
        files.replace(folder / FILE, files.dump_json(record, indent=1))


def show(outcomes: Sequence[Outcome], view: View) -> None:
    """A table of gates, and the verdict on them."""
    rows = [(one.gate, _measured(one.measured), one.verdict, one.why) for one in outcomes]
    view.table("Gates", ("gate", "measured [95 %]", "verdict", "why"), rows)
    counts = {
        verdict: sum(one.verdict == verdict for one in outcomes)
        for verdict in ("failed", "too little evidence")
    }
    told = [f"{count} {verdict}" for verdict, count in counts.items() if count]
    view.section("gates", f"{', '.join(told)}: not passed." if told else f"All {len(outcomes)} passed.")


def _measured(interval: Interval | None) -> str:
    if interval is None:
        return "–"
    return f"{number(interval.value)} [{number(interval.low)}, {number(interval.high)}]"
