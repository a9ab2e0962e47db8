"""The over-optimisation curve: √KL across, the reward and one quality beside it."""

from collections.abc import Callable
from pathlib import Path

from lite_align.evaluate.folder import RunFolder, read
from lite_align.evaluate.optimisation import draw


def rows(**more: float) -> RunFolder:
    metrics = [
        {"step": n, "eval/kl": kl, "eval/reward": reward, **{f"eval/{k}": v + n for k, v in more.items()}}
        for n, (kl, reward) in enumerate([(-0.01, 0.0), (4.0, 1.0), (9.0, 1.5)])
    ]
    return RunFolder(Path("run"), {"stage": "ppo"}, metrics, [], [])


def test_distance_is_the_root_of_kl_and_an_estimate_below_zero_is_none():
    alone = draw(rows())
    assert alone is not None
    assert alone.description == "Reward against KL, √KL from 0.00 to 3.00: reward from 0 to 1.5."
    assert "was not measured" in alone.reading


def test_the_best_quality_that_was_measured_stands_below():
    pairs = draw(rows(preference_accuracy=0.5))
    assert pairs is not None
    assert pairs.description.endswith("; preference accuracy from 0.5 to 2.5.")
    both = draw(rows(preference_accuracy=0.5, rule_score=0.25))
    assert both is not None
    assert both.description.endswith("reward from 0 to 1.5; rule score from 0.25 to 2.25.")
    assert both.svg.count("rule score") == 1
    assert both == draw(rows(preference_accuracy=0.5, rule_score=0.25))


def test_runs_without_such_evaluations_have_none(build: Callable[..., Path]):
    assert draw(read(build())) is None
    assert draw(RunFolder(Path("run"), {}, rows().metrics[:1], [], [])) is None
