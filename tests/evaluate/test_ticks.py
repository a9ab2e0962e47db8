"""Labels of logarithmic axes, read off a drawn axis."""

import pytest
from matplotlib.figure import Figure

from lite_align.evaluate.ticks import PlainNumbers


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [(0.4, 4.0, ["0.4", "0.6", "1", "2", "3", "4"]), (0.001, 1000.0, ["0.001", "0.1", "10", "1000"])],
)
def test_labels_are_plain_numbers_and_only_those_that_have_room(
    low: float, high: float, labels: list[str]
) -> None:
    figure = Figure(figsize=(4.0, 2.5))
    axes = figure.subplots()
    axes.set_yscale("log")
    for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        which(PlainNumbers())
    axes.set_ylim(low, high)
    figure.draw_without_rendering()
    ticks = [*axes.yaxis.get_major_ticks(), *axes.yaxis.get_minor_ticks()]
    shown = {tick.label1.get_text() for tick in ticks if low <= tick.get_loc() <= high} - {""}
    assert sorted(shown, key=float) == labels
