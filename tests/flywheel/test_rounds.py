"""What came of rounds: the table, and what it says where nothing was measured."""

import io
from typing import Any

import pytest

from lite_align.flywheel import rounds
from lite_align.view import View


def figure(value: float, low: float, high: float, before: float | None = None) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "count": 40, "before": before}


GOOD = {
    "round": 1,
    "status": rounds.PROMOTED,
    "pairs": 1200,
    "agreement": {"kappa": figure(0.613, 0.5, 0.7), "rule": figure(-0.28, -0.4, -0.1)},
    "figures": {
        "win_rate": figure(0.61, 0.55, 0.67),
        "rule_score": figure(0.749, 0.7, 0.8, before=0.638),
        "kl": figure(0.28, 0.1, 0.4),
        "kl_start": figure(1.53, 1.2, 1.8),
    },
}


def test_the_table_has_gain_kl_and_agreement_by_round() -> None:
    out = io.StringIO()
    waiting = {"round": 2, "status": rounds.WAITING, "why": "0 of 50"}
    rounds.show("town", [GOOD, waiting], View(file=out, width=200))
    lines = out.getvalue().splitlines()
    assert lines[0].strip() == "Loop town"
    for text in (
        "1,200",
        "0.61 with people, -0.28 with the rule",
        "61 % [55 %, 67 %]",
        "0.64 → 0.75",
        "0.28",
        "1.53",
    ):
        assert text in lines[2], text
    assert lines[3].split() == ["2", "–", "not", "measured", *["–"] * 4, "waiting"]


@pytest.mark.parametrize("figures", [{}, {"alpha": {"value": None, "low": None, "high": None, "count": 3}}])
def test_agreement_that_was_not_measured_is_told(figures: dict[str, Any]) -> None:
    assert rounds.agreement(figures) == "not measured"
