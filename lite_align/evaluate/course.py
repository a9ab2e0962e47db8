"""Fixed held-out prompts in the course of a run: their answers, and their categories, at each evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass

from lite_align.evaluate.folder import Record, RunFolder, is_number

MOST_PROMPTS = 12  # the rest stays in samples.jsonl, and the page says so
MOST_EVALUATIONS = 10
CATEGORY = "eval/rule_score/"
WIDTH, HEIGHT = 100.0, 20.0  # of the drawing of a trend


@dataclass(frozen=True)
class Sample:
    """An answer at an evaluation; texts are as the model wrote them, for the page to make harmless."""

    step: str
    answer: object
    figures: tuple[str, ...]


@dataclass(frozen=True)
class Prompt:
    """A prompt with its answers over the run; `left_out` counts the evaluations between that are not shown."""

    text: object
    category: object
    columns: tuple[str, ...]
    samples: list[Sample]
    left_out: int


@dataclass(frozen=True)
class Trend:
    """The rule score of a category over the evaluations; `points` draw it, on an axis that all categories share."""

    name: str
    first: str
    least: str
    last: str
    points: str


FIGURES = {"tokens": "{:,.0f}", "reward": "{:.2f}", "rule_score": "{:.2f}", "kl": "{:.2f}"}
"""Columns of a sample beside its answer, where some sample of the prompt has them."""


def samples(folder: RunFolder) -> tuple[list[Prompt], int]:
    """The first MOST_PROMPTS prompts of samples.jsonl with their answers in order, and how many are left out."""
    groups: dict[str, list[Record]] = {}
    for row in folder.samples:
        groups.setdefault(repr(row.get("prompt")), []).append(row)
    shown = list(groups.values())[:MOST_PROMPTS]
    return [_prompt(rows) for rows in shown], len(groups) - len(shown)


def _prompt(rows: Sequence[Record]) -> Prompt:
    rows = sorted(rows, key=lambda row: row["step"] if is_number(row.get("step")) else -1)
    kept = spread(rows, MOST_EVALUATIONS)
    names = [name for name in FIGURES if any(is_number(row.get(name)) for row in kept)]
    return Prompt(
        text=rows[0].get("prompt"),
        category=rows[0].get("category") or "",
        columns=tuple(name.replace("_", " ").replace("kl", "KL") for name in names),
        samples=[
            Sample(
                f"{step:,.0f}" if is_number(step := row.get("step")) else "",
                row.get("answer"),
                tuple(FIGURES[name].format(row[name]) if is_number(row.get(name)) else "" for name in names),
            )
            for row in kept
        ],
        left_out=len(rows) - len(kept),
    )


def spread(rows: Sequence[Record], most: int) -> list[Record]:
    """At most `most` rows, the first and the last among them and the others evenly between."""
    if len(rows) <= most:
        return list(rows)
    return [rows[round(n * (len(rows) - 1) / (most - 1))] for n in range(most)]


def trends(folder: RunFolder) -> tuple[list[Trend], str]:
    """The rule score of every category that was measured twice or more, by name, and the axis that they share."""
    names = sorted({name for row in folder.metrics for name in row if name.startswith(CATEGORY)})
    series = [(name.removeprefix(CATEGORY), *folder.series(name)) for name in names]
    series = [(name, steps, values) for name, steps, values in series if len(values) > 1]
    if not series:
        return [], ""
    end = max(max(steps) for _, steps, _ in series) or 1.0
    least = min(min(values) for _, _, values in series)
    most = max(max(values) for _, _, values in series)
    height = (most - least) or 1.0

    def drawn(steps: Sequence[float], values: Sequence[float]) -> str:
        return " ".join(
            f"{WIDTH * step / end:.1f},{HEIGHT * (1 - (value - least) / height):.1f}"
            for step, value in zip(steps, values, strict=True)
        )

    rows = [
        Trend(name, f"{values[0]:.2f}", f"{min(values):.2f}", f"{values[-1]:.2f}", drawn(steps, values))
        for name, steps, values in series
    ]
    return rows, f"{least:.2f} to {most:.2f}"
