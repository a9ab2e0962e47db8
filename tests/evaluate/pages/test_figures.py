"""Figures of eval.json and compare.json in words and on an axis."""

import pytest

from lite_align.evaluate.pages import figures
from lite_align.evaluate.pages.figures import Measured


def measured(value: object, low: object = None, high: object = None, **more: object) -> dict:
    return {"value": value, "low": low, "high": high, "count": 40, "unit": "share", **more}


def test_figures_without_a_value_are_told_apart() -> None:
    known, empty = figures.read_figures(
        {"a": measured(0.5, 0.4, 0.6), "b": measured(None), "c": measured(float("nan")), "d": [1], "e": None}
    )
    assert list(known) == ["a"]
    assert empty == ["b", "c", "d", "e"]
    assert figures.read_figures(None) == ({}, [])
    half = Measured.read(measured(1.0, 0.5, float("inf")))
    assert half is not None
    assert (half.low, half.high) == (None, None)


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0.784, "share", "78 %"),
        (0.69315, "nats", "0.693 nats"),
        (-2.5, "", "−2.5"),
        (12345.6, "tokens", "12,346 tokens"),
    ],
)
def test_numbers_have_three_digits_and_their_unit(value: float, unit: str, expected: str) -> None:
    assert figures.number(value, unit) == expected


@pytest.mark.parametrize(
    ("low", "high", "better", "word"),
    [
        (0.1, 0.3, "higher", "better"),
        (0.1, 0.3, "lower", "worse"),
        (-0.3, -0.1, "lower", "better"),
        (-0.3, -0.1, "higher", "worse"),
        (-0.1, 0.3, "higher", "no evidence either way"),
        (0.1, 0.3, "", ""),
        (None, None, "higher", ""),
    ],
)
def test_a_change_is_better_only_if_its_interval_leaves_zero_out(low, high, better, word) -> None:
    assert figures.direction(Measured(0.2, low, high), better) == word


def test_a_line_has_value_interval_and_change() -> None:
    block = measured(0.82, 0.7, 0.89, before=0.5, better="higher", change=measured(0.32, 0.2, 0.4, unit=""))
    (line,) = figures.lines(figures.read_figures({"accuracy": block, "accuracy/fact": block})[0])
    assert (line.title, line.before, line.value, line.interval) == (
        "Pair accuracy",
        "50 %",
        "82 %",
        "[70 %, 89 %]",
    )
    assert (line.change, line.word) == ("+32 [+20, +40] points", "better")


def test_a_plot_places_shares_from_0_to_1_with_all_rows_first() -> None:
    known, _ = figures.read_figures(
        {
            "zeal/b": measured(0.1),
            "accuracy/unsafe": measured(0.25, 0.0, 0.5, before=0.75),
            "accuracy": measured(0.5, 0.4, 0.6),
            "loss": measured(2.0, unit="nats"),
        }
    )
    assert [plot.title for plot in figures.plots(known)] == ["Pair accuracy", "zeal"]  # loss has no groups
    plot = figures.plots(known)[0]
    assert (plot.axis, plot.level, plot.with_before) == ("0 % to 100 %", 50.0, True)
    first, second = plot.rows
    assert (first.name, first.dot, first.low, first.high, first.dot_before) == ("all", 50, 40, 60, None)
    assert (second.name, second.dot, second.low, second.high, second.dot_before) == ("unsafe", 25, 0, 50, 75)


def test_an_axis_holds_values_intervals_and_level() -> None:
    known = [Measured(2.0, 1.0, 3.0), Measured(4.0, before=6.0)]
    least, most = figures.span(known, 0.0)
    assert least <= 0 < 6 < most
    assert figures.span([Measured(3.0)], None) == (2.0, 4.0)  # a single value stands in the middle
    assert figures.span([Measured(1.0), Measured(3.0)], None)[0] == 0  # near enough to show it
    assert figures.span([Measured(20.0), Measured(24.0)], None)[0] > 19
