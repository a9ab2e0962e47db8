"""Rows from files, folders and the hub, each with the place it came from; nothing is guessed or inferred."""

import difflib
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from lite_align.data.readers import READERS, Part, add_objects, refuse_head
from lite_align.data.strict_json import Json, excerpt
from lite_align.data.types import Source
from lite_align.errors import DataError, UserError

Row = dict[str, Json]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?::[\w.\[\]:%-]+)?")
_HUB_FORMATS = (
    "parquet",
    "json",
    "csv",
    "arrow",
    "cache",
)  # `cache`: tables that `datasets` prepared earlier


@dataclass(frozen=True)
class RawTable:
    """Rows as they stand in the source.

    `name` is what the user typed, `rows` pairs each row with its place, `notes` says what was normalised or
    skipped, `sha256` identifies the content. Places are unique within a table.
    """

    name: str
    rows: list[tuple[Source, Row]]
    notes: list[str]
    sha256: str


def read(path: str, *, skip_bad: int = 0) -> RawTable:
    """Read every row of a file, of all data files in a folder, or of a hub dataset `owner/name[:split]`.

    Up to `skip_bad` unreadable rows are left out and named in the notes; the default leaves none out.

    Raises:
        DataError: nothing there, no rows, or rows that cannot be read (all of them listed).
        UserError: the hub cannot be reached or has no such dataset.
    """
    require_there(path)
    local = Path(path)
    if not _is_there(local):
        return _table(path, [_read_hub(path)], [], skip_bad)
    parts = [_read_file(file) for file in _files_of(local)]
    notes = _folder_notes(parts) if local.is_dir() else []
    return _table(path, parts, notes, skip_bad)


def require_there(path: str) -> None:
    """Refuse a path where `read` finds no file; whether the hub has a dataset is not asked.

    Raises:
        DataError: nothing there, or a folder without data files.
    """
    local = Path(path)
    if _is_there(local):
        _files_of(local)
    elif not _looks_like_hub_id(path):
        raise _missing(path)


def _table(name: str, parts: list[Part], notes: list[str], skip_bad: int) -> RawTable:
    problems = [problem for part in parts for problem in part.problems]
    rows = [row for part in parts for row in part.rows]
    notes = [*notes, *(note for part in parts for note in part.notes)]
    if len(problems) > skip_bad:
        total = len(rows) + len(problems)
        rows_word = "row" if total == 1 else "rows"
        raise DataError(
            f"{len(problems):,} of {total:,} {rows_word} in {name} cannot be read",
            details=problems,
            remedy=f"Mend them, or write a cleaned copy with: lite-align check {name} --fix clean.jsonl",
        )
    if not rows:
        raise DataError(
            f"{name}:1 no rows: {'all were skipped' if problems else 'the file is empty'}",
            remedy="Give a file with one row per example; data_samples/ has one for every format.",
        )
    if problems:
        skipped = "line" if len(problems) == 1 else "lines"
        notes.append(f"skipped {len(problems)} unreadable {skipped}: " + " · ".join(problems))
    sha256 = parts[0].sha256
    if len(parts) > 1:
        sha256 = hashlib.sha256(
            "".join(f"{Path(part.name).name}\0{part.sha256}\n" for part in parts).encode()
        ).hexdigest()
    return RawTable(name, rows, notes, sha256)


# Files and folders


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that the file system refuses (too long, a loop of links, no permission)
        return False


def _files_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    try:
        entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{path}:1 the folder cannot be read: {error.strerror}") from None
    files = [entry for entry in entries if entry.suffix.lower() in READERS and entry.is_file()]
    if not files:
        folders = ", ".join(entry.name for entry in entries if entry.is_dir()) or "none"
        raise DataError(
            f"{path}:1 the folder holds no data files ({', '.join(READERS)})",
            remedy=f"Name a file, or a folder that holds some. Folders in it: {folders}.",
        )
    return files


def _folder_notes(parts: list[Part]) -> list[str]:
    listed = ", ".join(f"{Path(part.name).name} ({len(part.rows):,} rows)" for part in parts)
    notes = [f"{len(parts)} files read as one table: {listed}"]
    suffixes = sorted({Path(part.name).suffix.lower() for part in parts})
    if len(suffixes) > 1:
        notes.append(f"the folder mixes {' and '.join(suffixes)} files; all of them are used")
    return notes


def _read_file(path: Path) -> Part:
    suffix = path.suffix.lower()
    if suffix not in READERS:
        known = ", ".join(READERS)
        raise DataError(
            f"{path}:1 the file type {suffix or '(none)'} is not known",
            remedy=f"Give one of {known}. One JSON object a line in a .jsonl file is the simplest.",
        )
    if not path.is_file():
        raise DataError(f"{path}:1 is not a regular file", remedy="Copy its content to a .jsonl file first.")
    part = Part(str(path))
    try:
        with path.open("rb") as stream:
            if refuse_head(stream, part, suffix):
                return part
            READERS[suffix](stream, part)
            stream.seek(0)
            part.sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(
            f"{path}:1 cannot be read: {error.strerror or error}",
            remedy="Check the name and the permissions.",
        ) from None
    return part


def _missing(path: str) -> DataError:
    folder = Path(path).parent
    names: list[str] = []
    if _is_there(folder) and folder.is_dir():
        candidates = [
            entry.name for entry in folder.iterdir() if entry.is_dir() or entry.suffix.lower() in READERS
        ]
        names = difflib.get_close_matches(Path(path).name, candidates, n=1, cutoff=0.5)
    nearest = f"Did you mean {folder / names[0]}? " if names else ""
    where = "there is no such file or folder"
    if not (_is_there(folder) and folder.is_dir()):
        where = f"there is no folder {folder}"
    return DataError(
        f"{path or '(empty path)'}: {where}",
        remedy=f"{nearest}DATA is a {', '.join(READERS)} file, a folder of them, or a hub dataset "
        "owner/name[:split].",
    )


# Hub


def _looks_like_hub_id(path: str) -> bool:
    if not _HUB_ID.fullmatch(path):
        return False
    name = Path(path.split(":")[0])
    return name.suffix.lower() not in READERS and not _is_there(name.parent)


def _read_hub(path: str) -> Part:
    """Load a hub dataset of plain tables; `datasets` runs no scripts, pickled formats are refused here."""
    import datasets
    import huggingface_hub
    from datasets.exceptions import DatasetsError

    huggingface_hub.logging.set_verbosity_error()  # it would report each of its retries

    name, _, split = path.partition(":")
    try:
        builder = datasets.load_dataset_builder(name)
        if builder.name not in _HUB_FORMATS:
            raise UserError(
                f"the hub dataset {name} holds {builder.name} files, not tables of text",
                remedy=f"Datasets of {', '.join(_HUB_FORMATS)} files can be read.",
            )
        rows: list[object] = datasets.load_dataset(name, split=split or "train").to_list()
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = excerpt(str(error).strip().split("\n")[0], 200)
        raise UserError(
            f"the hub dataset {name} cannot be loaded: {reason or type(error).__name__}",
            remedy="Check the name, the split (owner/name:split) and the connection, or download its files "
            "and give their path.",
        ) from None
    part = Part(path)
    add_objects(part, rows)
    content = json.dumps(rows, sort_keys=True, default=str)
    part.sha256 = hashlib.sha256(content.encode()).hexdigest()
    return part
