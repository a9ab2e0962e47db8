"""The verdict on SFT from made-up held-out rows: words, figures, categories and warnings, worked by hand."""

from pathlib import Path
from typing import Any

import pytest

from lite_align.evaluate import imitation
from lite_align.evaluate.folder import RunFolder


def row(
    before: float, after: float, tokens: int = 10, hits: tuple[int, int] = (2, 5), category: str | None = None
) -> dict[str, Any]:
    return {
        "source": "f:1",
        "category": category,
        "tokens": tokens,
        "before": {"loss": before, "correct": hits[0]},
        "after": {"loss": after, "correct": hits[1]},
    }


def folder(held_out: list[dict[str, Any]], losses: list[float] = (), answers: list[Any] = ()) -> RunFolder:
    metrics = [{"step": n, "loss": value} for n, value in enumerate(losses, 1)]
    return RunFolder(Path("run"), {"stage": "sft"}, metrics, held_out, list(answers))


def test_figures_weigh_every_token_the_same():
    """30 tokens at 1 nat and 10 at 3: 1.5 in the mean; after 0.5 and 1.5: 0.75."""
    found = imitation.measure([row(1.0, 0.5, 30, (15, 18)), row(3.0, 1.5, 10, (1, 2))])
    assert (found.count, found.tokens) == (2, 40)
    assert (found.loss_before, found.loss) == pytest.approx((1.5, 0.75))
    assert found.change.value == pytest.approx(-0.75)
    assert (found.accuracy_before, found.accuracy) == (0.4, 0.5)


def test_words_follow_the_interval_of_the_difference():
    def word(*changes: float) -> str:
        return imitation.judge(folder([row(2.0, 2.0 + change) for change in changes])).word

    assert word(-0.5, -0.4, -0.6) == "better"
    assert word(0.5, 0.4, 0.6) == "worse"
    assert word(-0.5, 0.4, -0.6) == "no evidence either way"
    assert word(-0.5) == "no evidence either way"  # one row has no interval
    assert imitation.judge(folder([])).word == "no evidence either way"


def test_sentences_and_figures_say_what_was_measured():
    found = imitation.judge(folder([row(2.0, 1.5), row(2.0, 1.6), row(2.0, 1.4)]))
    assert found.sentences[0].startswith(
        "On 3 held-out conversations (30 trained tokens) the loss went from 2 to 1.5 nats a token: −0.50 [−0.75, −0.25]"
    )
    assert "50 % of places, before in 20 %" in found.sentences[1]
    assert [(figure.label, figure.value) for figure in found.figures] == [
        ("Held-out loss", "1.50"),
        ("Token accuracy", "50 %"),
        ("Answer length", "–"),
    ]
    assert found.headline == "loss 2 → 1.5 nats a token, −0.50 [−0.75, −0.25] · token accuracy 20 % → 50 %"
    nothing = imitation.judge(folder([{"source": "f:1", "before": None}]))
    assert [figure.value for figure in nothing.figures] == ["–"] * 3
    assert nothing.headline == ""


def test_categories_stand_on_one_axis():
    rows = [row(4.0, 2.0, category="a"), row(4.0, 2.0, category="a"), row(1.0, 1.0, category="b")]
    found = imitation.judge(folder(rows)).categories
    assert found is not None
    assert (found.axis, found.chance) == ("0 to 4.00", False)
    a, b = found.rows
    assert (a.name, a.count, a.before, a.after, a.dot_before, a.dot) == ("a", 2, "4.00", "2.00", 100.0, 50.0)
    assert (b.interval, b.dot, b.low, b.high) == ("–", 25.0, 25.0, 25.0)
    assert imitation.judge(folder(rows[:2])).categories is None


def test_rows_known_by_heart_and_few_rows_are_warned_of():
    few = [row(2.0, 1.0)] * 5
    warnings = imitation.judge(folder(few, losses=[2.0, 1.0, 0.3, 0.3, 0.3, 0.3, 0.3])).warnings
    assert any("known by heart" in warning for warning in warnings)
    assert any("Only 5 held-out rows" in warning for warning in warnings)
    many = [row(2.0, 1.0)] * 40
    assert imitation.judge(folder(many, losses=[2.0, 1.5, 1.2, 1.1, 1.0, 1.0, 1.0])).warnings == []
