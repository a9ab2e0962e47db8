"""Which format a table has, by a vote of all rows, and its strict conversion."""

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

from lite_align.data.formats import thumbs
from lite_align.data.formats.conversation import BadRow
from lite_align.data.formats.registry import FORMATS, Fields, Format, Kind, Problem, shapes_of
from lite_align.data.sources import RawTable
from lite_align.data.strict_json import Json
from lite_align.data.types import Pair, Ranking, Rated, Row, Source, Unused
from lite_align.errors import DataError

AGREEMENT = 0.98
Wanted = Literal["pair", "chat", "prompt", "rated", "any"]

_HOLDS: dict[Kind, tuple[str, str]] = {  # what rows of a kind are called, and the verb that takes them
    "pair": ("preference pairs", "dpo"),
    "chat": ("conversations to imitate", "sft"),
    "prompt": ("prompts without answers", "sample"),
    "rated": ("single answers with a thumb", "dpo"),
    "refused": ("rows that cannot be trained", ""),
}
_BUILT = {"dpo"}  # verbs that exist; sft and sample join them with their stages
_OPTIONAL = (
    *("category", "source", "task", "id", "margin", "weight", "system", "input", "history"),
    *("score_chosen", "score_rejected", "label"),
)


@dataclass(frozen=True)
class Detection:
    """The format of a table.

    `kind` is what `convert` returns, `share` the part of all rows that fit, `runner_up` the next format with
    its share, `votes` how many rows fit each format, `notes` what to know about the conversion.
    """

    name: str
    kind: Kind
    share: float
    runner_up: tuple[str, float] | None
    votes: dict[str, int]
    notes: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        """What the format looks like, in words."""
        return FORMATS[self.name].description


def detect(
    table: RawTable,
    *,
    wanted: Wanted = "any",
    format: str = "auto",
    mapping: Mapping[str, str] | None = None,
    pair_thumbs: bool = False,
) -> Detection:
    """Find the format of a table: each row votes for all formats that it fits, the most specific one counts.

    `format` names the format instead of a vote; `mapping` renames columns, `{"chosen": "good answer"}`. A row
    that fits no format is left to `convert`, which names it. Pairs count as thumbs, and with `pair_thumbs` thumbs as
    pairs where one prompt has both.

    Raises:
        DataError: no format fits, rows are of several formats (below 98 % agreement), the format is not supported,
            or it is not of the `wanted` kind.
    """
    rows = list(_renamed(table, mapping or {}))
    fits = _vote(rows)
    votes = Counter(name for row_fits in fits for name in row_fits)
    chosen = _named(format) if format != "auto" else _winner(table, rows, fits, wanted)
    if chosen.kind == "refused":
        _refuse(table, rows, fits, chosen)
    ranked = [(name, count / len(rows)) for name, count in votes.most_common() if name != chosen.name]
    notes = (chosen.note,) if chosen.note else ()
    if chosen.together is not None:
        notes = (*notes, chosen.together(_read_all(rows, chosen)[0]).note)
    if any(row.get("tools") for _, row in rows):
        notes = (*notes, "the tools column is not part of the trained text")
    kind = chosen.kind
    if wanted != "any" and wanted != kind:
        notes = (*notes, _taken_as(table, rows, chosen, wanted, pair_thumbs))
        kind = wanted
    elif pair_thumbs:
        notes = (*notes, "the file holds pairs already: data.pair_thumbs has nothing to do")
    return Detection(
        chosen.name, kind, votes[chosen.name] / len(rows), ranked[0] if ranked else None, dict(votes), notes
    )


def convert(
    table: RawTable,
    detection: Detection,
    mapping: Mapping[str, str] | None = None,
    *,
    every_pair: bool = False,
) -> list[Row]:
    """Convert every row by the detected format; of a ranking take one pair, or with `every_pair` all of them.

    What a format leaves out as a matter of course is among them as `Unused`.

    Raises:
        DataError: rows do not fit; all of them are listed as `file:line what is wrong`.
    """
    rows, problems = try_convert(table, detection, mapping, every_pair=every_pair)
    if problems:
        raise _misfits(table, detection.name, problems)
    return rows


def try_convert(
    table: RawTable,
    detection: Detection,
    mapping: Mapping[str, str] | None = None,
    *,
    every_pair: bool = False,
) -> tuple[list[Row], list[Problem]]:
    """Convert the rows that fit the format, and name the others (for `check --fix`)."""
    chosen = FORMATS[detection.name]
    rows, problems = read_rows(table, detection, mapping)
    if chosen.kind == "rated" and detection.kind == "pair":
        return list(thumbs.pair_up([row for row in rows if isinstance(row, Rated)])), problems
    if chosen.together is not None:
        rows = chosen.together(rows).rows
    converted = [pair for row in rows for pair in _pairs_of(row, every_pair)]
    if chosen.kind == "pair" and detection.kind == "rated":
        taken_apart = thumbs.take_apart(row for row in converted if isinstance(row, Pair))
        return [*taken_apart, *(row for row in converted if isinstance(row, Unused))], problems
    return converted, problems


def read_rows(
    table: RawTable, detection: Detection, mapping: Mapping[str, str] | None = None
) -> tuple[list[Row], list[Problem]]:
    """Each row by the detected format alone, before any are put together, and those that do not fit it."""
    return _read_all(_renamed(table, mapping or {}), FORMATS[detection.name])


def _pairs_of(row: Row, every_pair: bool) -> Sequence[Row]:
    """A row as it is, or a ranking as its pairs."""
    if isinstance(row, Ranking):
        return row.pairs if every_pair else row.pairs[:1]
    return (row,)


_Rows = Iterable[tuple[Source, Mapping[str, Json]]]


def _renamed(table: RawTable, mapping: Mapping[str, str]) -> _Rows:
    """Yield the rows with columns renamed.

    Raises:
        DataError: no row has a column of the mapping, or the new name means nothing to any format.
    """
    if not mapping:
        return table.rows
    columns = list(dict.fromkeys(name for _, row in table.rows for name in row))
    known = sorted(
        {name for entry in FORMATS.values() for names in entry.columns for name in names.split("|")}
    )
    details = [
        *(
            f'--map {new}={old}: no column "{old}"{_nearest(old, columns)}; columns: {", ".join(columns)}'
            for new, old in mapping.items()
            if old not in columns
        ),
        *(
            f'--map {new}={old}: "{new}" is not a column of any format{_nearest(new, [*known, *_OPTIONAL])}'
            for new, old in mapping.items()
            if new not in known and new not in _OPTIONAL
        ),
    ]
    if details:
        raise DataError(
            f"the columns of {table.name} cannot be mapped",
            details=details,
            remedy="Write --map NAME=COLUMN with a column of the file.",
        )
    taken = set(mapping.values())
    return [
        (
            source,
            {name: value for name, value in row.items() if name not in taken and name not in mapping}
            | {new: row[old] for new, old in mapping.items() if old in row},
        )
        for source, row in table.rows
    ]


def _nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _named(name: str) -> Format:
    if name not in FORMATS or FORMATS[name].kind == "refused":
        known = [known for known, entry in FORMATS.items() if entry.kind != "refused"]
        raise DataError(
            f"{name} is not a known format{_nearest(name, known)}", remedy=f"Formats: {', '.join(known)}."
        )
    return FORMATS[name]


def _vote(rows: Sequence[tuple[Source, Mapping[str, Json]]]) -> list[list[str]]:
    """Name the formats that each row fits, the most specific first."""
    ranked = sorted(FORMATS.values(), key=lambda entry: -entry.rank)
    by_shape: dict[tuple[tuple[str, str], ...], list[Format]] = {}
    fits: list[list[str]] = []
    for _, row in rows:
        shapes = shapes_of(row)
        key = tuple(shapes.items())
        if key not in by_shape:
            by_shape[key] = [entry for entry in ranked if entry.fits(shapes)]
        fits.append([entry.name for entry in by_shape[key] if entry.when is None or entry.when(row)])
    return fits


def _winner(
    table: RawTable, rows: Sequence[tuple[Source, Mapping[str, Json]]], fits: list[list[str]], wanted: Wanted
) -> Format:
    """Return the format that 98 % of the voting rows have as their most specific one."""
    first_choice = Counter(names[0] for names in fits if names)
    refused = next((name for name in first_choice if FORMATS[name].kind == "refused"), None)
    if refused is not None:
        return FORMATS[refused]
    name, count = first_choice.most_common(1)[0] if first_choice else ("", 0)
    if not count or (wanted not in ("any", FORMATS[name].kind) and 2 * count <= len(rows)):
        raise _unknown(table, rows, wanted)
    if count < AGREEMENT * first_choice.total():
        raise _mixed(table, rows, fits, first_choice)
    return FORMATS[name]


def _unknown(table: RawTable, rows: Sequence[tuple[Source, Mapping[str, Json]]], wanted: Wanted) -> DataError:
    nearest = _most_alike(rows[0][1], wanted)
    _, problems = _read_all(rows, nearest)
    known = ", ".join(name for name, entry in FORMATS.items() if entry.kind != "refused")
    return DataError(
        f"no known format fits {table.name}; the nearest is {nearest.name} ({nearest.description})",
        details=[str(problem) for problem in problems],
        remedy="Name the columns with --map chosen=COLUMN (and so on), or the format with --format NAME. "
        f"Formats: {known}.",
    )


def _most_alike(row: Mapping[str, Json], wanted: Wanted) -> Format:
    def likeness(entry: Format) -> tuple[float, int]:
        present = sum(any(name in row for name in names.split("|")) for names in entry.columns)
        return present / len(entry.columns), present

    kinds = ("pair", "chat", "prompt", "rated") if wanted == "any" else (wanted,)
    return max((entry for entry in FORMATS.values() if entry.kind in kinds), key=likeness)


def _mixed(
    table: RawTable,
    rows: Sequence[tuple[Source, Mapping[str, Json]]],
    fits: list[list[str]],
    first_choice: Counter[str],
) -> DataError:
    """List the formats with their counts and an example row, then what the leading one says of the others."""
    leading = first_choice.most_common(1)[0][0]
    details: list[str] = []
    for name, count in first_choice.most_common():
        place = next(
            source for (source, _), names in zip(rows, fits, strict=True) if names and names[0] == name
        )
        details.append(
            f"{name}: {count:,} of {len(rows):,} rows ({count / len(rows):.0%}), the first at {place}"
        )
    others = [row for row, names in zip(rows, fits, strict=True) if not names or names[0] != leading]
    _, problems = _read_all(others, FORMATS[leading])
    details += [f"{problem} (as {leading})" for problem in problems]
    return DataError(
        f"the rows of {table.name} are of different formats; {AGREEMENT:.0%} must agree",
        details=details,
        remedy=f"Mend or split the file, or name the format for all rows: --format {leading}",
    )


def _read_all(rows: _Rows, chosen: Format) -> tuple[list[Row], list[Problem]]:
    good: list[Row] = []
    problems: list[Problem] = []
    for source, row in rows:
        try:
            good.append(chosen.read(Fields(source, row)))
        except BadRow as bad:
            problems.append(Problem(source, str(bad)))
    return good, problems


def _misfits(table: RawTable, name: str, problems: Sequence[Problem]) -> DataError:
    return DataError(
        f"{len(problems):,} of {len(table.rows):,} rows in {table.name} do not fit {name} "
        f"({FORMATS[name].description})",
        details=[str(problem) for problem in problems],
        remedy=f"Mend them, or write a cleaned copy with: lite-align check {table.name} --fix clean.jsonl",
    )


def _refuse(
    table: RawTable,
    rows: Sequence[tuple[Source, Mapping[str, Json]]],
    fits: list[list[str]],
    refused: Format,
) -> NoReturn:
    _, problems = _read_all(
        (row for row, names in zip(rows, fits, strict=True) if names and names[0] == refused.name), refused
    )
    raise DataError(
        f"{table.name} holds {refused.description}, which cannot be trained",
        details=[str(problem) for problem in problems],
        remedy="Leave those rows or columns out.",
    )


def _other_kind(table: RawTable, chosen: Format, wanted: Kind) -> DataError:
    holds, verb = _HOLDS[chosen.kind]
    remedy = f"Give {_HOLDS[wanted][0]}."
    if verb in _BUILT:
        remedy = f"Run lite-align {verb} {table.name}, or give {_HOLDS[wanted][0]}."
    elif verb:
        remedy += f" Such rows are for lite-align {verb}, which this version does not have yet."
    return DataError(
        f"{table.name} holds {holds} ({chosen.name}: {chosen.description}), not {_HOLDS[wanted][0]}",
        remedy=remedy,
    )


def _taken_as(table: RawTable, rows: _Rows, chosen: Format, wanted: Kind, pair_thumbs: bool) -> str:
    """Say how rows of another kind are taken for those that are wanted: thumbs for pairs, or pairs for thumbs.

    Raises:
        DataError: they cannot be, or thumbs would become pairs without having been asked for.
    """
    if (chosen.kind, wanted) == ("pair", "rated"):
        return "each pair is taken as a thumb up and a thumb down"
    if (chosen.kind, wanted) != ("rated", "pair"):
        raise _other_kind(table, chosen, wanted)
    read, problems = _read_all(rows, chosen)
    count = thumbs.Count.of([row for row in read if isinstance(row, Rated)])
    if not problems and not (pair_thumbs and count.pairs):
        raise thumbs.offer(table.name, count)
    return count.used
