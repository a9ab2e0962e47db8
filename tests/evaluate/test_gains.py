"""Held-out figures of a ppo run, by hand."""

from pathlib import Path
from typing import Any

import pytest

from lite_align.evaluate.folder import RunFolder
from lite_align.evaluate.gains import Preference, measure, preference_record, preferences, trips


def row(
    reward: tuple[float, float], tokens: tuple[float, float] = (10, 12), **scores: tuple[float, float]
) -> Any:
    figures = {"reward": reward, "tokens": tokens, **scores}
    return {
        side: {name: pair[i] for name, pair in figures.items()} for i, side in enumerate(("before", "after"))
    }


def folder(run: dict[str, Any], metrics: list[Any] = ()) -> RunFolder:  # pyright: ignore
    return RunFolder(Path("run"), run, list(metrics), [], [])


def test_differences_are_paired():
    """Changes 1, 2 and 3: mean 2, half width 4.3027/√3 = 2.4842; lengths 20 to 30: half as long again."""
    found = measure([row((5, 6), (20, 20)), row((0, 2), (20, 30)), row((-5, -2), (20, 40))])
    assert (found.count, found.reward.before, found.reward.after) == (3, 0.0, 2.0)
    change = found.reward.change
    assert (change.value, change.low, change.high) == pytest.approx((2.0, -0.48414, 4.48414), abs=1e-4)
    assert found.longer == pytest.approx(0.5)
    assert found.rule_score is found.kl is None


def test_a_figure_rests_on_the_rows_that_have_it():
    found = measure([row((0, 1), rule_score=(0.5, 0.7)), row((0, 1)), row((0, 1), rule_score=(0.5, 0.9))])
    assert found.rule_score is not None
    assert found.rule_score.change.count == 2
    assert (found.rule_score.before, found.rule_score.after) == pytest.approx((0.5, 0.8))


def test_pairs_are_told_by_those_that_changed():
    record = preference_record([1, 0, 0, 1], [1, 1, 1, 0])
    assert record == {"pairs": 4, "before": 0.5, "after": 0.75, "gained": 2, "lost": 1}
    found = preferences(folder({"ppo": {"preference": record}}))
    assert found == Preference(0.5, 0.75, 4, 2, 1)
    assert found.improved is not None
    assert (found.improved.value, found.improved.count) == (pytest.approx(2 / 3), 3)


def test_without_a_record_the_shares_of_the_evaluations_stay():
    rows = [{"step": step, "eval/preference_accuracy": 0.6 + step / 100} for step in (0, 5, 10)]
    assert preferences(folder({}, rows)) == Preference(0.6, 0.7)
    assert preferences(folder({}, rows)).improved is None  # pyright: ignore
    assert preferences(folder({"ppo": {"preference": {"before": "x"}}}, rows[:1])) is None


def test_guards_of_a_broken_record_are_none():
    assert trips(folder({"ppo": {"guards": "x"}})) == trips(folder({})) == []
    assert trips(folder({"ppo": {"guards": [1, {"guard": "kl"}]}})) == [{"guard": "kl"}]
