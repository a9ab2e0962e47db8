"""What a run was found to be worth: the verdict, its figures, and the warnings that every kind of run can earn.

Each stage has a module that fills a `Verdict` from the files of a run folder; `verdict` finds the right one.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from lite_align.evaluate.folder import Record, RunFolder, is_number
from lite_align.evaluate.statistics import Interval, bracket, percent

T = TypeVar("T")
FiguresT = TypeVar("FiguresT")

Word = Literal[
    "better",
    "worse",
    "better than chance",
    "worse than chance",
    "higher reward",
    "lower reward",
    "no evidence either way",
]

DASH = "–"
# Below 40 rows even 60 % wins leave an interval of ±15 points around one half: only large effects show.
SMALL_HELD_OUT = 40
# 15 % is more than mean lengths of a few dozen greedy answers spread, and less than a reader overlooks.
LENGTH_DRIFT = 0.15
# fp32 adapters move everywhere in a few steps; bf16 ones moved 0.4 % of their entries and learned nothing.
MOVED_SHARE = 0.99
# Held-out loss this far above its least value is more than the noise of one evaluation of some fifty rows.
LOSS_RISE = 1.05


@dataclass(frozen=True)
class Figure:
    """One of the numbers at the top: what, how much, and the sentence under it."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class CategoryRow:
    """One category in figures: words for reading, positions from 0 to 100 for the picture."""

    name: str
    count: int
    before: str
    after: str
    interval: str
    dot_before: float
    dot: float
    low: float
    high: float


@dataclass(frozen=True)
class Categories:
    """A dot plot of all categories.

    Attributes:
        title: of the section.
        counted: what `count` counts: "pairs".
        axis: what the picture spans: "0 to 100 %".
        note: how to read it.
        rows: one for each category.
        chance: whether the middle of the picture is the level of chance.
        compared: what the ring shows.
        measured: what the dot shows.
    """

    title: str
    counted: str
    axis: str
    note: str
    rows: list[CategoryRow]
    chance: bool = True
    compared: str = "before"
    measured: str = "after"


@dataclass(frozen=True)
class Table:
    """Further figures of a run: a title, the names of the columns, the rows, and how to read them."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str


@dataclass(frozen=True)
class Verdict:
    """A word, the sentences that carry it, and what else to look at.

    Attributes:
        figures: the numbers at the top of the report.
        headline: what was measured on held-out rows, for the terminal.
        categories: the same by category, where there are several.
        tables: what else was measured.
    """

    word: Word
    sentences: list[str]
    warnings: list[str]
    figures: list[Figure] = field(default_factory=list[Figure])
    headline: str = ""
    categories: Categories | None = None
    tables: list[Table] = field(default_factory=list[Table])


def by_category(rows: Sequence[Record], measure: Callable[[Sequence[Record]], T]) -> dict[str, T]:
    """Figures of the rows of each category; none where there is only one."""
    groups: dict[str, list[Record]] = {}
    for row in rows:
        groups.setdefault(str(row.get("category") or "without category"), []).append(row)
    return {name: measure(groups[name]) for name in sorted(groups)} if len(groups) > 1 else {}


def share_row(name: str, before: float, after: Interval) -> CategoryRow:
    """The row of a category whose figures are shares, 0 to 1."""
    return CategoryRow(
        name=name,
        count=after.count,
        before=percent(before),
        after=percent(after.value),
        interval=bracket(after),
        dot_before=round(100 * before, 2),
        dot=round(100 * after.value, 2),
        low=round(100 * after.low, 2),
        high=round(100 * after.high, 2),
    )


def change_row(
    name: str, count: int, before: float, change: Interval, span: tuple[float, float]
) -> CategoryRow:
    """The row of a category whose figure changed by `change`, on an axis over `span`; the interval is the change's."""
    known = math.isfinite(change.low)
    low, high = (change.low, change.high) if known else (change.value, change.value)

    def place(value: float) -> float:
        least, most = span
        return round(100 * min(1.0, max(0.0, (value - least) / (most - least))), 2) if most > least else 0.0

    return CategoryRow(
        name=name,
        count=count,
        before=f"{before:.2f}",
        after=f"{before + change.value:.2f}",
        interval=f"[{before + low:.2f}, {before + high:.2f}]" if known else DASH,
        dot_before=place(before),
        dot=place(before + change.value),
        low=place(before + low),
        high=place(before + high),
    )


def accuracy_categories(
    note: str, rows: Sequence[CategoryRow], *, compared: str = "before", measured: str = "after"
) -> Categories | None:
    """The dot plot of held-out accuracy by category; None without rows.

    Args:
        note: what ring, dot and bar are.
        rows: from `share_row`.
        compared: what the ring shows.
        measured: what the dot shows.
    """
    if not rows:
        return None
    single = "Intervals are of single categories; among many, one that leaves 50 % may do so by chance."
    title = "Held-out accuracy by category"
    text = f"{note} {single}"
    return Categories(title, "pairs", "0 to 100 %", text, list(rows), compared=compared, measured=measured)


def warnings(
    folder: RunFolder,
    figures: FiguresT,
    checks: Sequence[Callable[[RunFolder, FiguresT], str | None]],
    few: str | None,
    general: Sequence[Callable[[RunFolder], str | None]] | None = None,
) -> list[str]:
    """The warnings that a run has earned.

    Args:
        folder: its files.
        figures: of its held-out rows.
        checks: of its stage, which come first.
        few: from `few_held_out`, which comes last.
        general: of every run that has a loss, `CHECKS`, or those that mean something in this stage.
    """
    own = [check(folder, figures) for check in checks]
    of_every_run = [check(folder) for check in (CHECKS if general is None else general)]
    return [text for text in (*own, *of_every_run, few) if text is not None]


def few_held_out(count: int, rows: str) -> str | None:
    """Warn of a set of held-out rows in which only large effects show."""
    if not 0 < count < SMALL_HELD_OUT:
        return None
    return f"Only {count} held-out {rows}: small effects cannot show. Raise data.held_out or add data."


def unmeasured(label: str) -> Figure:
    """A figure with a dash."""
    return Figure(label, DASH, "not measured in this run")


def length_change(answers: Sequence[Record]) -> float | None:
    """Relative change of the mean answer length in tokens; None without answers."""
    pairs = [(a.get("before_tokens"), a.get("after_tokens")) for a in answers]
    known = [(b, a) for b, a in pairs if is_number(b) and is_number(a)]
    before = sum(b for b, _ in known)
    return sum(a for _, a in known) / before - 1 if before else None


def length_figure(answers: Sequence[Record]) -> Figure:
    """Change of the mean answer length, for the top of the report."""
    change = length_change(answers)
    if change is None:
        return unmeasured("Answer length")
    sign = "+" if change >= 0 else "−"
    note = "mean tokens of the answers below, after against before"
    return Figure("Answer length", sign + percent(abs(change)), note)


def length_drifts(folder: RunFolder) -> str | None:
    """Warn of answers that grew or shrank."""
    change = length_change(folder.answers)
    if change is None or abs(change) < LENGTH_DRIFT:
        return None
    word = "longer" if change > 0 else "shorter"
    doubt = "verbosity" if change > 0 else "answers that break off"
    return f"Answers grew {percent(abs(change))} {word}; check for {doubt} before release."


def hardly_moved(folder: RunFolder) -> str | None:
    """Warn of an adapter of which a part did not move."""
    _, values = folder.series("moved")
    if not values or values[-1] >= MOVED_SHARE:
        return None
    return (
        f"Only {percent(values[-1], 1)} of the adapter's parameters moved: the learning rate is too small for their "
        "precision, or part of the adapter is not trained."
    )


def held_out_loss_rises(folder: RunFolder) -> str | None:
    """Warn of a held-out loss that rose again."""
    steps, values = folder.series("eval/loss")
    if len(values) < 3:
        return None
    least = min(range(len(values)), key=values.__getitem__)
    if values[least] <= 0 or values[-1] <= LOSS_RISE * values[least]:
        return None
    return (
        f"Held-out loss was least at step {steps[least]:,.0f} ({values[least]:.3g}) and rose to "
        f"{values[-1]:.3g}: the run went on too long. Fewer train.epochs or a lower train.learning_rate."
    )


def training_loss_rises(folder: RunFolder) -> str | None:
    """Warn of a training loss that rose."""
    _, values = folder.series("loss")
    quarter = len(values) // 4
    if quarter < 3:
        return None
    first, last = statistics.fmean(values[:quarter]), statistics.fmean(values[-quarter:])
    if first <= 0 or last <= LOSS_RISE * first:
        return None
    return f"Training loss rose from {first:.3g} to {last:.3g}: the learning rate is too high."


CHECKS = (held_out_loss_rises, training_loss_rises, hardly_moved)
"""Of every run."""
