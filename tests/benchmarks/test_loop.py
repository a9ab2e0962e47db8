"""The loop of the demo: what a result file becomes in the README."""

from pathlib import Path
from typing import Any

from benchmarks import loop, record


def a_round(status: str, win_rate: float, why: str = "") -> dict[str, Any]:
    return {
        "status": status,
        "why": why,
        "pairs": 600,
        "kappa": 0.3,
        "win_rate": win_rate,
        "kl": 0.5,
        "kl_start": 1.5,
    }


def test_no_file_is_not_yet_measured(tmp_path: Path) -> None:
    text = loop.section(tmp_path)
    assert "0 seeds" in text
    assert f"| 0 (SFT) |{' |' * 6} {loop.MISSING} |" in text


def test_rounds_are_told_with_mean_and_range_and_where_they_stopped(tmp_path: Path) -> None:
    good, bad = a_round("promoted", 0.6), a_round("refused", 0.45, "win_rate>0.5: failed")
    seeds = {
        "1": {"rounds": [good, good], "unseen": [0.6, 0.7, 0.8]},
        "2": {"rounds": [a_round("promoted", 0.7), bad], "unseen": [0.5, 0.6]},
    }
    record.add(tmp_path / loop.RESULT.name, loop.CASE, {"machine": {}, "seeds": seeds})
    lines = loop.section(tmp_path).splitlines()
    assert lines[4].endswith("| 0.550 (0.500–0.600) |")
    assert lines[5].startswith("| 1 | 2 of 2 | 600 (600–600) | 0.65 (0.60–0.70) | 0.50 (0.50–0.50) |")
    assert lines[5].endswith("| 0.650 (0.600–0.700) |")
    assert lines[6].startswith("| 2 | 1 of 2 |")
    assert lines[6].endswith("| 0.800 |")
    assert lines[-1] == "Stopped: seed 2, round 2: refused (win_rate>0.5: failed)."
