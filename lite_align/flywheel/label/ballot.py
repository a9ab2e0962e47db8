"""The file of votes: append-only, every row synced before it counts, and what it says of each annotator."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from lite_align.data.strict_json import Malformed, parse
from lite_align.data.votes import Vote
from lite_align.errors import DataError, LiteAlignError, RunInUse
from lite_align.train import files
from lite_align.train.lock import FolderLock


class Given(NamedTuple):
    """A vote and the id of what it is on."""

    comparison: str
    vote: Vote


class Tally:
    """What votes come to, one after the other.

    A vote with the choice "none" takes back the annotator's last vote on that comparison. Where the second of two was
    taken back, none counts (as in `latest`) until the comparison is asked again, which is next.

    Attributes:
        counting: the vote that counts, by comparison and annotator.
    """

    def __init__(self, votes: Iterable[Vote] = ()) -> None:
        self.counting: dict[str, dict[str, Vote]] = {}
        self._standing: dict[str, list[Given]] = {}
        self._taken_back: dict[str, list[Given]] = {}
        for vote in votes:
            self.count(vote)

    @property
    def annotators(self) -> tuple[str, ...]:
        """Who voted, in the order of their first votes."""
        return tuple(self._standing)

    def standing(self, annotator: str) -> Sequence[Given]:
        """The votes of an annotator that were not taken back, oldest first; a repeated item has two."""
        return self._standing.get(annotator, ())

    def taken_back(self, annotator: str) -> Sequence[Given]:
        """The votes "none" after which nothing was said of the comparison again, the last one last."""
        return self._taken_back.get(annotator, ())

    def count(self, vote: Vote) -> None:
        """Take the next vote."""
        name, annotator = vote.comparison.id, vote.annotator
        standing = self._standing.setdefault(annotator, [])
        earlier = self._taken_back.get(annotator, ())
        taken_back = self._taken_back[annotator] = [given for given in earlier if given.comparison != name]
        if vote.choice != "none":
            standing.append(Given(name, vote))
            self.counting.setdefault(name, {})[annotator] = vote
            return
        self.counting.get(name, {}).pop(annotator, None)
        last = next((n for n in reversed(range(len(standing))) if standing[n].comparison == name), None)
        if last is not None:
            del standing[last]
            taken_back.append(Given(name, vote))


class Ballot:
    """A file of votes, held by one process at a time until `close`.

    Attributes:
        path: the JSONL file; it is made where there is none.
        tally: what its votes come to.
        rows: how many there are.
        set_aside: bytes of an unfinished last line that were moved to the file beside it.

    Raises:
        DataError: lines other than an unfinished last one are no votes; all of them are listed.
        RunInUse: another process has the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = _locked(path)
        try:
            votes, self.set_aside = _open(path)
        except BaseException:
            self.close()
            raise
        self.tally = Tally(votes)
        self.rows = len(votes)

    @property
    def torn_path(self) -> Path:
        """Where unfinished lines of killed processes are kept."""
        return _torn(self.path)

    def append(self, vote: Vote) -> None:
        """Write a vote and sync it; only then does it count.

        Raises:
            DiskFull, UserError: it could not be written; the file is as it was.
        """
        row = json.dumps(vote.record(), ensure_ascii=False) + "\n"
        with _explained(self.path):
            files.append(self.path, row.encode(), sync=True)
        self.rows += 1
        self.tally.count(vote)

    def close(self) -> None:
        """Give the file free."""
        self._lock.release()


def _torn(path: Path) -> Path:
    return path.with_name(path.name + ".torn")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """What the disk refuses, with a remedy that fits votes."""
    try:
        with files.explained(path):
            yield
    except RunInUse:
        raise
    except LiteAlignError as error:
        raise type(error)(
            error.what, remedy="Make room, or choose another --out; every vote saved so far is in the file."
        ) from error


def _locked(path: Path) -> FolderLock:
    try:
        with _explained(path):
            return FolderLock.acquire(path.parent, f".{path.name}.lock")
    except RunInUse as error:
        raise RunInUse(
            f"{path} is open in another lite-align label or judge.",
            details=[error.what],
            remedy="Label there (several people can open its page), stop it, or choose another --out.",
        ) from None


def _open(path: Path) -> tuple[list[Vote], int]:
    """The votes of a file and the bytes that were set aside of its last line.

    A last line without an end was cut by a kill. Where all of it is there it is kept; otherwise it is moved away, so
    that the file holds nothing but votes.
    """
    with _explained(path):
        if not path.exists():
            files.append(path, b"", sync=True)
        data = path.read_bytes()
    whole, end, rest = data.rpartition(b"\n")
    kept = whole + end
    if rest and not _is_torn(rest):
        kept, rest = kept + rest + b"\n", b""
    votes = _read(path, kept)
    if kept != data:
        with _explained(path):
            if rest:
                files.append(_torn(path), rest + b"\n", sync=True)
            files.replace(path, kept)
    return votes, len(rest)


def _read(path: Path, data: bytes) -> list[Vote]:
    votes: list[Vote] = []
    problems: list[str] = []
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        if not line.strip():
            continue
        try:
            votes.append(_vote(line))
        except (Malformed, ValueError) as error:
            problems.append(f"{path}:{number} {error}")
    if problems:
        raise DataError(
            f"{len(problems):,} lines of {path} are no votes",
            details=problems,
            remedy="Mend or remove those lines, or choose another --out; nothing was changed.",
        )
    return votes


def _is_torn(line: bytes) -> bool:
    """Whether a line is the beginning of an object, and not all of one."""
    try:
        parse(line.decode())
    except (Malformed, ValueError):
        return line.startswith(b"{")
    return False


def _vote(line: bytes) -> Vote:
    row = parse(line.decode())
    if not isinstance(row, dict):
        raise ValueError("is not an object")
    return Vote.read(row)
