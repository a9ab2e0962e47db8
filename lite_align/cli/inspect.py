"""`losses`, `runs`, `report` and `doctor`: commands that look and train nothing."""

from pathlib import Path
from typing import Annotated

import typer

from lite_align.cli import options


def losses(debug: options.Debug = False) -> None:
    """List the preference losses."""
    from lite_align.stages.overview import show_losses
    from lite_align.view import View

    show_losses(View())


def runs(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where the runs are.")] = Path("runs"),
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """List the runs of a folder."""
    from lite_align.stages.overview import show_runs
    from lite_align.view import View

    show_runs(folder, View(json=json))


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="RUN…", help="A run, several runs, or a folder of compare or loop."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="The page [default: in the run, or here for several]."),
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Write report.html of a run again, or put several runs on one page, side by side."""
    from lite_align.stages.overview import write_report
    from lite_align.view import View

    write_report(folders, out, View())


def doctor(json: options.Json = False, debug: options.Debug = False) -> None:
    """Say whether a run can start here, and what to mend if not."""
    from lite_align.stages.overview import show_doctor
    from lite_align.view import View

    raise typer.Exit(show_doctor(View(json=json)))
