"""Figures and warnings that runs of every stage share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lite_align.evaluate import findings
from lite_align.evaluate.folder import read
from lite_align.evaluate.statistics import Interval


@pytest.mark.parametrize(
    ("answers", "change", "shown"),
    [
        (
            [{"before_tokens": 10, "after_tokens": 12}, {"before_tokens": 30, "after_tokens": 38}],
            0.25,
            "+25 %",
        ),
        ([{"before_tokens": 10, "after_tokens": 9}], -0.1, "−10 %"),
        ([{"before_tokens": 10, "after_tokens": None}], None, findings.DASH),
        ([], None, findings.DASH),
    ],
)
def test_the_change_of_length_is_that_of_the_mean(
    answers: list[dict], change: float | None, shown: str
) -> None:
    assert findings.length_change(answers) == pytest.approx(change)
    assert findings.length_figure(answers).value == shown


def test_a_sound_run_earns_no_warning_that_all_stages_share(build: Callable[..., Path]) -> None:
    folder = read(build(answers=None))
    checks = (findings.hardly_moved, findings.held_out_loss_rises, findings.training_loss_rises)
    assert [check(folder) for check in checks] == [None, None, None]


@pytest.mark.parametrize(("count", "warned"), [(0, False), (1, True), (39, True), (40, False)])
def test_a_warning_of_few_held_out_rows_names_them(count: int, warned: bool) -> None:
    told = findings.few_held_out(count, "thumbs up")
    assert (told is not None) == warned
    assert told is None or f"Only {count} held-out thumbs up" in told


def test_a_category_of_shares_is_drawn_in_percent() -> None:
    row = findings.share_row("fact", 0.5, Interval(0.75, 0.6, 0.9, 20))
    assert (row.before, row.after, row.count) == ("50 %", "75 %", 20)
    assert (row.dot_before, row.low, row.dot, row.high) == (50, 60, 75, 90)
