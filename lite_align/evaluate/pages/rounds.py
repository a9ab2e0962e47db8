"""A page about a loop: which rounds were promoted, and gain, KL and agreement of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lite_align.evaluate.findings import DASH
from lite_align.evaluate.folder import Record, is_number, json_object
from lite_align.evaluate.pages import figures, page
from lite_align.evaluate.pages.badges import Look
from lite_align.evaluate.pages.figures import Measured, Plot
from lite_align.evaluate.pages.texts import clean, mapping, text_of

RECORD = "rounds.json"
REMEDY = "lite-align loop wrote it; give the command again."

SHOWN = (
    *("win_rate", "lc_win_rate", "rule_score", "kl", "kl_start"),
    *("under_refusal", "over_refusal", "tokens", "repetition", "losing_categories"),
)
"""Figures that are drawn by round, where rounds have them."""

LOOKS: Mapping[str, Look] = {"promoted": "passed", "refused": "failed", "rolled back": "failed"}
"""How a status looks; any other one is open."""


@dataclass(frozen=True)
class Line:
    """A round in words."""

    number: str
    look: Look
    status: str
    pairs: str
    start: str
    folder: str
    why: str


def is_loop(folder: Path) -> bool:
    """Whether a folder holds the rounds of a loop."""
    return (folder / RECORD).is_file()


def write(folder: Path, out: Path | None = None) -> Path:
    """Write the page of a loop, report.html in its folder or `out`, and return its path.

    Raises:
        UserError: its record cannot be read.
    """
    return page.save(render(folder), out or folder / "report.html")


def render(folder: Path) -> str:
    """The page of a loop as text."""
    record = json_object(folder / RECORD, REMEDY)
    given = record.get("rounds")
    rounds = [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []
    lines = [line(one) for one in rounds]
    return page.fill(
        "rounds.html.j2",
        {
            "name": text_of(record.get("name")),
            "current": text_of(record.get("current")),
            "promoted": sum(one.status == "promoted" for one in lines),
            "most": text_of(record.get("most")),
            "last": lines[-1] if lines else None,
            "lines": lines,
            "plots": plots(rounds),
        },
    )


def line(one: Record) -> Line:
    """A round in words."""
    status = text_of(one.get("status"))
    pairs = one.get("pairs")
    return Line(
        number=text_of(one.get("round")),
        look=LOOKS.get(status, "open"),
        status=status,
        pairs=f"{pairs:,}" if is_number(pairs) else DASH,
        start=text_of(one.get("from")) or DASH,
        folder=text_of(one.get("folder")) or DASH,
        why=text_of(one.get("why")),
    )


def plots(rounds: Sequence[Record]) -> list[Plot]:
    """A dot plot for every figure that a round has, a row each round."""
    measured = [_figures(one.get("figures")) for one in rounds]
    agreed = [_figures(one.get("agreement")) for one in rounds]
    named = [f"round {clean(one.get('round'))}" for one in rounds]
    found: list[Plot] = []
    for name in (*SHOWN, "kappa", "alpha", "rule"):
        rows = [
            (label, figure)
            for label, own, labels in zip(named, measured, agreed, strict=True)
            if (figure := (own if name in SHOWN else labels).get(name)) is not None
        ]
        found += [figures.plot(name, rows)] if rows else []
    return found


def _figures(block: Any) -> dict[str, Measured]:
    return figures.read_figures(mapping(block))[0]
