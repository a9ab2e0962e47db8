"""Curves of a run as inline SVG: drawn by matplotlib, coloured by the page, equal bytes for equal numbers."""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lite_align.evaluate.folder import RunFolder, learned_from_thumbs

MOST_POINTS = 300  # more are not seen at the width of a card, and would make the file heavy
SMOOTH_ABOVE = 60  # rows; then a running mean is drawn over the raw values

# Colours that matplotlib writes and the page replaces, so that light and dark come from one picture.
INK, FAINT, FIRST, SECOND = "#010101", "#020202", "#030303", "#040404"
PAGE_COLOURS = {INK: "var(--muted)", FAINT: "var(--line)", FIRST: "var(--first)", SECOND: "var(--second)"}
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
class Line:
    """One metric in a picture.

    `held_out` ones are dashed with markers, so that colour is not needed; `noisy` ones get a running mean.
    """

    metric: str
    label: str
    colour: str = FIRST
    held_out: bool = False
    noisy: bool = True


@dataclass(frozen=True)
class Chart:
    """What one picture shows and how to read it; `level` draws a horizontal line (chance, zero).

    `of_thumbs` is how to read it where the run learned from thumbs, if that is another matter.
    """

    title: str
    lines: tuple[Line, ...]
    reading: str
    level: float | None = None
    log: bool = False
    of_thumbs: str = ""


@dataclass(frozen=True)
class Curve:
    """A drawn chart: SVG markup that holds no text of the user, and the same in words."""

    title: str
    reading: str
    svg: str
    description: str


OPTIMISER: tuple[Chart, ...] = (
    Chart(
        "Gradient norm",
        (Line("grad_norm", "before clipping"),),
        "Single peaks are clipped and harmless; a line that climbs asks for a lower learning rate.",
        log=True,
    ),
    Chart(
        "Learning rate",
        (Line("learning_rate", "learning rate", noisy=False),),
        "Warms up, then follows the schedule of the recipe to the end.",
    ),
    Chart(
        "Speed",
        (Line("examples_per_second", "examples per second"),),
        "Steady is right; a sudden fall means that something else took the machine or its memory.",
    ),
)
LOSS = Chart(
    "Loss",
    (Line("loss", "training"), Line("eval/loss", "held out", SECOND, True)),
    "Both should fall; held out rising while training falls means that the run memorises its rows.",
)
IMITATION: tuple[Chart, ...] = (
    LOSS,
    Chart(
        "Token accuracy",
        (
            Line("mean_token_accuracy", "training"),
            Line("eval/mean_token_accuracy", "held out", SECOND, True),
        ),
        "Share of trained tokens that no other token beats; training lines far above held-out ones are memory.",
    ),
    *OPTIMISER,
)
PREFERENCE: tuple[Chart, ...] = (
    LOSS,
    Chart(
        "Accuracy",
        (Line("rewards/accuracies", "training"), Line("eval/rewards/accuracies", "held out", SECOND, True)),
        "Share of pairs whose chosen answer gained more than the rejected one; 0.5 is chance, 1.0 very early is "
        "suspicious.",
        level=0.5,
        of_thumbs="Share of answers with a thumb up that gained more than the reference point, and of those with a "
        "thumb down that gained less; 0.5 is chance, 1.0 very early is suspicious.",
    ),
    Chart(
        "Margin",
        (Line("rewards/margins", "training"), Line("eval/rewards/margins", "held out", SECOND, True)),
        "How much more the chosen answer gained than the rejected one, times beta; it starts at 0 and should "
        "rise and level off.",
        level=0.0,
        of_thumbs="Mean gain of answers with a thumb up less that of answers with a thumb down, times beta; it starts "
        "at 0 and should rise and level off.",
    ),
    Chart(
        "Rewards",
        (
            Line("rewards/chosen", "chosen"),
            Line("rewards/rejected", "rejected", SECOND),
            Line("eval/rewards/chosen", "chosen, held out", FIRST, True),
            Line("eval/rewards/rejected", "rejected, held out", SECOND, True),
        ),
        "Gain of each answer over the reference; good runs part around 0, and a chosen line that sinks means that "
        "good answers become less likely too.",
        level=0.0,
        of_thumbs="Gain of each answer over the reference; good runs part around the reference point times beta, and "
        "a thumb-up line that sinks means that good answers become less likely too.",
    ),
    Chart(
        "Reference point",
        (Line("kl", "training"), Line("eval/kl", "held out", SECOND, True)),
        "How much the policy has gained on answers under prompts that are not theirs, in nats: an estimate of its KL "
        "from the reference, from which gains are measured. Near 0 at first; a steep climb means that the run drifts.",
        level=0.0,
    ),
    Chart(
        "Log-probs of answers",
        (
            Line("logps/chosen", "chosen"),
            Line("logps/rejected", "rejected", SECOND),
            Line("eval/logps/chosen", "chosen, held out", FIRST, True),
            Line("eval/logps/rejected", "rejected, held out", SECOND, True),
        ),
        "Sums over the tokens of an answer, in nats; training lines jump with the length of the answers in a batch, "
        "so trust the held-out ones.",
    ),
    Chart(
        "Answer length",
        (Line("lengths/chosen", "chosen"), Line("lengths/rejected", "rejected", SECOND)),
        "Tokens of the answers in each step; chosen ones longer throughout teach the model to be long.",
    ),
    *OPTIMISER,
)
REWARD: tuple[Chart, ...] = (
    LOSS,
    Chart(
        "Accuracy",
        (Line("rewards/accuracies", "training"), Line("eval/rewards/accuracies", "held out", SECOND, True)),
        "Share of pairs whose chosen answer scores higher; 0.5 is chance, and labels that disagree set a ceiling "
        "below 1.",
        level=0.5,
    ),
    Chart(
        "Margin",
        (Line("rewards/margins", "training"), Line("eval/rewards/margins", "held out", SECOND, True)),
        "Score of the chosen answer less that of the rejected one: the log-odds of the choice. Training far above "
        "held out is overconfidence.",
        level=0.0,
    ),
    Chart(
        "Scores",
        (
            Line("rewards/chosen", "chosen"),
            Line("rewards/rejected", "rejected", SECOND),
            Line("eval/rewards/chosen", "chosen, held out", FIRST, True),
            Line("eval/rewards/rejected", "rejected, held out", SECOND, True),
        ),
        "Mean scores; only their difference has a meaning, and centering keeps them around 0.",
        level=0.0,
    ),
    *OPTIMISER,
)
CHARTS: dict[str, tuple[Chart, ...]] = {"sft": IMITATION, "dpo": PREFERENCE, "reward": REWARD}
"""What is drawn, by stage of the run."""


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
            axes.set_yscale("log")
        axes.set_xlabel("step")
        if len(series) > 1:
            legend(axes)

    ends = "; ".join(f"{line.label} from {v[0]:.3g} to {v[-1]:.3g}" for line, _, v in series)
    return Curve(chart.title, chart.reading, picture(chart.title, paint), f"{chart.title} by step: {ends}.")


def picture(title: str, paint: Callable[[Any], None]) -> str:
    """SVG markup for the page of what `paint` draws on matplotlib's axes; equal bytes for equal numbers."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(4.0, 2.5), layout="constrained")
        paint(figure.subplots())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_page(buffer.getvalue(), prefix=title.lower().replace(" ", "-"))


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
    """The <svg> element alone: page colours for ours, and only ids that are used, unique in the page."""
    svg = svg[svg.index("<svg") :]
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
