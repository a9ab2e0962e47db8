"""A project folder: which run is released, by whom and why, and how often its sealed prompts were used. No torch.

The truth is `promotions.jsonl`, to which lines are only ever added; `current.json` is written from it for other
programs, and again whenever the folder is opened, so that a crash between the two leaves nothing wrong.
"""

import getpass
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from lite_align.errors import UserError
from lite_align.train import files
from lite_align.train.lock import FolderLock

LOG, CURRENT, LOCK = "promotions.jsonl", "current.json", "project.lock"

Kind = Literal["sealed", "used", "promoted", "refused", "rolled back"]


@dataclass(frozen=True)
class Event:
    """What happened in a project.

    Attributes:
        kind: "sealed" a file of prompts was set apart; "used" it was looked at; "promoted", "refused", "rolled back".
        time: ISO 8601, UTC.
        who: did it.
        why: in their words.
        run: that it is about; the one that is current again after a roll-back.
        adapter: sha256 of its adapter.
        file: the sealed file.
        sha256: of that file.
        gates: what was judged, see `gates.Outcome.record`.
    """

    kind: Kind
    time: str
    who: str
    why: str = ""
    run: str = ""
    adapter: str = ""
    file: str = ""
    sha256: str = ""
    gates: Sequence[dict[str, Any]] = ()


def event(kind: Kind, who: str | None, **facts: Any) -> Event:
    """An event of now; who is the user of this machine unless told otherwise."""
    return Event(kind, datetime.now(UTC).isoformat(timespec="seconds"), who or getpass.getuser(), **facts)


class Project:
    """A project folder that is open, and locked.

    Attributes:
        folder: where it is.
        events: all of them, the oldest first.
    """

    def __init__(self, folder: Path, events: list[Event]) -> None:
        self.folder, self.events = folder, events

    def add(self, new: Event) -> None:
        """Append an event, safe against a loss of power, and move the pointer with it."""
        with files.explained(self.folder / LOG):
            files.append(self.folder / LOG, files.dump_json(asdict(new)), sync=True)
        self.events.append(new)
        self.point()

    def point(self) -> None:
        """Write current.json as the events say."""
        current = self.current
        known = None if current is None else asdict(replace(current, gates=()))
        with files.explained(self.folder / CURRENT):
            files.replace(self.folder / CURRENT, files.dump_json(known, indent=1))

    @property
    def released(self) -> list[Event]:
        """The promotions that hold, the last one on top."""
        stack: list[Event] = []
        for one in self.events:
            if one.kind == "promoted":
                stack.append(one)
            elif one.kind == "rolled back":
                stack.pop()
        return stack

    @property
    def current(self) -> Event | None:
        """The promotion that holds; None where there is none."""
        return self.released[-1] if self.released else None

    @property
    def sealed(self) -> Event | None:
        """The file of prompts that was set apart last."""
        return next((one for one in reversed(self.events) if one.kind == "sealed"), None)

    @property
    def uses(self) -> int:
        """How often the sealed file was looked at."""
        sealed = self.sealed
        return sum(
            one.kind == "used" and sealed is not None and one.sha256 == sealed.sha256 for one in self.events
        )


@contextmanager
def opened(folder: Path, *, create: bool = False) -> Iterator[Project]:
    """Open and lock a project folder.

    Args:
        folder: where it is.
        create: whether it may be new.

    Raises:
        UserError: there is no project, or its log cannot be read.
        RunInUse: another process has it open.
    """
    if not create and not (folder / LOG).is_file():
        raise UserError(
            f"{folder} is no project: nothing was promoted there.",
            remedy="lite-align promote RUN --project DIR --final FILE begins one.",
        )
    if not folder.is_dir():
        files.make_folder(folder)
    lock = FolderLock.acquire(folder, LOCK)
    try:
        project = Project(folder, _read(folder / LOG))
        if project.events:
            project.point()
        yield project
    finally:
        lock.release()


def _read(path: Path) -> list[Event]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(Event(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{path}:{number}: this is no event of a project ({error}).",
                remedy="If it is the last line, cut off by a crash, delete it: what it was about did not happen.",
            ) from error
    return found
