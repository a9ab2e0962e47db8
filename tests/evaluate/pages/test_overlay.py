"""Curves of several runs in one picture."""

from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from lite_align.evaluate.charts import PREFERENCE, Chart, Line
from lite_align.evaluate.folder import read
from lite_align.evaluate.pages import overlay
from lite_align.evaluate.pages.overlay import LABEL, apart, draw, draw_all, placed

Builder = Callable[..., Path]


def test_a_chart_of_two_quantities_becomes_two_pictures() -> None:
    loss = next(chart for chart in PREFERENCE if chart.title == "Loss")
    assert [(one.title, one.training.metric, one.held_out.metric) for one in apart(loss)] == [
        ("Loss", "loss", "eval/loss")
    ]
    rewards = next(chart for chart in PREFERENCE if chart.title == "Rewards")
    assert [(one.title, one.training.metric, one.held_out.metric) for one in apart(rewards)] == [
        ("Rewards: chosen", "rewards/chosen", "eval/rewards/chosen"),
        ("Rewards: rejected", "rewards/rejected", "eval/rewards/rejected"),
    ]
    both = Chart("Clipped", (Line("a", "policy"), Line("b", "value")), "")
    assert [one.title for one in apart(both)] == ["Clipped: policy", "Clipped: value"]


def test_each_run_has_its_colour_and_letter_and_equal_runs_equal_pictures(build: Builder) -> None:
    runs = [read(build(name, steps=steps)) for name, steps in (("one", 72), ("two", 48))]
    curves = draw_all(runs)
    titles = [curve.title for curve in curves]
    assert len(titles) == len(set(titles))
    (loss,) = (curve for curve in curves if curve.title == "Loss")
    assert "var(--run-1)" in loss.svg
    assert "var(--run-2)" in loss.svg
    assert ">A</text>" in loss.svg
    assert ">B</text>" in loss.svg
    assert "#0" not in loss.svg.replace('href="#', "")
    assert loss.description.startswith("Loss by step: A ends at 0.4")
    (lines,) = (one for one in overlay.quantities(runs) if one.title == "Loss")
    assert draw(lines, runs) == loss


def test_a_line_that_one_run_alone_has_is_not_drawn(build: Builder, build_policy: Builder) -> None:
    runs = [read(build()), read(build_policy())]
    titles = {one.title: draw(one, runs) for one in overlay.quantities(runs)}
    assert titles["Gradient norm"] is not None
    assert titles["Reward"] is titles["Margin"] is None


@pytest.mark.parametrize("values", [(0.5, 0.5, 0.5), (0.1, 0.5, 0.9), (1.0, 1.0, 0.99)])
def test_letters_never_stand_on_each_other(values: tuple[float, ...]) -> None:
    axes = Figure().subplots()
    axes.set_xlim(0, 10)
    axes.set_ylim(0, 1)
    found = placed(axes, [(number, 9.0, value) for number, value in enumerate(values, 1)])
    heights = sorted(y for _, _, y in found)
    assert all(high - low >= LABEL - 1e-9 for low, high in zip(heights, heights[1:]))
    assert heights[-1] <= 1 + 1e-9
    assert {number for number, _, _ in found} == {1, 2, 3}
    assert all(x == pytest.approx(0.92) for _, x, _ in found)
