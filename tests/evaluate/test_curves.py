"""Pictures: deterministic, without ids that clash, without text of the user, in words as well."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from lite_align.evaluate.charts import POLICY, PREFERENCE
from lite_align.evaluate.curves import MOST_POINTS, RunFolder, draw, draw_all, running_mean, thin
from lite_align.evaluate.folder import read


def test_a_run_is_drawn_twice_alike_and_each_chart_is_described(build: Callable[..., Path]) -> None:
    folder = read(build())
    curves = draw_all(folder)
    unseen = (
        "Answer length",
        "Token accuracy",
        "Reference point",
    )  # a dpo run without lengths has no lines of these
    assert [c.title for c in curves] == [c.title for c in PREFERENCE if c.title not in unseen]
    assert curves == draw_all(folder)
    assert curves[0].description == "Loss by step: training from 0.912 to 0.58; held out from 0.607 to 0.484."


def test_ids_are_unique_on_the_page_and_colours_are_the_pages(build: Callable[..., Path]) -> None:
    page = "".join(curve.svg for curve in draw_all(read(build())))
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]+)\)", page)) | set(re.findall(r'href="#([^"]+)"', page)) == set(ids)
    assert "#0" not in page
    assert "var(--first)" in page
    assert not re.search(r"https?:|<style|<metadata|<script", page)


def test_nothing_is_drawn_of_less_than_two_points() -> None:
    assert draw(RunFolder(Path(), {}, [{"step": 1, "loss": 2.0}], [], []), PREFERENCE[0]) is None


def test_a_zero_gradient_norm_is_drawn_on_a_linear_axis() -> None:
    rows = [{"step": i, "grad_norm": float(i)} for i in range(3)]
    chart = next(c for c in PREFERENCE if c.log)
    assert draw(RunFolder(Path(), {}, rows, [], []), chart) is not None


def test_long_runs_are_thinned_but_end_where_they_end() -> None:
    steps, values = thin(range(10_001), [float(i) for i in range(10_001)])
    assert len(steps) <= MOST_POINTS + 1
    assert (steps[0], steps[-1], values[-1]) == (0, 10_000, 10_000.0)
    assert thin([1, 2], [3.0, 4.0]) == ([1, 2], [3.0, 4.0])


def test_running_mean_by_hand() -> None:
    assert running_mean([1, 2, 6], 1) == pytest.approx([1.5, 3, 4])
    assert running_mean([5, 7], 0) == pytest.approx([5, 7])


def test_thumbs_have_words_and_a_reference_point_of_their_own() -> None:
    rows = [
        {"step": i, "rewards/chosen": 0.1 * i, "rewards/accuracies": 0.5 + 0.1 * i, "kl": 0.2 * i}
        for i in range(3)
    ]
    folder = RunFolder(Path(), {"data": {"kind": "thumbs"}}, rows, [], [])
    accuracy, rewards, point = draw_all(folder)
    assert "reference point" in accuracy.reading
    assert "thumb up from 0 to 0.2" in rewards.description
    assert point.title == "Reference point"
    flat = RunFolder(Path(), folder.run, [dict(row, kl=0.0) for row in rows], [], [])
    assert [curve.title for curve in draw_all(flat)] == ["Accuracy", "Rewards"]


def test_a_policy_is_drawn_with_all_that_its_run_measured(build_policy: Callable[..., Path]) -> None:
    titles = [curve.title for curve in draw_all(read(build_policy()))]
    unseen = "Preference accuracy"  # there were no pairs
    assert titles == [chart.title for chart in POLICY if chart.title != unseen]
