"""The page of a comparison: who wins, what the judge is worth, what was compared."""

import json
import re
from pathlib import Path

import pytest

from lite_align.data.votes import Vote
from lite_align.errors import UserError
from lite_align.evaluate.pages import compared
from lite_align.evaluate.pages.figures import Measured
from tests.evaluate import evaluated


def text_of(page: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", page.replace("\u00a0", " ")).split())


def test_win_rates_judge_and_comparisons_are_on_the_page(tmp_path: Path) -> None:
    folder = evaluated.compared(tmp_path / "compare")
    page = compared.write(folder).read_text(encoding="utf-8")
    text = text_of(page)
    for part in (
        *("runs/b wins 64 % [55 %, 73 %] against runs/a on 60 prompts", "At equal length it would win 57 %"),
        *("3 · 6 · 3 won, tied and lost by runs/b; 3 with both bad, 0 skipped", "no verdict 1", "same 2"),
        *("It agrees with people.", "Answer shown first chosen", "52 % [43 %, 61 %]", "0.61 [0.41, 0.81]"),
        *("judged by reward-0001 · in both orders · 30 % for A", "lite-align compare runs/a runs/b"),
        *("A preferred", "B preferred", "both bad", "Question 11 of a visitor?"),
    ):
        assert part in text, part
    assert page.count('<span class="chip best">preferred</span>') == 6
    assert page.count("<del>") == page.count("<ins>") == 12
    assert compared.write(folder).read_text(encoding="utf-8") == page


@pytest.mark.parametrize(
    ("ends", "word"),
    [((0.51, 0.7), "better"), ((0.3, 0.49), "worse"), ((0.45, 0.6), "no evidence either way")],
)
def test_the_word_needs_an_interval_on_one_side_of_a_half(ends: tuple[float, float], word: str) -> None:
    found = compared.verdict(Measured(sum(ends) / 2, *ends, count=9), None, ["a", "b"])
    assert found["word"] == word
    unknown = compared.verdict(Measured(0.9), None, ["a", "b"])
    assert unknown["word"] == "no evidence either way"


def test_names_decide_the_side_where_the_order_was_drawn() -> None:
    sides = ["one", "two", "three"]
    row = {**evaluated.judged(1)[0], "model_a": "three", "model_b": "one"}
    shown = compared.comparison(Vote.read(row), sides, {"fact": 0})
    assert [(side.title, side.colour, side.best) for side in shown.sides] == [("C", 3, False), ("A", 1, True)]
    assert shown.outcome.endswith("30 % for C")
    assert compared.results([Vote.read(row)], sides) == [(1, "the second preferred")]


def test_a_ranking_is_drawn_and_gates_stand_on_top(tmp_path: Path) -> None:
    record = evaluated.comparison() | {
        **{"sides": ["base", "one", "two"], "agreement": None, "failures": {}},
        "ranking": {
            "two": {"value": 0.8, "low": 0.4, "high": 1.2},
            "base": {"value": 0, "low": 0, "high": 0},
        },
    }
    folder = evaluated.put(evaluated.compared(tmp_path / "three", record), gates=evaluated.gates())
    text = text_of(compared.render(folder))
    for part in (
        *("two wins 64 %", "against base", "Strength", "two – 0.8 [0.4, 1.2]", "FAILED kl &lt;=1"),
        *(compared.NOT_MEASURED, "Every judgement could be read.", "of 3 sides; 3 with both bad"),
    ):
        assert part in text, part
    assert compared.agreement({"proved": False}).startswith("It does not agree")


def test_the_winner_is_known_by_name() -> None:
    row = {**evaluated.judged(1)[0], "model_a": "y", "model_b": "x"}  # b was preferred
    assert compared.winner(Vote.read(row), ["x", "y"]) == "x"
    assert compared.winner(Vote.read({**row, "choice": "tie"}), ["x", "y"]) is None


def test_many_comparisons_are_cut_off_with_a_word_about_it(tmp_path: Path) -> None:
    page = compared.render(evaluated.compared(tmp_path / "compare", rows=evaluated.judged(75)))
    assert page.count("<article") == 60
    assert "15 more are in comparisons.jsonl." in page


def test_a_bad_row_and_a_missing_record_are_told(tmp_path: Path) -> None:
    rows = [*evaluated.judged(2), {"prompt": "none"}]
    with pytest.raises(UserError, match=r"comparisons\.jsonl: row 3 is no judgement"):
        compared.render(evaluated.compared(tmp_path / "bad", rows=rows))
    folder = evaluated.compared(tmp_path / "none")
    assert compared.is_comparison(folder)
    (folder / "compare.json").write_text("[]")
    with pytest.raises(UserError, match="object"):
        compared.render(folder)
    (folder / "compare.json").unlink()
    assert not compared.is_comparison(folder)


def test_a_record_without_anything_still_has_a_page(tmp_path: Path) -> None:
    folder = evaluated.compared(tmp_path / "empty", record={"more": {"x": 1}}, rows=[])
    text = text_of(compared.render(folder))
    assert "No win rate with an interval was measured." in text
    assert json.loads((folder / "compare.json").read_text()) == {"more": {"x": 1}}
    assert "more.x 1" in text
