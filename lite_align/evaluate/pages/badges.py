"""What stands at the top of a page in one word each: what the run proved about itself, and its gates."""

import re
from dataclasses import dataclass
from typing import Literal

from lite_align.evaluate.findings import DASH, MOVED_SHARE
from lite_align.evaluate.folder import Record, RunFolder, is_number
from lite_align.evaluate.pages.figures import Measured, bounds, number, unit_of
from lite_align.evaluate.pages.texts import clean, mapping, text_of
from lite_align.evaluate.statistics import percent

Look = Literal["passed", "failed", "open"]

LOOKS: dict[str, Look] = {"passed": "passed", "failed": "failed"}
"""Any other word of a gate, "too little evidence" above all, is no pass."""


@dataclass(frozen=True)
class Badge:
    """What was checked, the outcome as a look and a word, and the evidence."""

    name: str
    look: Look
    word: str
    evidence: str


@dataclass(frozen=True)
class Promotion:
    """What was decided of a run in its project: the outcome as a look and a word, and who, when, why, against what."""

    look: Look
    word: str
    facts: list[tuple[str, str]]


@dataclass(frozen=True)
class Gate:
    """A gate in words: what it asks of which figure, and what was found."""

    figure: str
    threshold: str
    value: str
    interval: str
    count: str
    look: Look
    word: str
    why: str


def proofs(folder: RunFolder) -> list[Badge]:
    """What the run proved about itself: start, fixed reference, moving adapter, finite losses."""
    found: list[Badge] = []
    reference = folder.part("reference")
    proof = mapping(reference.get("proof"))
    loss, expected = proof.get("loss"), proof.get("expected")
    if is_number(loss) and is_number(expected):
        close = abs(loss - expected) <= 0.01 * max(1.0, abs(expected))
        found.append(_proof("starts at its reference", close, f"loss {loss:.4f}, expected {expected:.4f}"))
    identity = reference.get("base_sha256")
    # A run finishes only where the base still has the hash that it began with (LA414).
    if isinstance(identity, str) and folder.run.get("status") == "finished":
        found.append(_proof("reference fixed", True, f"sha {clean(identity)[:12]}"))
    reloaded = mapping(folder.part("reward").get("reload"))
    if is_number(difference := reloaded.get("largest_difference")):
        evidence = f"{clean(reloaded.get('answers'))} scores, largest difference {difference:.1f}"
        found.append(_proof("same scores after a reload", difference == 0, evidence))
    _, moved = folder.series("moved")
    if moved:
        found.append(
            _proof("adapter moves", moved[-1] >= MOVED_SHARE, f"{percent(moved[-1], 1)} of its parameters")
        )
    losses = [row.get("loss") for row in folder.metrics if "loss" in row]
    if losses:
        found.append(
            _proof("all losses finite", all(map(is_number, losses)), f"{len(losses):,} logged steps")
        )
    return found


def _proof(name: str, holds: bool, evidence: str) -> Badge:
    return Badge(name, "passed" if holds else "failed", "passed" if holds else "FAILED", evidence)


def gates(record: Record, *measured: Record) -> list[Gate]:
    """The gates of gates.json, those that failed first.

    `measured` holds the units: eval.json, compare.json, promotion.json; of two that know a figure the last one counts.
    """
    rows = record.get("gates")
    known = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    units = {name: unit_of(row) for one in measured for name, row in mapping(one.get("figures")).items()}
    found = [_gate(row, units) for row in known]
    return sorted(found, key=lambda gate: ("failed", "open", "passed").index(gate.look))


def _gate(row: Record, units: dict[str, str]) -> Gate:
    word = text_of(row.get("verdict")) or "not judged"
    look = LOOKS.get(word, "open")
    asked = text_of(row.get("gate"))
    parts = re.fullmatch(r"\s*(.+?)\s*((?:<=|>=|<|>|=).*)", asked)
    unit = units.get(str(row.get("figure")), "")
    measured = Measured.read({**row, "unit": unit})
    return Gate(
        figure=parts[1] if parts else text_of(row.get("figure")) or asked,  # as written: with `.change`, say
        threshold=parts[2] if parts else asked,
        value=number(measured.value, unit) if measured else DASH,
        interval=bounds(measured) if measured else DASH,
        count=f"{measured.count:,}" if measured and measured.count else DASH,
        look=look,
        word="FAILED" if look == "failed" else word,
        why=text_of(row.get("why")),
    )


def gate_badges(found: list[Gate]) -> list[Badge]:
    """The same, short."""
    return [
        Badge(
            f"{gate.figure} {gate.threshold}",
            gate.look,
            gate.word,
            gate.value if gate.interval == DASH else f"{gate.value} {gate.interval}",
        )
        for gate in found
    ]


DECIDED: dict[bool, tuple[Look, str]] = {True: ("passed", "promoted"), False: ("failed", "refused")}


def promotion(record: Record) -> Promotion | None:
    """What promotion.json says of the decision; None for an empty one."""
    if not record:
        return None
    passed = record.get("passed")
    look, word = DECIDED[passed] if isinstance(passed, bool) else ("open", "not decided")
    told = [(name, text_of(record.get(name))) for name in ("who", "time", "why", "against", "project")]
    judged = gates(record, record)
    others = [f"{gate.word} {gate.figure} {gate.threshold}" for gate in judged if gate.look != "passed"]
    if judged:
        told.append(("gates", " · ".join([f"{len(judged) - len(others)} of {len(judged)} passed", *others])))
    return Promotion(look, word, [(name, text) for name, text in told if text])
