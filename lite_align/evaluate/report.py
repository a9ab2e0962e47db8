"""report.html: one self-contained page about a run, safe to open whatever the model or the data wrote.

No script, no address outside the page, a content security policy that forbids both, and Jinja escapes every value.
The one markup that goes in unescaped is the curves', which hold no text of the user. Equal folders give equal pages.
"""

import difflib
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from lite_align.evaluate import course, curves, optimisation, pictures
from lite_align.evaluate.findings import MOVED_SHARE
from lite_align.evaluate.folder import Record, RunFolder, is_number, read
from lite_align.evaluate.statistics import percent
from lite_align.evaluate.verdict import judge_folder
from lite_align.view import safe

MOST_ANSWERS = 100  # the rest stays in answers.jsonl, and the page says so
MOST_WORDS = 1500  # comparing answers costs the square of their length
LEAST_COMMON = 0.25  # share of common words, below which marks cover nearly everything


@dataclass(frozen=True)
class Badge:
    """A proof of the run: what was checked, the outcome as a word, and the evidence."""

    name: str
    passed: bool
    evidence: str


@dataclass(frozen=True)
class Span:
    """A piece of an answer; `mark` is "", "del" (only before) or "ins" (only after)."""

    text: str
    mark: str


@dataclass(frozen=True)
class Answer:
    """A prompt with the answers before and after, cut into spans; `group` numbers its category."""

    prompt: str
    category: str
    group: int
    before: list[Span]
    after: list[Span]
    before_note: str
    after_note: str


@dataclass(frozen=True)
class Setting:
    """One value of the recipe and where it came from."""

    key: str
    value: str
    origin: str
    changed: bool


def write(run_dir: Path) -> Path:
    """Write report.html into a run folder and return its path. Raises UserError if the folder cannot be read."""
    path = run_dir / "report.html"
    half_written = path.with_suffix(".html.tmp")
    half_written.write_bytes(render(read(run_dir)).encode("utf-8", errors="replace"))
    os.replace(half_written, path)
    return path


def render(folder: RunFolder) -> str:
    """The page of a run folder as text."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["together"] = together
    environment.filters["clean"] = clean
    template = environment.from_string(
        files("lite_align.evaluate").joinpath("report.html.j2").read_text(encoding="utf-8")
    )
    verdict = judge_folder(folder)
    answers = pair_up(folder.answers[:MOST_ANSWERS])
    samples, samples_left_out = course.samples(folder)
    trends, trends_axis = course.trends(folder)
    over_optimisation = optimisation.draw(folder)
    return template.render(
        name=clean(folder.path.resolve().name),
        stage=clean(folder.run.get("stage", "run")),
        status=clean(folder.run.get("status", "unknown")),
        model=clean(folder.part("model").get("name", "")),
        verdict=verdict,
        figures=verdict.figures,
        badges=badges(folder),
        curves=([over_optimisation] if over_optimisation else []) + curves.draw_all(folder),
        pictures=pictures.draw_all(folder),
        categories=verdict.categories,
        trends=trends,
        trends_axis=trends_axis,
        samples=samples,
        samples_left_out=samples_left_out,
        answers=answers,
        groups=sorted({(a.group, a.category) for a in answers}),
        answers_left_out=max(0, len(folder.answers) - MOST_ANSWERS),
        data=facts(folder.part("data"), ("dropped",)),
        dropped=sorted((clean(k), clean(v)) for k, v in _mapping(folder.part("data").get("dropped")).items()),
        settings=settings(folder.part("recipe"), folder.part("provenance")),
        origins=[(t, facts(folder.part(k))) for t, k in ORIGINS if folder.part(k)],
        command=command_line(folder.run.get("command")),
        times=[(k, clean(folder.run[k])) for k in ("started", "finished") if folder.run.get(k)],
        parents=[parent(p) for p in folder.run.get("parents") or ()],
    )


ORIGINS = (
    ("Model", "model"),
    ("Reference", "reference"),
    ("Scores", "reward"),
    ("Plan", "plan"),
    ("Forecast", "forecast"),
    ("Measured", "measured"),
    ("Hashes", "hashes"),
    ("Versions", "versions"),
    ("Hardware", "hardware"),
)


def clean(value: object) -> str:
    """Any JSON value as text without control, bidi or zero-width characters."""
    if isinstance(value, str):
        return safe(value)
    return safe(json.dumps(value, ensure_ascii=False, sort_keys=True))


def parent(facts: object) -> str:
    """What a run continues: "runs/sft (sft, adapter 1a2b3c4d5e6f)"."""
    if not isinstance(facts, Mapping):
        return clean(facts)
    about = [str(facts.get("stage") or ""), f"adapter {str(facts.get('adapter', ''))[:12]}"]
    return clean(f"{facts.get('run', '')} ({', '.join(filter(None, about))})")


def together(text: str) -> str:
    """The same text with its percent signs tied to their numbers."""
    return text.replace(" %", "\u00a0%")


def badges(folder: RunFolder) -> list[Badge]:
    """What the run proved about itself: start, fixed reference, moving adapter, finite losses."""
    found: list[Badge] = []
    reference = folder.part("reference")
    proof = _mapping(reference.get("proof"))
    loss, expected = proof.get("loss"), proof.get("expected")
    if is_number(loss) and is_number(expected):
        close = abs(loss - expected) <= 0.01 * max(1.0, abs(expected))
        found.append(Badge("starts at its reference", close, f"loss {loss:.4f}, expected {expected:.4f}"))
    identity = reference.get("base_sha256")
    # A run finishes only where the base still has the hash that it began with (LA414).
    if isinstance(identity, str) and folder.run.get("status") == "finished":
        found.append(Badge("reference fixed", True, f"sha {clean(identity)[:12]}"))
    reloaded = _mapping(folder.part("reward").get("reload"))
    if is_number(difference := reloaded.get("largest_difference")):
        evidence = f"{clean(reloaded.get('answers'))} scores, largest difference {difference:.1f}"
        found.append(Badge("same scores after a reload", difference == 0, evidence))
    _, moved = folder.series("moved")
    if moved:
        found.append(
            Badge("adapter moves", moved[-1] >= MOVED_SHARE, f"{percent(moved[-1], 1)} of its parameters")
        )
    losses = [row.get("loss") for row in folder.metrics if "loss" in row]
    if losses:
        found.append(Badge("all losses finite", all(map(is_number, losses)), f"{len(losses):,} logged steps"))
    return found


def pair_up(rows: Sequence[Record]) -> list[Answer]:
    """Answers before and after with their differences marked."""
    categories = sorted({clean(row.get("category") or "") for row in rows})
    answers: list[Answer] = []
    for row in rows:
        before, after = differences(_text(row.get("before")), _text(row.get("after")))
        category = clean(row.get("category") or "")
        notes = [
            f"{n:,} tokens" if isinstance(n := row.get(k), int) else ""
            for k in ("before_tokens", "after_tokens")
        ]
        answers.append(
            Answer(_text(row.get("prompt")), category, categories.index(category), before, after, *notes)
        )
    return answers


def differences(before: str, after: str) -> tuple[list[Span], list[Span]]:
    """Two texts in spans of words that both have and words that only one has.

    "a b" and "a b c" give [a b] and [a b], ins [c]. A single common word between two changes counts as changed,
    and texts with almost nothing in common, or too long to compare, stay unmarked: marks would hide them.
    """
    old, new = (re.findall(r"\S+\s*|\s+", text) for text in (before, after))
    if max(len(old), len(new)) > MOST_WORDS:
        return [Span(before, "")], [Span(after, "")]
    matcher = difflib.SequenceMatcher(
        None, [w.strip() for w in old], [w.strip() for w in new], autojunk=False
    )
    if matcher.ratio() < LEAST_COMMON:
        return [Span(before, "")], [Span(after, "")]
    left: list[Span] = []
    right: list[Span] = []
    changes = matcher.get_opcodes()
    for number, (kind, a, b, c, d) in enumerate(changes):
        same = kind == "equal" and (b - a > 1 or number in (0, len(changes) - 1))
        _extend(left, "".join(old[a:b]), "" if same else "del")
        _extend(right, "".join(new[c:d]), "" if same else "ins")
    return left, right


def _extend(spans: list[Span], text: str, mark: str) -> None:
    if text and spans and spans[-1].mark == mark:
        spans[-1] = Span(spans[-1].text + text, mark)
    elif text:
        spans.append(Span(text, mark))


def settings(recipe: Record, provenance: Record) -> list[Setting]:
    """Every value of the recipe by dotted key; what a person chose (neither default nor auto) is marked."""
    rows: list[Setting] = []
    for key, value in flat(recipe):
        origin = clean(provenance.get(key, "default"))
        rows.append(
            Setting(clean(key), clean(value), origin, origin.split(":")[0] not in ("default", "auto"))
        )
    return rows


def facts(block: Record, without: Sequence[str] = ()) -> list[tuple[str, str]]:
    """A block of run.json as label and value."""
    rows = [(key, value) for key, value in flat(block) if key.split(".")[0] not in without]
    return [(clean(key).replace("_", " "), readable(key, value)) for key, value in rows]


def readable(key: str, value: object) -> str:
    """A value for reading: counts with thousands separated, shares in percent, bytes in GiB."""
    if key.startswith("bytes.") and is_number(value):
        return f"{value / 2**30:.2f} GiB"
    if key == "share" and is_number(value):
        return f"{percent(value)} of rows"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return clean(value)


def flat(block: Mapping[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    """Nested mappings as dotted keys, in their order."""
    rows: list[tuple[str, object]] = []
    for key, value in block.items():
        if isinstance(value, Mapping) and value:
            rows += flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows


def command_line(command: object) -> str:
    """The command as it can be typed again."""
    if isinstance(command, list):
        return clean(shlex.join(str(part) for part in command))
    return clean(command) if command else ""


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: object) -> str:
    return clean(value) if value is not None else ""
