"""Several runs on one page: verdicts, the same figures, curves in one picture, answers, and what differs."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from lite_align.errors import UserError
from lite_align.evaluate.curves import RUNS
from lite_align.evaluate.findings import DASH, Verdict
from lite_align.evaluate.folder import Record, RunFolder, read
from lite_align.evaluate.pages import badges, figures, overlay, page
from lite_align.evaluate.pages.answers import Shown, Side, Span, category_of, differences, groups, tokens_note
from lite_align.evaluate.pages.figures import Plot, Row, letter
from lite_align.evaluate.pages.texts import clean, flat, mapping, readable, text_of
from lite_align.evaluate.verdict import judge_folder

MOST_ANSWERS = 100  # the rest stays in the runs' answers.jsonl, and the page says so
LONGEST_NAME = 150  # of a file, of the 255 bytes that file systems allow

COMPARED = ("recipe", "data", "model", "hashes", "versions", "hardware")
"""Blocks of run.json of which differences are shown."""

FOLLOWS = ("data.tokens.", "data.warnings", "hashes.data", "hashes.tokens")
"""What differs because something else does that is shown."""


@dataclass(frozen=True)
class Column:
    """A run as it stands on the page; `number` gives its letter and its colour."""

    number: int
    letter: str
    name: str
    stage: str
    status: str
    model: str
    verdict: Verdict
    gates: list[badges.Badge]


def write(run_dirs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page of some runs, by default into the current folder, and return its path.

    Raises:
        UserError: a folder cannot be read, is given twice, or there are too many.
    """
    if len(run_dirs) > len(RUNS):
        raise UserError(
            f"{len(run_dirs)} runs cannot be told apart in one picture; {len(RUNS)} can.",
            remedy="Give fewer of them.",
        )
    twice = [path for path in run_dirs if sum(path.resolve() == other.resolve() for other in run_dirs) > 1]
    if twice:
        raise UserError(f"{twice[0]} is given twice.", remedy="Give each run once.")
    folders = [read(path) for path in run_dirs]
    return page.save(render(folders), out or Path(file_name(names(folders))))


def file_name(of_runs: Sequence[str]) -> str:
    """report-A-vs-B.html, without what a file system may refuse."""
    joined = "-vs-".join(re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run" for name in of_runs)
    return f"report-{joined[:LONGEST_NAME]}.html"


def names(folders: Sequence[RunFolder]) -> list[str]:
    """What the runs are called: their folders, with as much of the path as tells them apart."""
    parts = [folder.path.resolve().parts for folder in folders]

    def shortest(own: tuple[str, ...]) -> str:
        lengths = range(1, len(own) + 1)
        alone = (n for n in lengths if sum(other[-n:] == own[-n:] for other in parts) == 1)
        return "/".join(own[-next(alone, len(own)) :])

    return [clean(shortest(own)) for own in parts]


def render(folders: Sequence[RunFolder]) -> str:
    """The page of some runs as text."""
    columns = [
        Column(
            number=number,
            letter=letter(number),
            name=name,
            stage=clean(folder.run.get("stage", "run")),
            status=clean(folder.run.get("status", "unknown")),
            model=clean(folder.part("model").get("name", "")),
            verdict=judge_folder(folder),
            gates=badges.gate_badges(badges.gates(folder.gates, folder.promotion, folder.evaluation)),
        )
        for number, (name, folder) in enumerate(zip(names(folders), folders, strict=True), 1)
    ]
    shown, left_out = answers(folders)
    evaluated = [figures.read_figures(folder.evaluation.get("figures"))[0] for folder in folders]
    values = {
        "columns": columns,
        "notes": notes(folders),
        "rows": figure_rows([column.verdict for column in columns]),
        "categories": categories([column.verdict for column in columns]),
        "plots": figures.plots_of_runs(evaluated),
        "curves": overlay.draw_all(folders),
        "answers": shown,
        "answers_left_out": left_out,
        "answers_title": "Answers to the same prompts",
        "answers_note": "Underlined: words that the answer of A has not. Answers that share almost nothing with it are "
        "left plain.",
        "groups": groups(shown),
        "results": [],
        "differing": differing(folders),
    }
    sections = (
        ("figures", "Figures", "rows"),
        ("categories", "Categories", "categories"),
        ("evaluation", "Evaluation", "plots"),
        ("curves", "Curves", "curves"),
        ("answers", "Answers", "answers"),
        ("differing", "What differs", "differing"),
    )
    values["sections"] = [(id, name) for id, name, needed in sections if values[needed]]
    return page.fill("side_by_side.html.j2", values)


def notes(folders: Sequence[RunFolder]) -> list[str]:
    """Why figures of these runs may not be set against each other."""
    found: list[str] = []
    for what, key in (
        ("The runs are of different stages, so their verdicts speak of different things", _stage),
        ("The runs have different bases", lambda folder: folder.part("hashes").get("base")),
        ("The held-out rows are not the same, so figures measured on them cannot be compared", _held_out),
        (
            "The evaluations are of different data",
            lambda folder: mapping(folder.evaluation.get("data")).get("sha256"),
        ),
    ):
        values = [
            (letter(number), value)
            for number, one in enumerate(folders, 1)
            if (value := key(one)) is not None
        ]
        if len({repr(value) for _, value in values}) > 1:
            alike = groupby(sorted(values, key=lambda pair: repr(pair[1])), key=lambda pair: repr(pair[1]))
            parts = sorted(" and ".join(name for name, _ in same) for _, same in alike)
            found.append(f"{what}: {', '.join(parts)} each by themselves.")
    return found


def _stage(folder: RunFolder) -> str:
    return str(folder.run.get("stage"))


def _held_out(folder: RunFolder) -> object:
    """What tells held-out rows apart: their data by hash, and which of its rows they are."""
    if not folder.held_out:
        return None
    places = sorted(str(row.get("source")).rpartition(":")[2] for row in folder.held_out)
    return folder.part("data").get("sha256"), places


def figure_rows(verdicts: Sequence[Verdict]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The numbers at the top of each report by label: value and note of each run."""
    labels = dict.fromkeys(figure.label for verdict in verdicts for figure in verdict.figures)
    known = [
        {figure.label: (figure.value, figure.note) for figure in verdict.figures} for verdict in verdicts
    ]
    return [(label, [own.get(label, (DASH, "")) for own in known]) for label in labels]


def categories(verdicts: Sequence[Verdict]) -> Plot | None:
    """The dot plots by category in one; None unless two runs have the same one."""
    plots = [(number, one.categories) for number, one in enumerate(verdicts, 1) if one.categories is not None]
    if not plots:
        return None
    first = plots[0][1]
    alike = [(number, one) for number, one in plots if (one.title, one.axis) == (first.title, first.axis)]
    if len(alike) < 2:
        return None
    rows = [
        Row(
            **{"name": letter(number), "count": f"{row.count:,}", "before": row.before, "value": row.after},
            **{"interval": row.interval, "dot": row.dot, "low": row.low, "high": row.high},
            **{"colour": number, "group": clean(name)},
        )
        for name in sorted({row.name for _, one in alike for row in one.rows})
        for number, one in alike
        for row in one.rows
        if row.name == name
    ]
    level = 50.0 if first.chance else None
    return Plot(
        first.title, "Dot and bar: the value with its interval.", first.axis, level, rows, with_before=False
    )


def answers(folders: Sequence[RunFolder]) -> tuple[list[Shown], str]:
    """Prompts that two runs or more have answered, and what is not shown, in words."""
    by_prompt: dict[tuple[str, int], dict[int, Record]] = {}
    for number, folder in enumerate(folders, 1):
        seen: dict[str, int] = {}
        for row in folder.answers:
            prompt = text_of(row.get("prompt"))
            seen[prompt] = seen.get(prompt, 0) + 1
            by_prompt.setdefault((prompt, seen[prompt]), {})[number] = row
    shared = [(prompt, rows) for (prompt, _), rows in by_prompt.items() if len(rows) > 1]
    kept = shared[:MOST_ANSWERS]
    named = [category_of(next(iter(rows.values()))) for _, rows in kept]
    numbers = {name: number for number, name in enumerate(sorted(set(named)))}
    shown = [
        Shown(prompt, category, numbers[category], _sides(rows))
        for (prompt, rows), category in zip(kept, named, strict=True)
    ]
    alone, more = len(by_prompt) - len(shared), len(shared) - len(kept)
    parts = (
        [f"{alone:,} prompts were answered by one run alone, and are in its own report"] if alone else []
    ) + ([f"{more:,} more are in the runs' answers.jsonl"] if more else [])
    return shown, " · ".join(parts)


def _sides(rows: Mapping[int, Record]) -> list[Side]:
    """The answers of the runs, the first unmarked, after what all of them answered before."""
    before = {text_of(row.get("before")) for row in rows.values()}
    first_number, first = next(iter(rows.items()))
    reference = text_of(first.get("after"))
    sides = (
        [Side("Before", tokens_note(first.get("before_tokens")), [Span(next(iter(before)), "")])]
        if len(before) == 1
        else []
    )
    for number, row in rows.items():
        text, note = text_of(row.get("after")), tokens_note(row.get("after_tokens"))
        spans = [Span(text, "")] if number == first_number else differences(reference, text)[1]
        if number != first_number and text == reference:
            note = f"{note} · as {letter(first_number)}".removeprefix(" · ")
        sides.append(Side(letter(number), note, spans, colour=number))
    return sides


def differing(folders: Sequence[RunFolder]) -> list[tuple[str, list[str]]]:
    """What the records of the runs say differently, by dotted key: a value for each run."""
    found: list[tuple[str, list[str]]] = []
    for block in COMPARED:
        own: list[dict[str, Any]] = [dict(flat(folder.part(block))) for folder in folders]
        for key in dict.fromkeys(key for values in own for key in values):
            name = key if block == "recipe" else f"{block}.{key}"
            shown = [readable(key, values[key]) if key in values else DASH for values in own]
            if len(set(shown)) > 1 and not name.startswith(FOLLOWS):
                found.append((clean(name), shown))
    return found
