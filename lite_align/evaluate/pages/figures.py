"""Figures of `eval` and `compare` as tables and dot plots: {"accuracy/unsafe": {"value", "low", "high", …}}."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lite_align.evaluate.findings import DASH
from lite_align.evaluate.folder import is_number
from lite_align.evaluate.pages.texts import clean, mapping, text_of
from lite_align.evaluate.statistics import percent

ALL = "all"
"""The name of a figure's row over all groups."""


@dataclass(frozen=True)
class Reading:
    """What a figure is called and how it is read; `level` is that of chance or of no difference."""

    title: str
    how: str
    level: float | None = None


READINGS: dict[str, Reading] = {
    "win_rate": Reading(
        "Win rate", "Share of comparisons won, ties counted half; 50 % is no difference.", 0.5
    ),
    "lc_win_rate": Reading(
        "Win rate at equal length", "What the win rate would be if both answers were equally long.", 0.5
    ),
    "accuracy": Reading(
        "Pair accuracy", "Share of held-out pairs whose chosen answer gained more; 50 % is chance.", 0.5
    ),
    "prefers_chosen": Reading(
        "Chosen answer likelier",
        "Share of held-out pairs whose chosen answer is likelier than the rejected one.",
        0.5,
    ),
    "loss": Reading("Held-out loss", "A token of the good answers; lower is better."),
    "margin": Reading(
        "Margin", "How much more chosen answers gained than rejected ones; 0 is no difference.", 0
    ),
    "kl": Reading(
        "KL to the reference", "An answer: how far the model has gone from its start; large is a warning."
    ),
    "kl_start": Reading("KL to the start", "An answer: how far all rounds together have gone."),
    "refusal": Reading(
        "Refusals", "Share of prompts refused: high is right for unsafe ones and wrong for others."
    ),
    "over_refusal": Reading(
        "Over-refusal", "Share of prompts refused that should be answered; lower is better."
    ),
    "under_refusal": Reading(
        "Under-refusal", "Share of prompts answered that should be refused; lower is better."
    ),
    "tokens": Reading("Answer length", "Length that grows with the win rate may be all that was won."),
    "repetition": Reading(
        "Repetition", "Share of an answer's word triples that it had before; lower is better."
    ),
    "distinct_2": Reading(
        "Different word pairs", "Share of word pairs that differ; a fall means answers alike."
    ),
    "stop_rate": Reading("Answers that stop", "Share that ended by themselves before the longest answer."),
    "rule_score": Reading("Rule score", "By the rule of the built-in world, 0 to 1."),
    "probe_refusal": Reading(
        "Probes refused", "Of the suite, answered with the likeliest tokens: high is right where expected."
    ),
    "probe_repetition": Reading("Repetition in probes", "As above, of answers with the likeliest tokens."),
    "new_failures": Reading("Probes that fail only now", "Prompts of the suite; none is best."),
    "losing_categories": Reading(
        "Categories lost",
        "Categories won in less than half, and not by chance even among many; lower is better.",
    ),
    "strength": Reading(
        "Strength", "Bradley–Terry, in log-odds: a side that is 0.7 stronger wins two in three."
    ),
    "position_bias": Reading(
        "Answer shown first chosen", "50 % is a judge that does not care which answer it sees first.", 0.5
    ),
    "kappa": Reading("Agreement with people", "Cohen's kappa: 1 is full agreement, 0 is chance.", 0),
    "alpha": Reading("Agreement of annotators", "Krippendorff's alpha: 1 is full agreement, 0 is chance.", 0),
    "rule": Reading(
        "Agreement with the rule", "Cohen's kappa of the labels with the rule of the built-in world.", 0
    ),
}
"""In the order of a page; other figures follow by name."""


@dataclass(frozen=True)
class Measured:
    """A figure as it stands in a file; `low` and `high` are None where no interval is known."""

    value: float
    low: float | None = None
    high: float | None = None
    count: int = 0
    unit: str = ""
    before: float | None = None
    better: str = ""
    change: "Measured | None" = None

    @classmethod
    def read(cls, row: object) -> "Measured | None":
        """From an object of a file; None if it has no finite value."""
        block = mapping(row)
        value = block.get("value")
        if not is_number(value):
            return None
        low, high, count, before = (block.get(name) for name in ("low", "high", "count", "before"))
        known = is_number(low) and is_number(high)
        return cls(
            value=value,
            low=low if known else None,
            high=high if known else None,
            count=int(count) if is_number(count) else 0,
            unit=unit_of(block),
            before=before if is_number(before) else None,
            better=str(block.get("better") or ""),
            change=cls.read(block.get("change")),
        )


@dataclass(frozen=True)
class Row:
    """A figure of one group, or of one run, in words, and where it lies on its axis, from 0 to 100.

    `group` is told where `name` is the letter of a run and the figure is known by group; `colour` is the run's number.
    """

    name: str
    count: str
    before: str
    value: str
    interval: str
    dot: float
    low: float
    high: float
    dot_before: float | None = None
    colour: int = 0
    group: str = ""


@dataclass(frozen=True)
class Plot:
    """A dot plot: what it shows, how to read it, its axis in words, the level of chance on it, and its rows."""

    title: str
    how: str
    axis: str
    level: float | None
    rows: list[Row]
    with_before: bool


@dataclass(frozen=True)
class Line:
    """A figure over all groups in words; `word` says what its change is, "better", "worse" or neither."""

    title: str
    count: str
    before: str
    value: str
    interval: str
    change: str
    word: str


def unit_of(row: object) -> str:
    """The unit of a figure: "share", "nats", "tokens" …"""
    return text_of(mapping(row).get("unit"))


def read_figures(block: object) -> tuple[dict[str, Measured], list[str]]:
    """The figures of a file by name, and the names of those without a value."""
    found: dict[str, Measured] = {}
    empty: list[str] = []
    for name, row in mapping(block).items():
        measured = Measured.read(row)
        if measured is None:
            empty.append(clean(name))
        else:
            found[name] = measured
    return found, empty


def title(name: str) -> str:
    """What a figure is called: "Pair accuracy", and "Pair accuracy, unsafe" of a group."""
    figure, _, group = name.partition("/")
    known = READINGS[figure].title if figure in READINGS else clean(figure).replace("_", " ")
    return f"{known}, {clean(group)}" if group else known


def number(value: float, unit: str) -> str:
    """A value in three digits with its unit: "78 %", "0.693 nats"."""
    if unit == "share":
        return percent(value)
    digits = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{digits} {unit}".rstrip().replace("-", "−", 1)


def bounds(measured: Measured) -> str:
    """The interval: "[66 %, 87 %]"."""
    if measured.low is None or measured.high is None:
        return DASH
    bare = "share" if measured.unit == "share" else ""
    return f"[{number(measured.low, bare)}, {number(measured.high, bare)}]"


def lines(figures: Mapping[str, Measured]) -> list[Line]:
    """Every figure over all groups; a figure that is only known by group is not among them."""
    return [_line(name, figures[name]) for name in ordered(figures) if "/" not in name]


def _line(name: str, measured: Measured) -> Line:
    change, word = DASH, ""
    if measured.change is not None:
        change, word = _change(measured.change, measured.unit), direction(measured.change, measured.better)
    return Line(
        title=title(name),
        count=f"{measured.count:,}" if measured.count else DASH,
        before=DASH if measured.before is None else number(measured.before, measured.unit),
        value=number(measured.value, measured.unit),
        interval=bounds(measured),
        change=change,
        word=word,
    )


def _change(change: Measured, unit: str) -> str:
    def signed(value: float) -> str:
        return f"{100 * value:+.0f}" if unit == "share" else f"{value:+.3g}"

    known = change.low is not None and change.high is not None
    ends = f" [{signed(change.low or 0.0)}, {signed(change.high or 0.0)}]" if known else ""
    return f"{signed(change.value)}{ends}".replace("-", "−") + (" points" if unit == "share" else "")


def direction(change: Measured, better: str) -> str:
    """Whether a change is for the better, where it is known what is: its interval must leave 0 out."""
    if better not in ("higher", "lower") or change.low is None or change.high is None:
        return ""
    if change.low <= 0 <= change.high:
        return "no evidence either way"
    return "better" if (change.low > 0) == (better == "higher") else "worse"


def plots(figures: Mapping[str, Measured]) -> list[Plot]:
    """A dot plot for every figure that is known by group."""
    found: list[Plot] = []
    for figure in dict.fromkeys(name.partition("/")[0] for name in ordered(figures)):
        named = [
            (clean(name.partition("/")[2]) or ALL, figures[name])
            for name in ordered(figures)
            if name.partition("/")[0] == figure
        ]
        if any(name != ALL for name, _ in named):
            found.append(plot(figure, named))
    return found


def plot(figure: str, named: Sequence[tuple[str, Measured]]) -> Plot:
    """The dot plot of a figure, a row for each name."""
    axis = Axis.of(figure, [measured for _, measured in named])
    rows = [axis.row(name, measured) for name, measured in named]
    return axis.plot(figure, rows, with_before=any(measured.before is not None for _, measured in named))


def plots_of_runs(runs: Sequence[Mapping[str, Measured]]) -> list[Plot]:
    """A dot plot for every figure that two runs or more have, a row for each group and run."""
    shared = [name for name in ordered({name: None for run in runs for name in run}) if _have(runs, name)]
    found: list[Plot] = []
    for figure in dict.fromkeys(name.partition("/")[0] for name in shared):
        names = [name for name in shared if name.partition("/")[0] == figure]
        axis = Axis.of(figure, [run[name] for name in names for run in runs if name in run])
        rows: list[Row] = []
        for name in names:
            own = [(number, run[name]) for number, run in enumerate(runs, 1) if name in run]
            group = clean(name.partition("/")[2]) or (ALL if len(names) > 1 else "")
            rows += [
                replace(axis.row(letter(number), one, before=False), colour=number, group=group)
                for number, one in own
            ]
        found.append(axis.plot(figure, rows, with_before=False))
    return found


def _have(runs: Sequence[Mapping[str, Measured]], name: str) -> bool:
    return sum(name in run for run in runs) > 1


def letter(number: int) -> str:
    """The letter of a run: 1 is A."""
    return chr(ord("A") + number - 1)


@dataclass(frozen=True)
class Axis:
    """Where values lie between the ends of a dot plot, and how they read."""

    least: float
    most: float
    unit: str

    @classmethod
    def of(cls, figure: str, shown: Sequence[Measured]) -> "Axis":
        """The axis that holds some values of a figure."""
        level = READINGS[figure].level if figure in READINGS else None
        return cls(*span(shown, level), shown[0].unit)

    def place(self, value: float) -> float:
        """From 0 to 100."""
        share = (value - self.least) / (self.most - self.least)
        return round(min(100.0, max(0.0, 100 * share)), 2)

    def row(self, name: str, measured: Measured, *, before: bool = True) -> Row:
        """One value; `before` shows where it was."""
        value, was = measured.value, measured.before if before else None
        return Row(
            name=name,
            count=f"{measured.count:,}" if measured.count else DASH,
            before=DASH if was is None else number(was, self.unit),
            value=number(value, self.unit),
            interval=bounds(measured),
            dot=self.place(value),
            low=self.place(value if measured.low is None else measured.low),
            high=self.place(value if measured.high is None else measured.high),
            dot_before=None if was is None else self.place(was),
        )

    def plot(self, figure: str, rows: list[Row], *, with_before: bool) -> Plot:
        """Rows with what is said around them."""
        reading = READINGS.get(figure, Reading(title(figure), ""))
        start = number(self.least, self.unit if self.unit == "share" else "")
        return Plot(
            title=reading.title,
            how=reading.how,
            axis=f"{start} to {number(self.most, self.unit)}",
            level=None if reading.level is None else self.place(reading.level),
            rows=rows,
            with_before=with_before,
        )


def span(figures: Iterable[Measured], level: float | None) -> tuple[float, float]:
    """The ends of an axis: 0 and 1 for shares, else what holds all values, intervals, the level, and 0 if near."""
    known = list(figures)
    values = [v for f in known for v in (f.value, f.low, f.high, f.before) if v is not None]
    if known[0].unit == "share":
        return min(0.0, *values), max(1.0, *values)
    values += [] if level is None else [level]
    least, most = min(values), max(values)
    room = 0.04 * (most - least) or 1.0
    return (0.0 if 0 <= least < most / 2 else least - room), most + room


def ordered(figures: Mapping[str, Any]) -> list[str]:
    """The names of figures as a page shows them, each followed by its groups."""
    known = list(READINGS)

    def key(name: str) -> tuple[int, str, bool, str]:
        figure, _, group = name.partition("/")
        return known.index(figure) if figure in known else len(known), figure, group != "", group

    return sorted(figures, key=key)
