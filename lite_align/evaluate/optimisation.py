"""The over-optimisation curve: what a reward and the quality beside it did with the distance from the start."""

import math
from typing import Any

from lite_align.evaluate.charts import FIRST, SECOND
from lite_align.evaluate.curves import HELD_OUT, Curve, picture
from lite_align.evaluate.folder import RunFolder, is_number

QUALITY = {"eval/rule_score": "rule score", "eval/preference_accuracy": "preference accuracy"}
"""Figures that a policy does not optimise, the best first."""


def draw(folder: RunFolder) -> Curve | None:
    """Reward, and below it the quality that was measured beside it, against √KL (arXiv 2210.10760, section 3)."""
    rows = [
        row for row in folder.metrics if is_number(row.get("eval/kl")) and is_number(row.get("eval/reward"))
    ]
    names = [name for name in QUALITY if any(is_number(row.get(name)) for row in rows)][:1]
    shown = ["eval/reward", *names]
    rows = [row for row in rows if all(is_number(row.get(name)) for name in shown)]
    if len(rows) < 2:
        return None
    distance = [math.sqrt(max(0.0, row["eval/kl"])) for row in rows]  # an estimate, and so below 0 at times

    def paint(axes: Any) -> None:
        panels = axes if names else [axes]
        for panel, name in zip(panels, shown, strict=True):
            values = [row[name] for row in rows]
            first = name == "eval/reward"
            colour, style = (FIRST, "-") if first else (SECOND, HELD_OUT)
            panel.plot(
                distance, values, color=colour, linewidth=1.7, linestyle=style, marker="o", markersize=3
            )
            panel.plot(distance[-1:], values[-1:], color=colour, marker="s", markersize=6)
            panel.set_ylabel("reward" if first else QUALITY[name])
        panels[-1].set_xlabel("√KL to the start")

    title = "Reward against KL"
    told = "; ".join(
        f"{'reward' if name == 'eval/reward' else QUALITY[name]} from {rows[0][name]:.3g} to {rows[-1][name]:.3g}"
        for name in shown
    )
    below = (
        f"below, the {QUALITY[names[0]]}, which is not optimised. Where the lower line turns while the upper one still "
        "rises, the reward is being hacked, and the run should have ended there"
        if names
        else "whether quality follows was not measured: there were no rule scores and no held-out pairs (ppo.pairs)"
    )
    return Curve(
        title,
        f"Held-out reward for the distance gone; a dot is an evaluation, the square the last one; {below}.",
        picture(title, paint, panels=len(shown)),
        f"{title}, √KL from {distance[0]:.2f} to {distance[-1]:.2f}: {told}.",
    )
