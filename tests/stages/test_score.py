"""Rule scores of sampled answers: the arithmetic by hand, and answers of the built-in model itself."""

import json
from pathlib import Path

import pytest

from lite_align.assets import world
from lite_align.data.render import Renderer
from lite_align.errors import UserError
from lite_align.model.backbone import Backbone, Role
from lite_align.model.load import load_model
from lite_align.recipe import LoraOptions, ModelOptions, ScoreOptions
from lite_align.stages import score


def asks(*categories: str) -> list[world.Ask]:
    return [world.asks(category, held_out=True)[number] for number, category in enumerate(categories)]


def test_gains_are_paired_by_prompt_and_grouped_by_category():
    questions = asks("fact", "fact", "unsafe")
    found = {"base": [0.2, 0.4, 0.6], "sft": [0.5, 0.7, 0.6], "dpo": [0.5, 0.9, 0.1]}
    scores = score.compare(questions, found, {"sft": "base", "dpo": "sft"}, samples=2)
    assert scores.means["sft"] == pytest.approx({"all": 0.6, "fact": 0.6, "unsafe": 0.6})
    assert scores.gains["sft"]["fact"].value == pytest.approx(0.3)
    assert scores.gains["dpo"]["all"].value == pytest.approx((0.0 + 0.2 - 0.5) / 3)
    # t interval of (0, 0.2): mean 0.1, standard error 0.1, t(0.975, 1) = 12.706.
    fact = scores.gains["dpo"]["fact"]
    assert (fact.low, fact.high) == pytest.approx((0.1 - 1.2706, 0.1 + 1.2706), abs=1e-3)
    assert [row["dpo"] for row in scores.rows] == [0.5, 0.9, 0.1]


def test_answers_of_the_built_in_model_are_scored_and_repeatable():
    backbone = Backbone(load_model(ModelOptions(name="tiny"), device="cpu"), LoraOptions(rank=2), seed=0)
    renderer = Renderer(backbone.loaded.tokenizer, trusted=True)
    questions = asks("fact", "howto", "feeling")
    options = ScoreOptions(prompts="-", samples=2, max_new_tokens=48)
    with backbone.role(Role.BASE):
        first = score.sampled(backbone, renderer, questions, options)
        again = score.sampled(backbone, renderer, questions, options)
    assert first == again
    assert all(0 <= value <= 1 for value in first)
    assert sum(first) > 0.5  # it speaks the language of its world


def test_scores_are_read_back_and_damaged_ones_are_not(tmp_path: Path):
    scores = score.compare(
        asks("fact", "fact"), {"base": [0.0, 1.0], "sft": [1.0, 1.0]}, {"sft": "base"}, samples=1
    )
    assert score.stored(tmp_path) is None
    (tmp_path / score.FILE).write_text(json.dumps(scores.record()))
    assert score.stored(tmp_path) == scores
    (tmp_path / score.FILE).write_text("{}")
    assert score.stored(tmp_path) is None


def test_prompts_of_another_world_cannot_be_scored(tmp_path: Path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "Who wrote Faust?"}\n')
    with pytest.raises(UserError, match=r"prompts.jsonl:1: this prompt is not from the built-in world"):
        score.read_asks(str(file))
