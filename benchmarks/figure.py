"""Draw how the cost of a pair grows, from the result file of `benchmarks.scaling` and nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from benchmarks import record
from benchmarks.scaling import RESULT, SWEEPS
from benchmarks.sides import LITE

PICTURE = record.RESULTS / "scaling-cpu.svg"
COLOURS = {LITE: "#0b7285", "TRL": "#e8590c"}

AXES: dict[str, tuple[str, Callable[[dict[str, Any]], float]]] = {
    "prompt share": ("share of the tokens in prompts", lambda p: p["sides"][LITE]["prompt_share"]["median"]),
    "length": ("tokens a pair", lambda p: p["sides"][LITE]["tokens_per_example"]["median"]),
    "vocabulary": ("vocabulary", lambda p: p["point"]["vocabulary"]),
    "model size": ("parameters", lambda p: p["sides"][LITE]["parameters"]["median"]),
}
"""By sweep: what its axis is called, and where a point lies on it."""

MEASURES: dict[str, tuple[str, float]] = {
    "seconds_per_example": ("CPU s a pair", 1.0),
    "memory": ("memory, GiB", 2.0**-30),
}


def draw(sweeps: dict[str, Any], picture: Path) -> bool:
    """Draw time and memory over every sweep that was measured; False, and no file, if there is none."""
    names = [name for name in SWEEPS if name in sweeps]
    picture.unlink(missing_ok=True)
    if not names:
        return False
    # Without a date and with names from a fixed salt, the same figures give the same file.
    with plt.rc_context({"svg.hashsalt": "lite-align", "font.size": 8}):
        figure, grid = plt.subplots(
            len(MEASURES), len(names), figsize=(2.6 * len(names), 4.2), squeeze=False, layout="constrained"
        )
        for row, measure in zip(grid, MEASURES):
            for axes, name in zip(row, names):
                panel(axes, name, measure, sweeps[name]["points"])
        grid[0][0].legend(frameon=False)
        figure.savefig(picture, metadata={"Date": None})
        plt.close(figure)
    return True


def panel(axes: Axes, sweep: str, measure: str, points: list[dict[str, Any]]) -> None:
    """Both sides over one sweep, with the range of their runs."""
    label, place = AXES[sweep]
    unit, factor = MEASURES[measure]
    for side in points[0]["sides"]:
        name = LITE if side == LITE else "TRL"
        figures = [point["sides"][side][measure] for point in points]
        x = [place(point) for point in points]
        low, high = ([factor * figure[end] for figure in figures] for end in ("low", "high"))
        axes.fill_between(x, low, high, color=COLOURS[name], alpha=0.2, linewidth=0)
        axes.plot(x, [factor * f["median"] for f in figures], marker="o", color=COLOURS[name], label=name)
    if sweep != "prompt share":
        axes.set_xscale("log", base=2)
        axes.set_xticks([place(point) for point in points])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(bottom=0)
    axes.set_xlabel(label)
    axes.set_ylabel(unit)
    axes.spines[["top", "right"]].set_visible(False)


def short(value: float) -> str:
    """A count in three digits: 131k, 14.7M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def main() -> None:
    """Draw the picture that the README shows."""
    draw(record.load(RESULT), PICTURE)


if __name__ == "__main__":
    main()
