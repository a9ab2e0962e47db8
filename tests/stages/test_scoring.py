"""Scores of any answers: the same as in training, whatever they are packed with."""

from pathlib import Path

import pytest

from lite_align.data.render import Renderer, Unusable
from lite_align.data.types import Message, Rendered
from lite_align.model.backbone import Backbone
from lite_align.stages import scoring
from lite_align.stages.reward import RewardModel
from lite_align.train.faults import TokenBudget
from tests.stages import small_reward

PAIRS = small_reward.compared(4, 3)


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Backbone:
    return small_reward.backbone(tiny_llama)


@pytest.mark.parametrize("suffix", [None, "the answer?"])
def test_texts_get_the_scores_of_training(model: Backbone, suffix: str | None) -> None:
    tokenizer = model.loaded.tokenizer
    pairs = small_reward.scored(PAIRS, tokenizer, suffix)
    expected = RewardModel(model, small_reward.recipe(), pairs, []).scores(pairs)
    examples = [(pair.prompt, answer) for pair in PAIRS for answer in (pair.chosen, pair.rejected)]
    sequences = scoring.sequences(Renderer(tokenizer), examples, suffix)
    ids = [one.ids for one in sequences if isinstance(one, Rendered)]
    assert ids == [ids for pair in pairs for ids in (pair.chosen, pair.rejected)]
    flat = [score for both in expected for score in both]
    for tokens in (64, 4096):
        alone = scoring.score(model, [(0, [one]) for one in ids], TokenBudget(tokens))
        assert [score for (score,) in alone] == pytest.approx(flat, abs=1e-5)
        together = [(pair.prompt, [pair.chosen, pair.rejected, pair.chosen]) for pair in pairs]
        for found, both in zip(scoring.score(model, together, TokenBudget(tokens)), expected, strict=True):
            assert found == pytest.approx([*both, both[0]], abs=1e-5)


def test_prompts_without_answers_have_no_scores(model: Backbone) -> None:
    assert scoring.score(model, [(0, []), (0, [])], TokenBudget(64)) == [[], []]
    assert scoring.score(model, [], TokenBudget(64)) == []


def test_what_the_template_cannot_write_has_a_reason(model: Backbone) -> None:
    example = (Message("user", "hello"),), (Message("assistant", ""),)
    (found,) = scoring.sequences(Renderer(model.loaded.tokenizer), [example], None)
    assert isinstance(found, Unusable)
    assert found.reason == "empty"
