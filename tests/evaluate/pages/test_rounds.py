"""The page of a loop: which rounds were promoted, what they gained, and untrusted text as text."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lite_align.errors import UserError
from lite_align.evaluate.pages import rounds


def figure(value: float, low: float, high: float, unit: str = "", **more: Any) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "count": 160, "unit": unit, **more}


def a_round(number: int, status: str, why: str = "") -> dict[str, Any]:
    return {
        "round": number,
        "status": status,
        "why": why,
        "folder": f"round-{number}",
        "from": "runs/tiny/sft",
        "pairs": 1647,
        "agreement": {
            "rule": figure(0.38, 0.3, 0.45),
            "kappa": {"value": None, "low": None, "high": None, "count": 3},
        },
        "figures": {
            "win_rate": figure(0.64, 0.57, 0.7, "share"),
            "rule_score": figure(0.75, 0.7, 0.8, before=0.64),
            "kl": figure(0.28, 0.2, 0.4, "nats"),
            "rule_score/unsafe": figure(0.5, 0.4, 0.6),
        },
    }


def put(folder: Path, *found: dict[str, Any], current: str = "runs/loop/round-1/dpo") -> Path:
    record = {"schema": 1, "name": "town", "most": 3, "current": current, "rounds": found}
    (folder / rounds.RECORD).write_text(json.dumps(record))
    return folder


def text_of(page: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", page.replace("\u00a0", " ")).split())


def test_rounds_and_figures_are_on_the_page(tmp_path: Path) -> None:
    folder = put(tmp_path, a_round(1, "promoted"), a_round(2, "refused", "win_rate>0.5: failed"))
    assert rounds.is_loop(folder)
    page = rounds.write(folder).read_text(encoding="utf-8")
    text = text_of(page)
    for part in (
        *(
            "1 of 3 rounds promoted",
            "Current is runs/loop/round-1/dpo.",
            "Round 2 was refused: win_rate&gt;0.5: failed.",
        ),
        *("1,647", "round 1 160 64 % [57 %, 70 %]", "round 2 160 0.64 0.75 [0.7, 0.8]"),
        *("KL to the reference", "Agreement with the rule", "0.38 [0.3, 0.45]"),
    ):
        assert part in text, part
    assert 'class="card verdict worse"' in page
    assert "Agreement with people" not in text  # it was not measured
    assert "unsafe" not in text  # categories are in the reports of the rounds
    assert rounds.render(folder) == page


@pytest.mark.parametrize(
    ("found", "look"),
    [
        ([a_round(1, "promoted")], "better"),
        ([a_round(1, "promoted"), {"round": 2, "status": "waiting", "why": "0 of 50"}], "no"),
        ([], "no"),
    ],
)
def test_the_verdict_is_that_of_the_last_round(
    found: list[dict[str, Any]], look: str, tmp_path: Path
) -> None:
    assert f'class="card verdict {look}"' in rounds.render(put(tmp_path, *found))


def test_text_stays_text(tmp_path: Path) -> None:
    attack = "<script>alert(1)</script>\u202e\x1b[31m"
    row = a_round(1, "stopped", attack) | {"folder": attack, "from": attack, "round": attack}
    page = rounds.render(put(tmp_path, row, current=attack))
    assert "<script" not in page
    assert "\u202e" not in page
    assert "\x1b" not in page
    assert page.count("&lt;script&gt;") >= 4


def test_a_damaged_record_is_told(tmp_path: Path) -> None:
    (tmp_path / rounds.RECORD).write_text("{")
    with pytest.raises(UserError, match=r"rounds\.json"):
        rounds.write(tmp_path)
    (tmp_path / rounds.RECORD).write_text('{"rounds": 3}')
    assert "0 of" in rounds.render(tmp_path)
