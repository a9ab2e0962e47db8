"""Pictures of held-out rows for the report, by stage of the run; each is drawn from the run folder alone."""

from collections.abc import Callable
from typing import Any

from lite_align.evaluate.charts import FIRST, SECOND
from lite_align.evaluate.curves import DOTTED, INK, Curve, legend, picture
from lite_align.evaluate.folder import Record, RunFolder
from lite_align.evaluate.scores import answers, measure, measured
from lite_align.evaluate.statistics import percent

Rows = list[Record]


def draw_all(folder: RunFolder) -> list[Curve]:
    """Every picture of the run's stage; none without held-out rows."""
    rows = measured(folder.held_out)
    return [draw(rows) for draw in PICTURES.get(str(folder.run.get("stage")), ())] if rows else []


def distribution(rows: Rows) -> Curve:
    """How the scores of chosen and rejected answers lie."""
    chosen, rejected = ([row[f"{side}_reward"] for row in rows] for side in ("chosen", "rejected"))
    low, high = min(chosen + rejected), max(chosen + rejected)
    edges = [low + (high - low or 1.0) * n / 20 for n in range(21)]

    def paint(axes: Any) -> None:
        axes.hist(chosen, edges, color=FIRST, alpha=0.55, label="chosen")
        axes.hist(rejected, edges, histtype="step", color=SECOND, linewidth=1.7, label="rejected")
        axes.set_xlabel("score")
        axes.set_ylabel("answers")
        legend(axes)

    title = "Distribution of scores"
    means = [sum(values) / len(values) for values in (chosen, rejected)]
    return Curve(
        title,
        "Filled: chosen answers; outline: rejected ones. The further apart, the more certain is the model.",
        picture(title, paint),
        f"{title}: chosen around {means[0]:.3g}, rejected around {means[1]:.3g}.",
    )


def calibration(rows: Rows) -> Curve:
    """Confidence against accuracy."""
    bins = measure(rows).reliability

    def paint(axes: Any) -> None:
        axes.plot([0.5, 1.0], [0.5, 1.0], color=INK, linewidth=0.8, linestyle=DOTTED)
        confidence, right = [b.confidence for b in bins], [b.accuracy for b in bins]
        axes.plot(confidence, right, color=FIRST, linewidth=1.2)
        largest = max(b.count for b in bins)
        axes.scatter(confidence, right, s=[12 + 90 * b.count / largest for b in bins], color=FIRST)
        axes.set_xlim(0.48, 1.02)
        axes.set_ylim(-0.02, 1.04)
        axes.set_xlabel("confidence")
        axes.set_ylabel("share right")

    title = "Calibration"
    told = "; ".join(f"{percent(b.confidence)} sure, {percent(b.accuracy)} right" for b in bins)
    return Curve(
        title,
        "Dots on the dotted line are right as often as they are sure; below it the model is overconfident. "
        "Larger dots hold more pairs.",
        picture(title, paint),
        f"{title}: {told}.",
    )


def length(rows: Rows) -> Curve:
    """Scores against lengths."""
    tokens, rewards = zip(*answers(rows).values(), strict=True)

    def paint(axes: Any) -> None:
        axes.scatter(tokens, rewards, s=9, color=FIRST, alpha=0.55, linewidths=0)
        axes.set_xlabel("tokens of the answer")
        axes.set_ylabel("score")

    title = "Score and length"
    found = measure(rows).length
    told = "no correlation can be told" if found is None else f"correlation {found.pearson:+.2f}"
    return Curve(
        title,
        "One dot an answer. A cloud that rises or falls means that length alone explains part of the score.",
        picture(title, paint),
        f"{title}: {told}.",
    )


PICTURES: dict[str, tuple[Callable[[Rows], Curve], ...]] = {"reward": (distribution, calibration, length)}
"""What is drawn of held-out rows, by stage of the run."""
