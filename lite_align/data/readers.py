r"""One reader for each file type: rows with their lines, every problem as `file:line what is wrong`.

JSONL goes through our own line reader: lines end at `\n` bytes only, text is strict UTF-8, nothing is
inferred, and all bad lines are noted, not only the first.
"""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from lite_align.data.strict_json import (
    MAX_BYTES,
    Json,
    Malformed,
    excerpt,
    inspect,
    kind_of,
    parse,
    parse_at,
    skip_at,
)
from lite_align.data.types import Source

_ENCODINGS = {
    b"\xff\xfe\x00\x00": "UTF-32 text",
    b"\x00\x00\xfe\xff": "UTF-32 text",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"\x1f\x8b": "compressed (gzip)",
    b"PK\x03\x04": "compressed (zip)",
    b"\x28\xb5\x2f\xfd": "compressed (zstd)",
    b"PAR1": "a parquet file",
}


@dataclass
class Part:
    """What one file gave: good rows, problems as `file:line what`, notes."""

    name: str
    sha256: str = ""
    rows: list[tuple[Source, dict[str, Json]]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def problem(self, line: int, what: str, text: str = "") -> None:
        """Note what is wrong at a line, with the beginning of `text`."""
        shown = f": {excerpt(text)}" if text else ""
        self.problems.append(f"{self.name}:{line} {what}{shown}")

    def add(self, line: int, value: Json, text: str) -> None:
        """Take a parsed value as a row, or note why it cannot be one."""
        if not isinstance(value, dict):
            self.problem(line, f"is {kind_of(value)}; one object with named columns is expected", text)
        elif not value:
            self.problem(line, "is an object without columns", text)
        else:
            self.rows.append((Source(self.name, line), value))


def refuse_head(stream: BinaryIO, part: Part, suffix: str) -> bool:
    """Name a file that is not UTF-8 text once, instead of once a line."""
    head = stream.read(4)
    stream.seek(0)
    if suffix == ".parquet":
        return False
    found = next((name for mark, name in _ENCODINGS.items() if head.startswith(mark)), None)
    if found is None and len(head) >= 2 and head.count(b"\0") >= 1:
        found = "UTF-16 or binary (NUL bytes)"
    if found is None:
        return False
    remedy = "unpack it first" if found.startswith("compressed") else "save it as UTF-8 text"
    if found == "a parquet file":
        remedy = "give it the ending .parquet"
    part.problem(1, f"the file is {found}; {remedy} (byte 0)", head.decode("latin-1"))
    return True


def _decode(raw: bytes) -> str:
    """Decode strict UTF-8; a byte that is not is named with its place."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        raise Malformed(f"byte 0x{byte:02x} at byte offset {error.start} is not UTF-8") from None


def _lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield each line with its number, without its line end; an over-long one is cut after MAX_BYTES + 2."""
    number = 0
    while raw := stream.readline(MAX_BYTES + 2):
        number += 1
        line = raw.removesuffix(b"\n")
        if len(line) > MAX_BYTES:
            while raw and not raw.endswith(b"\n"):
                raw = stream.readline(MAX_BYTES)
        yield number, line


def _read_jsonl(stream: BinaryIO, part: Part) -> None:
    carriage_returns = blank = 0
    for number, raw in _lines(stream):
        if number == 1:
            raw = _without_mark(raw, part)
        if raw.endswith(b"\r"):
            carriage_returns += 1
            raw = raw[:-1]
        if not raw.strip():
            blank += 1
            continue
        if number == 1 and raw.lstrip().startswith(b"[") and _is_array(raw, part):
            return
        _add_line(part, number, raw)
    if carriage_returns:
        part.notes.append(f"{part.name}: Windows line ends (CRLF) read as \\n")
    if blank:
        part.notes.append(f"{part.name}: {blank} blank {'line' if blank == 1 else 'lines'} passed over")


def _add_line(part: Part, number: int, raw: bytes) -> None:
    if len(raw) > MAX_BYTES:
        part.problem(number, f"is longer than {MAX_BYTES // 2**20} MiB", _shown(raw))
        return
    try:
        text = _decode(raw)
        value = parse(text)
    except Malformed as problem:
        part.problem(number, str(problem), _shown(raw))
    else:
        part.add(number, value, text)


def _without_mark(raw: bytes, part: Part) -> bytes:
    if raw.startswith(b"\xef\xbb\xbf"):
        part.notes.append(f"{part.name}: byte order mark removed")
        return raw[3:]
    return raw


def _is_array(first_line: bytes, part: Part) -> bool:
    """Name a JSON array under a .jsonl name once, instead of once a line."""
    try:
        value = parse(_decode(first_line))
    except Malformed:
        value = [{}]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        part.problem(1, "the file is one JSON array; give it the ending .json", _shown(first_line))
        return True
    return False


def _shown(raw: bytes) -> str:
    return raw[:400].decode("utf-8", "replace")


def _read_json(stream: BinaryIO, part: Part) -> None:
    raw = _without_mark(stream.read(), part)
    text = _decode_file(raw, part)
    start = len(text) - len(text.lstrip())
    if text.startswith("[", start):
        _read_array(text, part)
    elif text.startswith("{", start):
        _read_json_object(text, start, raw, part)
    elif text.strip():
        part.problem(1, "the file is not a JSON array of objects (column 1)", text)


def _decode_file(raw: bytes, part: Part) -> str:
    """Decode a whole file; a byte that is not UTF-8 is noted with its line, and nothing is read."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        what = f"byte 0x{raw[error.start]:02x} at byte offset {error.start} of the file is not UTF-8"
        part.problem(line, what, _shown(raw[max(0, error.start - 30) :]))
        return ""


def _read_json_object(text: str, start: int, raw: bytes, part: Part) -> None:
    """Read a .json file that begins with an object: JSONL under another name, or a refused wrapper."""
    first_line, _, others = text[start:].partition("\n")
    try:
        value = parse(first_line)
        is_wrapper = not others.strip() and isinstance(value, dict) and _list_of_rows(value) is not None
    except Malformed:
        try:
            value, end = parse_at(text, start)
        except Malformed as problem:
            _note_syntax(text, problem, start, part)
            return
        rest = _skip_space(text, end)
        if rest < len(text):
            _note_syntax(text, Malformed("objects without a list around them", rest + 1), rest, part)
            return
        is_wrapper = True
    if not is_wrapper:
        part.notes.append(f"{part.name}: one object a line, read as JSONL")
        _read_jsonl(io.BytesIO(raw), part)
        return
    key = _list_of_rows(value) if isinstance(value, dict) else None
    remedy = "write a list of objects, or one object a line in a .jsonl file"
    if key is not None:
        shown = excerpt(key, 40)
        remedy = (
            f'the rows under "{shown}" must be the file itself: python -c "import json; json.dump(json.load('
        )
        remedy += f"open('{part.name}'))['{shown}'], open('rows.json', 'w'))\""
    part.problem(1, f"the file is one object, not a list of rows (column 1); {remedy}")


def _list_of_rows(value: dict[str, Json]) -> str | None:
    """Return the key whose value is a list of rows, if the object looks like a wrapper around one."""
    for key in ("data", "rows", "train", "examples", "instances"):
        if isinstance(value.get(key), list):
            return key
    return None


def _read_array(text: str, part: Part) -> None:
    """Read a JSON array element by element, so that each has its line; all bad elements are noted."""
    position, previous, line = text.index("[") + 1, 0, 1
    found: list[tuple[int, int, Json | Malformed]] = []  # line, position, value
    while True:
        position = _skip_space(text, position)
        if text[position : position + 1] == "]" and not found:
            break
        line += text.count("\n", previous, position)
        previous = position
        try:
            value, end = parse_at(text, position)
            if end - position > MAX_BYTES:
                raise Malformed(f"is longer than {MAX_BYTES // 2**20} MiB")
        except Malformed as problem:
            value, end = problem, skip_at(text, position)
            if end < 0:
                _note_syntax(text, problem, position, part)
                break
        found.append((line, position, value))
        position = _skip_space(text, end)
        if text[position : position + 1] != ",":
            break
        position += 1
    _check_array_end(text, position, part)
    _number_rows(text, found, part)


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _note_syntax(text: str, problem: Malformed, position: int, part: Part) -> None:
    place = min((problem.column or position + 1) - 1, len(text))
    begin = text.rfind("\n", 0, place) + 1
    part.problem(
        text.count("\n", 0, place) + 1,
        f"{problem.what} (column {place - begin + 1})",
        text[max(begin, place - 30) :],
    )


def _check_array_end(text: str, position: int, part: Part) -> None:
    if part.problems:
        return
    if text[position : position + 1] != "]":
        _note_syntax(
            text, Malformed("the array ends too early or lacks a comma", position + 1), position, part
        )
    elif (rest := _skip_space(text, position + 1)) < len(text):
        _note_syntax(text, Malformed("holds text after the array", rest + 1), rest, part)


def _number_rows(text: str, found: list[tuple[int, int, Json | Malformed]], part: Part) -> None:
    """Number rows by the line they begin on, or by position where several begin on one line."""
    lines = [line for line, _, _ in found]
    by_line = len(set(lines)) == len(lines)
    if not by_line:
        part.notes.append(f"{part.name}: several rows on a line; rows are numbered from 1")
    for number, (line, position, value) in enumerate(found, 1):
        place, shown = (line if by_line else number), text[position : position + 200]
        if isinstance(value, Malformed):
            column = (
                ""
                if value.column is None
                else f" (column {value.column - text.rfind(chr(10), 0, value.column) - 1})"
            )
            part.problem(place, f"{value.what}{column}", shown)
        else:
            part.add(place, value, shown)


def _read_csv(stream: BinaryIO, part: Part) -> None:
    text = _decode_file(_without_mark(stream.read(), part), part)
    if not text.strip():
        return
    # newline="\n" keeps \r inside quoted text and makes line numbers those of an editor
    reader = csv.reader(io.StringIO(text, newline="\n"), strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            part.problem(line, f"is not CSV: {error}")
            if reader.line_num < line:
                return
            continue
        if cells is None:
            break
        if not cells:
            continue
        if header is None:
            if not _header_is_good(cells, part):
                return
            header = cells
        else:
            _add_record(part, line, header, cells)


def _header_is_good(cells: list[str], part: Part) -> bool:
    duplicates = sorted({cell for cell in cells if cells.count(cell) > 1})
    if duplicates:
        part.problem(1, f"names the column {excerpt(duplicates[0], 40) or '(empty)'} twice", ",".join(cells))
    elif "" in (cell.strip() for cell in cells):
        part.problem(
            1, f"has no name for column {cells.index('') + 1 if '' in cells else 1}", ",".join(cells)
        )
    else:
        return True
    return False


def _add_record(part: Part, line: int, header: list[str], cells: list[str]) -> None:
    if len(cells) != len(header):
        part.problem(line, f"has {len(cells)} cells; the header names {len(header)} columns", ",".join(cells))
        return
    for name, cell in zip(header, cells, strict=True):
        if "\0" in cell:
            part.problem(line, f'column "{name}" holds a NUL character (U+0000)', ",".join(cells))
            return
        if cell.startswith("[{") and cell.endswith("}]") and ("role" in cell or "from" in cell):
            part.problem(line, f'column "{name}" holds messages written as text; CSV cannot, use JSONL', cell)
            return
    part.rows.append((Source(part.name, line), dict(zip(header, cells, strict=True))))


def _read_parquet(stream: BinaryIO, part: Part) -> None:
    import pyarrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(stream).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        part.problem(1, f"is not a readable parquet file: {excerpt(str(error), 120)}")
        return
    add_objects(part, rows)


def add_objects(part: Part, rows: Sequence[object]) -> None:
    """Take rows that another library parsed, numbered from 1, if they hold JSON data only."""
    for number, row in enumerate(rows, 1):
        try:
            value = inspect(row)
        except Malformed as problem:
            part.problem(number, str(problem), str(row))
        else:
            part.add(number, value, str(row)[:200])


READERS: dict[str, Callable[[BinaryIO, Part], None]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
