"""What `runs`, `report`, `losses` and `doctor` show."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from lite_align.errors import UserError
from lite_align.view import View

if TYPE_CHECKING:
    from lite_align.train.record import RunSummary


def show_losses(view: View) -> None:
    """List every loss of the dpo verb: formula, options with defaults, source, what it learns from."""
    from lite_align.losses.catalogue import describe

    for loss in describe():
        reference = "" if loss.reference == "yes" else " · needs no reference"
        thumbs = " · learns from thumbs" if loss.rows == "thumbs" else ""
        view.section(loss.name, loss.formula, f"{loss.options} · {loss.source}{reference}{thumbs}")
    view.section("", "Choose one with --set loss.name=ipo, its options with --set loss.options.margin=0.5.")


def show_runs(folder: Path, view: View) -> None:
    """List the runs of a folder, oldest first, each with those that continue it below it."""
    from lite_align.train.record import list_runs

    summaries = list_runs(folder)
    rows = [
        (
            f"{branch}{run.folder.relative_to(folder)}",
            run.stage,
            run.status,
            run.model,
            run.data,
            run.started[:16].replace("T", " "),
            run.verdict or "–",
        )
        for branch, run in family(summaries)
    ]
    if rows:
        view.table(
            f"Runs in {folder}", ("run", "stage", "status", "model", "data", "started (UTC)", "verdict"), rows
        )
    else:
        view.section("runs", f"none in {folder}", note="lite-align dpo data.jsonl")
    view.json_record({"runs": [{**asdict(run), "folder": str(run.folder)} for run in summaries]})


def family(runs: "Sequence[RunSummary]") -> "list[tuple[str, RunSummary]]":
    """The runs as a tree, each with the branch that is drawn before its name.

    A run stands below the one whose adapter it started from, found by its hash, wherever that folder is now.
    """
    left = {adapter: run for run in reversed(runs) for adapter in run.adapters}
    children: dict[Path | None, list[RunSummary]] = {}
    for run in runs:
        parent = left.get(run.parent_adapter)
        known = parent is not None and parent.folder != run.folder
        children.setdefault(parent.folder if known and parent else None, []).append(run)

    def drawn(run: "RunSummary", stem: str, branch: str, below: str) -> "Iterator[tuple[str, RunSummary]]":
        yield stem + branch, run
        own = children.get(run.folder, [])
        for number, child in enumerate(own, 1):
            last = number == len(own)
            yield from drawn(child, stem + below, "└─ " if last else "├─ ", "   " if last else "│  ")

    return [entry for run in children.get(None, []) for entry in drawn(run, "", "", "")]


def write_report(folders: Sequence[Path], out: Path | None, view: View) -> None:
    """Write the page of a run, of several side by side, of a comparison or of a loop, and say where it is.

    Raises:
        UserError: a folder cannot be read or is given twice, or there is no place for the page.
    """
    from lite_align.evaluate import report
    from lite_align.evaluate.pages import compared, rounds, side_by_side

    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        what = "is a folder" if out.is_dir() else "is in a folder that does not exist"
        raise UserError(f"--out {out} {what}.", remedy="Give the name of an HTML file.")
    if len(folders) > 1:
        path = side_by_side.write(folders, out)
    elif compared.is_comparison(folders[0]):
        path = compared.write(folders[0], out)
    elif rounds.is_loop(folders[0]):
        path = rounds.write(folders[0], out)
    else:
        path = report.write(folders[0], out)
    view.section("saved", str(path))


def show_doctor(view: View) -> int:
    """Show every check with what to mend; 0 if a run can start, else 2."""
    from lite_align.train import doctor

    checks = doctor.examine(Path.cwd())
    for _, group in groupby(checks, key=lambda check: check.label if check.grade == "ok" else check):
        members = list(group)
        lines = [" · ".join(check.text for check in members), members[0].remedy]
        view.section(members[0].label, *filter(None, lines), note=members[0].grade)
    stopping = [check.label for check in checks if check.grade == "stop"]
    mending = [check.label for check in checks if check.grade == "mend"]
    if stopping:
        verdict = f"No run can start: mend {', '.join(stopping)} first."
    else:
        verdict = "A dpo run can start." + (f" Worth mending: {', '.join(mending)}." if mending else "")
    view.section("verdict", verdict)
    view.json_record({"can_start": not stopping, "checks": [asdict(check) for check in checks]})
    return 2 if stopping else 0
