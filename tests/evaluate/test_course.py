"""Samples and categories over a run: order, what is left out, and the drawing, by hand."""

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lite_align.evaluate.course import MOST_EVALUATIONS, MOST_PROMPTS, samples, spread, trends
from lite_align.evaluate.folder import RunFolder


def folder(*, rows: list[Any] = (), metrics: list[Any] = ()) -> RunFolder:  # pyright: ignore
    return RunFolder(Path("run"), {"stage": "ppo"}, list(metrics), [], [], list(rows))


def test_answers_stand_by_prompt_in_the_order_of_the_run():
    rows = [
        {"step": 10, "prompt": "a", "category": "fact", "answer": "late", "tokens": 1200, "reward": 1.5},
        {"step": 0, "prompt": "b", "answer": "x", "tokens": 2},
        {
            "step": 0,
            "prompt": "a",
            "category": "fact",
            "answer": "early",
            "tokens": 3,
            "reward": None,
            "kl": 0.0,
        },
    ]
    [a, b], left_out = samples(folder(rows=rows))
    assert left_out == 0
    assert (a.text, a.category, a.columns) == ("a", "fact", ("tokens", "reward", "KL"))
    assert [(s.step, s.answer, s.figures) for s in a.samples] == [
        ("0", "early", ("3", "", "0.00")),
        ("10", "late", ("1,200", "1.50", "")),
    ]
    assert (b.category, b.columns, b.left_out) == ("", ("tokens",), 0)


def test_what_is_not_shown_is_counted():
    rows = [
        {"step": step, "prompt": f"p{n}", "answer": ""} for step in range(31) for n in range(MOST_PROMPTS + 3)
    ]
    prompts, left_out = samples(folder(rows=rows))
    assert (len(prompts), left_out) == (MOST_PROMPTS, 3)
    assert prompts[0].left_out == 31 - MOST_EVALUATIONS
    assert [prompts[0].samples[i].step for i in (0, -1)] == ["0", "30"]


@given(st.integers(1, 200), st.integers(2, 20))
def test_spread_keeps_both_ends_and_repeats_nothing(count: int, most: int):
    rows: list[Any] = [{"step": n} for n in range(count)]
    kept = [row["step"] for row in spread(rows, most)]
    assert len(kept) == min(count, most)
    assert kept == sorted(set(kept))
    assert (kept[0], kept[-1]) == (0, count - 1)


def test_categories_are_drawn_on_one_axis():
    """From 0.2 to 0.7 over 20 steps: 0.2 is the bottom (20), 0.7 the top (0), 0.45 the middle."""
    metrics = [
        {"step": 0, "eval/rule_score/fact": 0.7, "eval/rule_score/b": 0.2, "eval/rule_score/once": 9.0},
        {"step": 10, "eval/rule_score/fact": 0.45},
        {"step": 20, "eval/rule_score/fact": 0.6, "eval/rule_score/b": 0.2},
    ]
    [b, fact], axis = trends(folder(metrics=metrics))
    assert (axis, b.name, b.points) == ("0.20 to 0.70", "b", "0.0,20.0 100.0,20.0")
    assert (fact.first, fact.least, fact.last) == ("0.70", "0.45", "0.60")
    assert fact.points == "0.0,0.0 50.0,10.0 100.0,4.0"
    assert trends(folder()) == ([], "")


def test_a_score_that_never_moves_can_be_drawn():
    [only], _ = trends(folder(metrics=[{"step": 0, "eval/rule_score/a": 0.5}] * 2))
    assert only.points == "0.0,20.0 0.0,20.0"
