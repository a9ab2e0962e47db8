"""Curves of a run as inline SVG: drawn by matplotlib, coloured by the page, equal bytes for equal numbers."""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lite_align.evaluate.charts import CHARTS, FIRST, PREFERENCE, SECOND, Chart, Line
from lite_align.evaluate.folder import RunFolder, learned_from_thumbs

MOST_POINTS = 300  # more are not seen at the width of a card, and would make the file heavy
SMOOTH_ABOVE = 60  # rows; then a running mean is drawn over the raw values

# Colours that matplotlib writes and the page replaces, so that light and dark come from one picture.
INK, FAINT = "#010101", "#020202"
RUNS = ("#050505", "#060606", "#070707", "#080808", "#090909", "#0a0a0a")
PAGE_COLOURS = {INK: "var(--muted)", FAINT: "var(--line)", FIRST: "var(--first)", SECOND: "var(--second)"} | {
    colour: f"var(--run-{number})" for number, colour in enumerate(RUNS, 1)
}
DOTTED = (0, (1, 2))
TRAINING, HELD_OUT = "-", (0, (4, 2))

SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "lite-align",
    "svg.fonttype": "none",
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@dataclass(frozen=True)
class Curve:
    """A drawn chart: SVG markup that holds no text of the user, and the same in words."""

    title: str
    reading: str
    svg: str
    description: str


def draw_all(folder: RunFolder) -> list[Curve]:
    """Draw every chart for which the run has at least two points of some line."""
    charts = CHARTS.get(str(folder.run.get("stage")), PREFERENCE)
    told = [for_thumbs(chart) for chart in charts] if learned_from_thumbs(folder) else charts
    return [curve for chart in told if (curve := draw(folder, chart)) is not None]


def for_thumbs(chart: Chart) -> Chart:
    """The chart in the words of a run that learned from thumbs."""
    lines = tuple(
        replace(line, label=line.label.replace("chosen", "thumb up").replace("rejected", "thumb down"))
        for line in chart.lines
    )
    return replace(chart, lines=lines, reading=chart.of_thumbs or chart.reading)


def draw(folder: RunFolder, chart: Chart) -> Curve | None:
    """One chart as SVG without header, ids or fixed size; None without points off its level."""
    series = [(line, *folder.series(line.metric)) for line in chart.lines]
    series = [(line, steps, values) for line, steps, values in series if len(values) > 1]
    if all(value == chart.level for _, _, values in series for value in values):
        return None

    def paint(axes: Any) -> None:
        for line, steps, values in series:
            _plot(axes, line, steps, values)
        if chart.level is not None:
            axes.axhline(chart.level, color=INK, linewidth=0.8, linestyle=DOTTED)
        if chart.log and all(min(values) > 0 for _, _, values in series):
            logarithmic(axes)
        axes.set_xlabel("step")
        if len(series) > 1:
            legend(axes)

    ends = "; ".join(f"{line.label} from {v[0]:.3g} to {v[-1]:.3g}" for line, _, v in series)
    return Curve(chart.title, chart.reading, picture(chart.title, paint), f"{chart.title} by step: {ends}.")


def picture(title: str, paint: Callable[[Any], None], panels: int = 1) -> str:
    """SVG markup for the page of what `paint` draws on matplotlib's axes; equal bytes for equal numbers.

    Of several panels, one above the other over the same x, `paint` gets an array.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(4.0, 2.5), layout="constrained")
        paint(figure.subplots(panels, sharex=True))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_page(buffer.getvalue(), prefix=title.lower().replace(" ", "-"))


def logarithmic(axes: Any) -> None:
    """Draw over a logarithmic axis, which is labelled with plain numbers."""
    from lite_align.evaluate.ticks import PlainNumbers

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(PlainNumbers())
    axes.yaxis.set_minor_formatter(PlainNumbers())


def legend(axes: Any) -> None:
    """Name the lines above the picture."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 0.98), ncols=2, handlelength=2.4, borderpad=0)


def _plot(axes: Any, line: Line, steps: Sequence[float], values: Sequence[float]) -> None:
    many = len(values) > SMOOTH_ABOVE and line.noisy and not line.held_out
    style = HELD_OUT if line.held_out else TRAINING
    marker = {"marker": "o", "markersize": 3} if len(values) <= 12 else {}
    if many:
        axes.plot(*thin(steps, values), color=line.colour, linewidth=0.7, alpha=0.4)
        values = running_mean(values, len(values) // 20)
    steps, values = thin(steps, values)
    axes.plot(steps, values, color=line.colour, linewidth=1.7, linestyle=style, label=line.label, **marker)


def thin(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most MOST_POINTS evenly spread points; the last one always stays."""
    stride = -(-len(values) // MOST_POINTS)
    kept = sorted({*range(0, len(values), stride), len(values) - 1})
    return [steps[i] for i in kept], [values[i] for i in kept]


def running_mean(values: Sequence[float], half: int) -> list[float]:
    """Mean over up to `half` neighbours on each side, fewer near the ends: [1, 2, 6], 1 gives [1.5, 3, 4]."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    bounds = [(max(0, i - half), min(len(values), i + half + 1)) for i in range(len(values))]
    return [(sums[high] - sums[low]) / (high - low) for low, high in bounds]


def _for_page(svg: str, prefix: str) -> str:
    """The <svg> element alone: page colours for ours, no comments, and only ids that are used, unique in the page."""
    svg = re.sub(r"<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"<(metadata|style).*?</\1>", "", svg, flags=re.DOTALL)
    for ours, theirs in PAGE_COLOURS.items():
        svg = svg.replace(ours, theirs)
    used = set(re.findall(r"url\(#([^)]+)\)", svg)) | set(re.findall(r'href="#([^"]+)"', svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", svg)
    svg = svg.replace("url(#", f"url(#{prefix}-").replace('href="#', f'href="#{prefix}-')
    head = r'<svg xmlns:xlink="[^"]*" width="[^"]*" height="[^"]*" (viewBox="[^"]*")[^>]*>'
    return (
        re.sub(head, r'<svg \1 aria-hidden="true" focusable="false">', svg)
        .replace("xlink:href", "href")
        .strip()
    )
