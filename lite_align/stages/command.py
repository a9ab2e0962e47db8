"""What the command line tells a training stage besides the recipe. No torch here."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CommandOptions:
    """Where the run goes and how it starts; none of it changes what is learned.

    Args:
        out: run folder; None: a new one below runs/.
        resume: continue the newest unfinished run (in `out` if given).
        accept_drift: recipe keys whose change a resumed run takes on.
        dry_run: stop after the plan.
        command: the command line as typed, for the record.
    """

    out: Path | None = None
    resume: bool = False
    accept_drift: tuple[str, ...] = ()
    dry_run: bool = False
    command: str = ""
