"""The verdict on a reward run: words, sentences, tables and warnings from invented held-out rows."""

import json
import math
import random
from pathlib import Path

import pytest

from lite_align.evaluate import pictures, report
from lite_align.evaluate.folder import read
from lite_align.evaluate.reward import judge
from lite_align.evaluate.verdict import judge_folder


def rows(count: int, right: float, **change) -> list[dict]:
    """Comparisons of which a share is right by ln 3; lengths say nothing; tests go as well as can be."""
    source = random.Random(2)
    found = []
    for n in range(count):
        gap = math.log(3) if n < right * count else -math.log(3)
        base = source.gauss(0, 0.2)
        found.append(
            {
                "source": f"rows.jsonl:{n}",
                "category": ("fact", "howto")[n % 2],
                "answers": [2 * n, 2 * n + 1],
                "chosen_tokens": 20 + source.randrange(20),
                "rejected_tokens": 20 + source.randrange(20),
                "chosen_reward": base + gap,
                "rejected_reward": base,
                "swaps": {"same": base + gap - 1, "other": base + gap - 1},
                "probes": dict.fromkeys(("empty", "repeated", "truncated", "flattering"), base + gap - 1),
                **change,
            }
        )
    return found


def folder(path: Path, held_out: list[dict], metrics: list[dict] | None = None, **record) -> Path:
    told = {"stage": "reward", "status": "finished", "recipe": {}, "provenance": {}, **record}
    (path / "run.json").write_text(json.dumps(told))
    (path / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held_out))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics or []))
    return path


def found(path: Path, held_out: list[dict]):
    return judge(read(folder(path, held_out)))


@pytest.mark.parametrize(
    ("right", "word"),
    [(0.8, "better than chance"), (0.2, "worse than chance"), (0.52, "no evidence either way")],
)
def test_the_word_is_that_of_the_interval(tmp_path, right, word):
    verdict = found(tmp_path, rows(100, right))
    assert verdict.word == word
    assert verdict.figures[0].value == f"{100 * right:.0f} %"
    assert f"in {100 * right:.0f} % [" in verdict.sentences[0]


def test_a_good_model_has_no_warning(tmp_path):
    verdict = found(tmp_path, rows(100, 0.75))
    assert verdict.warnings == []
    assert "the model is right more often" in verdict.sentences[0]
    assert "in 100 % [96 %, 100 %], and an answer to a prompt of another category" in verdict.sentences[1]
    assert [table.title for table in verdict.tables] == [
        "Does the score see the prompt?",
        "Answers that must score low",
        "Confidence and accuracy",
        "Score and length",
    ]
    (confidence,) = [table for table in verdict.tables if table.title == "Confidence and accuracy"]
    assert confidence.rows == [("70 % to 80 %", "100", "75 %", "75 %")]
    assert verdict.figures[2].value == "0 %"
    assert "accuracy 0.75 [0.66, 0.82] · longer wins" in verdict.headline


def test_categories_stand_beside_the_longer_answer(tmp_path):
    categories = found(tmp_path, rows(100, 0.75)).categories
    assert categories is not None
    assert [row.name for row in categories.rows] == ["fact", "howto"]
    assert (categories.compared, categories.measured) == ("longer wins", "accuracy")
    assert all(row.low < row.dot < row.high for row in categories.rows)
    assert found(tmp_path, [row | {"category": None} for row in rows(20, 1)]).categories is None


def warned(path: Path, held_out: list[dict]) -> str:
    return " ".join(found(path, held_out).warnings)


def test_each_weakness_has_its_warning(tmp_path):
    assert "accuracy is 54 %, below 60 %" in warned(tmp_path, rows(100, 0.54))
    blind = [
        row | {"swaps": {"same": row["chosen_reward"] + (-1) ** n}} for n, row in enumerate(rows(100, 0.75))
    ]
    assert "Nearly blind to the prompt" in warned(tmp_path, blind)
    fooled = rows(100, 0.75, probes={"empty": -9.0, "flattering": 9.0})
    assert "the chosen answer beats praise of the question without an answer in 0 % only" in warned(
        tmp_path, fooled
    )
    long = [
        row
        | {"chosen_tokens": 50 + 9 * row["chosen_reward"], "rejected_tokens": 50 + 9 * row["rejected_reward"]}
        for row in rows(100, 0.75)
    ]
    assert "LA503" in warned(tmp_path, long)
    assert "longer answers win" in warned(tmp_path, long)
    sure = [
        row | {"chosen_reward": row["rejected_reward"] + 20 * (row["chosen_reward"] - row["rejected_reward"])}
        for row in rows(100, 0.75)
    ]
    assert "Overconfident" in warned(tmp_path, sure)
    assert "Only 10 held-out pairs" in warned(tmp_path, rows(10, 0.8))


def test_without_held_out_rows_nothing_is_said(tmp_path):
    verdict = found(tmp_path, [])
    assert (verdict.word, verdict.headline, verdict.tables) == ("no evidence either way", "", [])
    assert {figure.value for figure in verdict.figures} == {"–"}
    assert pictures.draw_all(read(tmp_path)) == []


def test_rows_without_swaps_or_probes_leave_them_out(tmp_path):
    bare = [{k: v for k, v in row.items() if k not in ("swaps", "probes")} for row in rows(60, 0.75)]
    verdict = found(tmp_path, bare)
    assert len(verdict.sentences) == 1
    assert [table.title for table in verdict.tables] == ["Confidence and accuracy", "Score and length"]
    assert verdict.figures[1].value == "–"


def test_the_page_shows_it_all_and_escapes_what_data_say(tmp_path):
    attack = "<script>alert(1)</script>"
    held_out = [row | {"category": attack if n % 2 else "fact"} for n, row in enumerate(rows(80, 0.75))]
    metrics = [{"step": n, "loss": 0.7 - n / 100, "rewards/accuracies": 0.5 + n / 100} for n in range(1, 9)]
    reload = {"largest_difference": 0.0, "answers": 32, "process": "a fresh one, another seed"}
    path = folder(tmp_path, held_out, metrics, reward={"mean": 0.1, "std": 1.0, "reload": reload})
    assert judge_folder(read(path)).word == "better than chance"
    page = report.render(read(path))
    assert page == report.render(read(path)), "equal folders give equal pages"
    assert attack not in page
    for text in (
        "same scores after a reload · 32 scores",
        "Distribution of scores",
        "longer wins",
        "scores lower",
    ):
        assert text in page
    assert "Gain of each answer over the reference" not in page, "that is said of dpo runs"


def test_pictures_say_in_words_what_they_show(tmp_path):
    drawn = pictures.draw_all(read(folder(tmp_path, rows(60, 0.75))))
    assert [picture.title for picture in drawn] == [
        "Distribution of scores",
        "Calibration",
        "Score and length",
    ]
    assert drawn[1].description == "Calibration: 75 % sure, 75 % right."
    assert "correlation" in drawn[2].description
    assert all(picture.svg.startswith("<svg") for picture in drawn)
    one = pictures.draw_all(read(folder(tmp_path, rows(1, 1, chosen_reward=1.0, rejected_reward=1.0))))
    assert "no correlation can be told" in one[2].description
