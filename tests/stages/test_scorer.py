"""Scores: the head at the stop token by hand, the scale of the run, and runs that cannot score."""

import json

import pytest
import torch

from lite_align.data.render import Renderer
from lite_align.data.types import Message
from lite_align.errors import UserError
from lite_align.model.backbone import Backbone, Role
from lite_align.model.load import load_model
from lite_align.model.scalar_head import NAME
from lite_align.recipe import LoraOptions, ModelOptions, RewardRecipe, to_dict
from lite_align.stages.scorer import Score, Scorer
from lite_align.train.finished import read_finished
from tests import finished

QUESTION = (Message("system", "Be kind."), Message("user", "hello world"))


def reward_run(folder, base, **section):
    options = ModelOptions.model_validate({"name": str(base), "quantization": "none", "dtype": "float32"})
    lora = LoraOptions(rank=2, alpha=6.0)  # another shape than the policy's
    backbone = Backbone(load_model(options, device="cpu"), lora, seed=3, role=Role.REWARD)
    finished.move(backbone, Role.REWARD, 0.1, seed=5)
    backbone.save_adapter(Role.REWARD, folder / "adapters" / "reward")
    record = {
        "schema": 1,
        "stage": "reward",
        "status": "finished",
        "recipe": to_dict(RewardRecipe(model=options, lora=lora)),
        "hashes": {"base": finished.fingerprint(base)},
        "reward": section,
    }
    (folder / "run.json").write_text(json.dumps(record))
    return folder, backbone


def test_the_score_is_the_head_at_the_stop_token(tmp_path, tiny_llama):
    policy = read_finished(finished.run(tmp_path / "policy", tiny_llama))
    folder, alone = reward_run(tmp_path / "reward", tiny_llama, mean=0.5, std=2.0)
    partner = policy.backbone("cpu")
    scorer = Scorer(partner, Scorer.read(folder, policy))
    score = scorer(QUESTION, "the fox")
    renderer = Renderer(alone.loaded.tokenizer)
    ids = list(renderer.conversation(QUESTION, (Message("assistant", "the fox"),)).ids)
    ids = ids[: len(ids) - ids[::-1].index(renderer.turn_end)]
    with torch.no_grad(), alone.role(Role.REWARD):
        hidden = alone.model.base_model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[
            0, -1
        ]
    by_hand = float(hidden @ alone.adapter_tensors(Role.REWARD)[NAME])
    assert score.raw == pytest.approx(by_hand, abs=1e-4)
    assert score.deviations == pytest.approx((by_hand - 0.5) / 2.0, abs=1e-4)
    assert partner.current_role is Role.POLICY
    assert scorer(QUESTION, "another answer").raw != pytest.approx(score.raw, abs=1e-3)


def test_with_a_judge_the_score_is_read_where_its_turn_opens(tmp_path, tiny_llama):
    policy = read_finished(finished.run(tmp_path / "policy", tiny_llama))
    folder, alone = reward_run(
        tmp_path / "reward", tiny_llama, mean=0.0, std=1.0, judge_suffix="the answer asks?"
    )
    score = Scorer(policy.backbone("cpu"), Scorer.read(folder, policy))(QUESTION, "the fox")
    renderer = Renderer(alone.loaded.tokenizer)
    asked = (*QUESTION, Message("assistant", "the fox"), Message("user", "the answer asks?"))
    ids = renderer.prompt_ids(asked)
    with torch.no_grad(), alone.role(Role.REWARD):
        hidden = alone.model.base_model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[
            0, -1
        ]
    assert score.raw == pytest.approx(float(hidden @ alone.adapter_tensors(Role.REWARD)[NAME]), abs=1e-4)


def test_without_a_stored_scale_the_raw_score_is_told_alone(tmp_path, tiny_llama):
    policy = read_finished(finished.run(tmp_path / "policy", tiny_llama))
    folder, _ = reward_run(tmp_path / "reward", tiny_llama)
    assert Scorer(policy.backbone("cpu"), Scorer.read(folder, policy))(QUESTION, "the fox").deviations is None
    assert Score(1.5, None).told() == "score +1.500"


def test_runs_that_cannot_score_are_refused(tmp_path, tiny_llama, tokenizer):
    policy = read_finished(finished.run(tmp_path / "policy", tiny_llama))
    with pytest.raises(UserError, match="no reward run"):
        Scorer.read(policy.folder, policy)
    other, _ = reward_run(tmp_path / "reward", finished.model(tmp_path / "base", tokenizer, tied=True))
    with pytest.raises(UserError, match="another base"):
        Scorer.read(other, policy)
