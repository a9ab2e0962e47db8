"""Curves of several runs in one picture: a colour and a letter for each run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lite_align.evaluate.charts import CHARTS, PREFERENCE, Chart, Line
from lite_align.evaluate.curves import DOTTED, HELD_OUT, INK, RUNS, Curve, picture, running_mean, thin
from lite_align.evaluate.folder import RunFolder
from lite_align.evaluate.pages.figures import letter

Series = tuple[list[float], list[float]]
LABEL = 0.09  # of the height of a picture: room for a letter
MOST_RAW = 40  # training values; more are drawn as their running mean


@dataclass(frozen=True)
class Lines:
    """What a picture shows of every run: one quantity while training, on held-out rows, or both."""

    title: str
    reading: str
    level: float | None
    log: bool
    training: Line | None
    held_out: Line | None


def draw_all(runs: Sequence[RunFolder]) -> list[Curve]:
    """Every picture that at least two of the runs have lines for."""
    return [curve for lines in quantities(runs) if (curve := draw(lines, runs)) is not None]


def quantities(runs: Sequence[RunFolder]) -> list[Lines]:
    """What can be drawn of runs of these stages, each quantity once."""
    found: dict[str | None, Lines] = {}
    for run in runs:
        for chart in CHARTS.get(str(run.run.get("stage")), PREFERENCE):
            for lines in apart(chart):
                metric = (lines.training or lines.held_out or chart.lines[0]).metric
                found.setdefault(metric, lines)
    return list(found.values())


def apart(chart: Chart) -> list[Lines]:
    """The quantities of a chart: "Rewards" has those of chosen and of rejected answers."""

    def lines(title: str, own: Sequence[Line]) -> Lines:
        training = next((line for line in own if not line.held_out), None)
        held_out = next((line for line in own if line.held_out), None)
        return Lines(title, chart.reading, chart.level, chart.log, training, held_out)

    if sum(line.held_out for line in chart.lines) <= 1 and sum(not one.held_out for one in chart.lines) <= 1:
        return [lines(chart.title, chart.lines)]
    groups: dict[str, list[Line]] = {}
    for line in chart.lines:
        groups.setdefault(line.label.removesuffix(", held out"), []).append(line)
    return [lines(f"{chart.title}: {label}", own) for label, own in groups.items()]


def draw(lines: Lines, runs: Sequence[RunFolder]) -> Curve | None:
    """One picture; None if fewer than two runs have two points."""
    shown = [
        (number, _series(run, lines.training), _series(run, lines.held_out))
        for number, run in enumerate(runs, 1)
    ]
    shown = [(number, training, held_out) for number, training, held_out in shown if training or held_out]
    if len(shown) < 2:
        return None
    ends = [(number, *_end(held_out or training)) for number, training, held_out in shown]

    def paint(axes: Any) -> None:
        for number, training, held_out in shown:
            _plot(axes, RUNS[number - 1], training, held_out)
        if lines.level is not None:
            axes.axhline(lines.level, color=INK, linewidth=0.8, linestyle=DOTTED)
        if lines.log and all(y > 0 for _, *both in shown for one in both if one for y in one[1]):
            axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.margins(x=0.08)
        axes.autoscale_view()  # now: the letters are placed by the limits
        for number, x, y in placed(axes, ends):
            axes.text(
                x,
                y,
                letter(number),
                color=RUNS[number - 1],
                transform=axes.transAxes,
                va="center",
                weight="bold",
            )

    told = "; ".join(f"{letter(number)} ends at {value:.3g}" for number, _, value in ends)
    return Curve(
        lines.title, lines.reading, picture(f"runs {lines.title}", paint), f"{lines.title} by step: {told}."
    )


def _series(run: RunFolder, line: Line | None) -> Series | None:
    if line is None:
        return None
    steps, values = run.series(line.metric)
    return (steps, values) if len(values) > 1 else None


def _end(series: Series | None) -> tuple[float, float]:
    assert series is not None
    return series[0][-1], series[1][-1]


def _plot(axes: Any, colour: str, training: Series | None, held_out: Series | None) -> None:
    if training is not None:
        steps, values = training
        if len(values) > MOST_RAW:
            values = running_mean(values, len(values) // 20)
        faint = {"linewidth": 0.9, "alpha": 0.5} if held_out else {"linewidth": 1.7}
        axes.plot(*thin(steps, values), color=colour, **faint)
    if held_out is not None:
        axes.plot(*held_out, color=colour, linewidth=1.7, linestyle=HELD_OUT, marker="o", markersize=3)


def placed(axes: Any, ends: Sequence[tuple[int, float, float]]) -> list[tuple[int, float, float]]:
    """Where the letters of lines stand that end at these points: beside the end, and none on another one.

    Returns each number with its place in shares of width and height of the picture.
    """
    to_share = axes.transData + axes.transAxes.inverted()
    points = sorted((tuple(to_share.transform((x, y))), number) for number, x, y in ends)
    free = -LABEL
    found: list[tuple[int, float, float]] = []
    for (x, y), number in sorted(points, key=lambda point: point[0][1]):
        free = max(y, free + LABEL)
        found.append((number, x + 0.02, free))
    over = max(0.0, free - 1.0)  # too many at the top: all of them a little lower
    return [(number, x, y - over) for number, x, y in found]
