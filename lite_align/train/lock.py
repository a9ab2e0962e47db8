"""One process at a time in a run folder: a flock, which the kernel takes back however the process ends."""

import fcntl
import json
import os
import socket
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from lite_align.errors import RunInUse
from lite_align.train import files

LOCK = ".lock"
_TRIES, _WAIT = 5, 0.05


def now() -> str:
    """The time in UTC to the second, as run folders write it: `2026-01-31T12:00:00+00:00`."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class FolderLock:
    """An exclusive lock on a run folder, held until `release` or the end of the process."""

    descriptor: int

    @classmethod
    def acquire(cls, folder: Path, name: str = LOCK) -> Self:
        """Lock the folder and write who holds it into the file `name`, which stays there for good.

        Raises:
            RunInUse: another process holds it; names that process.
            UserError: the folder cannot be written.
        """
        with files.explained(folder):
            descriptor = files.open_locked(folder / name)
            try:
                _lock(descriptor, folder, name)
                owner = files.dump_json({"pid": os.getpid(), "host": socket.gethostname(), "started": now()})
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, owner, 0)
            except BaseException:
                os.close(descriptor)
                raise
        return cls(descriptor)

    def release(self) -> None:
        """Give the folder free."""
        os.close(self.descriptor)


def _lock(descriptor: int, folder: Path, name: str) -> None:
    for left in reversed(range(_TRIES)):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            # `is_live` in another process holds the lock for an instant, a run holds it for good.
            if left == 0:
                raise in_use(folder, name) from None
            time.sleep(_WAIT)


def in_use(folder: Path, name: str = LOCK) -> RunInUse:
    """The error for a folder that another process holds, with its pid, host and start as the lock has them."""
    try:
        owner = json.loads((folder / name).read_bytes())
        who = f"process {owner['pid']} on {owner['host']}, since {owner['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process"
    return RunInUse(
        f"{folder} is in use by {who}.",
        remedy="Wait for that run, stop it (Ctrl-C there saves a checkpoint), or choose another --out.",
    )


def is_live(folder: Path) -> bool:
    """Whether a process holds the run folder now; changes nothing."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
