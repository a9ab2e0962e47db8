"""The reward stage: where scores are read, grouped answers against separate pairs, windows, learning."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lite_align.data.comparisons import Scored
from lite_align.data.types import Rendered, Tree
from lite_align.errors import TrainingStopped
from lite_align.losses.reward import Comparisons, total
from lite_align.model.backbone import Backbone, Role
from lite_align.stages import passes
from lite_align.stages.reward import RewardModel, spread
from tests.stages import small, small_reward

PAIRS = small_reward.compared(5, 4)


@pytest.fixture(scope="module", params=["none", "nf4"])
def model(request: pytest.FixtureRequest, tiny_llama: Path) -> Iterator[Backbone]:
    """A backbone whose adapter is not zero, so that every gradient has a meaning."""
    backbone = small_reward.backbone(tiny_llama, quantization=request.param)
    generator = torch.Generator().manual_seed(1)
    for _, parameter in backbone.parameters(Role.REWARD):
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return backbone


@pytest.fixture(scope="module")
def pairs(tokenizer) -> list[Scored]:
    return small_reward.scored(PAIRS, tokenizer)


def gradients(stage: RewardModel) -> dict[str, torch.Tensor]:
    """Loss of step 0 over the weight of the window, and what it leaves in every trained tensor."""
    named = stage.backbone.parameters(Role.REWARD)
    for _, parameter in named:
        parameter.grad = None
    window = stage.window(0)
    value = 0.0
    for batch in window.batches:
        loss = stage.loss(batch).total / window.weight
        loss.backward()
        value += loss.item()
    found = {name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None}
    return {"loss": torch.tensor(value), **found}


def alone(backbone: Backbone, ids: tuple[int, ...]) -> torch.Tensor:
    """Score of one sequence by itself: the plain model, its last hidden state times the head."""
    with backbone.role(Role.REWARD):
        hidden = backbone.model.base_model(input_ids=torch.tensor([ids])).last_hidden_state
    head = dict(backbone.parameters(Role.REWARD))["score.weight"]
    return hidden[0, len(ids) - 1].float() @ head


def test_the_score_is_read_at_the_stop_token(model: Backbone, pairs, tokenizer) -> None:
    """LA502: the id at every read position is the template's stop token, and the score is that of the row alone."""
    stage = RewardModel(model, small_reward.recipe(batch_size=64), pairs, [])
    (batch,) = stage.window(0).batches
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    ends = batch.forest.input_ids[0, batch.forest.leaf_ends()]
    assert ends.tolist() == [stop] * 20, "4 answers to each of 5 prompts, each once"
    with torch.no_grad():
        both, _ = stage.score(batch)
        for number, scored in enumerate(batch.comparisons[:8]):
            for column, ids in ((both.chosen, scored.chosen), (both.rejected, scored.rejected)):
                assert column[number].item() == pytest.approx(alone(model, ids).item(), abs=1e-5)


def test_grouped_answers_are_exactly_separate_pairs(model: Backbone, pairs) -> None:
    """30 comparisons of 20 answers in one pass, against each pair alone by the formulas themselves."""
    options = {"margin": True, "center_rewards_coefficient": 0.1}
    recipe = small_reward.recipe(options, batch_size=64, tokens_per_microbatch=4096)
    stage = RewardModel(model, recipe, pairs, [])
    grouped = gradients(stage)
    assert len(stage.window(0).batches) == 1

    named = model.parameters(Role.REWARD)
    for _, parameter in named:
        parameter.grad = None
    weight = sum(pair.weight for pair in PAIRS)
    value = 0.0
    for one in pairs:
        scores = Comparisons(
            alone(model, one.chosen)[None],
            alone(model, one.rejected)[None],
            torch.tensor([one.pair.margin]),
        )
        loss = total(scores, 0.1).total[0] * one.pair.weight / weight
        loss.backward()
        value += loss.item()
    assert grouped.pop("loss").item() == pytest.approx(value, abs=1e-5)
    assert grouped.keys() == dict(named).keys()
    for name, parameter in named:
        assert parameter.grad is not None
        difference = (grouped[name] - parameter.grad).norm() / parameter.grad.norm()
        assert float(difference) < 1e-4, name


@pytest.mark.parametrize("train", [{"tokens_per_microbatch": 96}, {"tokens_per_microbatch": 1}])
def test_how_answers_are_packed_changes_nothing(model: Backbone, pairs, train: dict) -> None:
    """A small budget splits prompts into several trees and passes; the step is the same."""
    recipe = small_reward.recipe(batch_size=16, tokens_per_microbatch=4096)
    whole = gradients(RewardModel(model, recipe, pairs, []))
    split = RewardModel(model, small_reward.recipe(batch_size=16, **train), pairs, [])
    assert len(split.window(0).batches) >= 3
    for name, found in gradients(split).items():
        assert float((found - whole[name]).norm() / whole[name].norm().clamp(min=1e-9)) < 1e-4, name


def test_prompts_that_are_not_shared_give_the_same(model: Backbone, pairs) -> None:
    recipe = small_reward.recipe(batch_size=16)
    shared = gradients(RewardModel(model, recipe, pairs, []))
    speed = recipe.speed.model_copy(update={"share_prompts": False})
    apart = RewardModel(model, recipe.model_copy(update={"speed": speed}), pairs, [])
    assert apart.window(0).batches[0].tokens > 0
    for name, found in gradients(apart).items():
        assert float((found - shared[name]).norm() / shared[name].norm().clamp(min=1e-9)) < 1e-4, name


# Windows.


def test_every_epoch_has_every_pair_once_and_prompts_stay_together(model: Backbone, pairs) -> None:
    stage = RewardModel(model, small_reward.recipe(batch_size=8), pairs, [])
    assert stage.steps_per_epoch == 4
    for epoch in (0, 1):
        steps = [stage.pairs(4 * epoch + step) for step in range(4)]
        assert list(map(len, steps)) == [8, 8, 8, 6]
        seen = [one.pair.source.line for step in steps for one in step]
        assert sorted(seen) == sorted(one.pair.source.line for one in pairs)
        prompts = [one.pair.prompt for step in steps for one in step]
        changes = sum(a != b for a, b in zip(prompts, prompts[1:]))
        assert changes == 4, "five prompts side by side change four times"
    assert stage.pairs(0) != stage.pairs(4), "another order in each epoch"
    assert (stage.epoch(2), stage.epoch(4)) == (0.5, 1.0)


def test_the_weight_of_a_window_is_that_of_its_comparisons(model: Backbone, pairs) -> None:
    stage = RewardModel(model, small_reward.recipe(batch_size=8), pairs, [])
    window = stage.window(1)
    assert window.weight == sum(one.pair.weight for one in stage.pairs(1))
    assert sum(len(batch.comparisons) for batch in window.batches) == 8


def test_processes_share_a_window(model: Backbone, pairs) -> None:
    recipe = small_reward.recipe(batch_size=16)
    parts = [RewardModel(model, recipe, pairs, [], process=(n, 2)).window(0) for n in (0, 1)]
    lines = [sorted(key for batch in part.batches for key in batch.keys) for part in parts]
    whole = [one.pair.source.line for one in RewardModel(model, recipe, pairs, []).pairs(0)]
    assert sorted(lines[0] + lines[1]) == sorted(whole)
    assert parts[0].weight == parts[1].weight


# Evaluation and learning.


def test_evaluation_by_hand(model: Backbone, pairs) -> None:
    recipe = small_reward.recipe({"center_rewards_coefficient": 0.0}, tokens_per_microbatch=96)
    stage = RewardModel(model, recipe, [], pairs[:7])
    found = stage.evaluate()
    scores = stage.scores(pairs[:7])
    with torch.no_grad():
        expected = [(alone(model, p.chosen).item(), alone(model, p.rejected).item()) for p in pairs[:7]]
    assert [v for both in scores for v in both] == pytest.approx(
        [v for both in expected for v in both], abs=1e-5
    )
    gaps = torch.tensor([a - b for a, b in expected])
    assert found["loss"] == pytest.approx((1 + (-gaps).exp()).log().mean().item(), abs=1e-5)
    assert found["rewards/accuracies"] == pytest.approx((gaps > 0).double().mean().item())
    assert found["rewards/margins"] == pytest.approx(gaps.mean().item(), abs=1e-5)
    flat = torch.tensor(expected).flatten()
    assert found["rewards/std"] == pytest.approx(flat.std().item(), abs=1e-5)
    assert (found["rewards/min"], found["rewards/max"]) == pytest.approx(
        (flat.min().item(), flat.max().item()), abs=1e-5
    )
    assert RewardModel(model, recipe, pairs, []).evaluate() == {}


def test_a_single_score_has_no_spread() -> None:
    assert spread([2.0]) == {"rewards/mean": 2.0, "rewards/std": 0.0, "rewards/min": 2.0, "rewards/max": 2.0}


def test_a_reward_model_learns_what_tells_answers_apart(tiny_llama: Path, tokenizer) -> None:
    """Chosen answers end in "yes", rejected ones in "no": held-out pairs are told apart after 30 steps."""
    rows = small.rows(60, seed=3)
    told = [{**row, "chosen": f"{row['chosen']} hello", "rejected": f"{row['rejected']} dog"} for row in rows]
    pairs = small_reward.scored(small.as_pairs(told), tokenizer)
    backbone = small_reward.backbone(tiny_llama)
    stage = RewardModel(backbone, small_reward.recipe(learning_rate=5e-3), pairs[:48], pairs[48:])
    engine = small_reward.engine(stage)
    before = stage.evaluate()
    for step in range(30):
        engine.update(stage.window(step), stage.loss)
    after = stage.evaluate()
    assert after["rewards/accuracies"] > 0.9
    assert after["loss"] < 0.7 * before["loss"]
    assert engine.parameters.moved() == 1.0, "adapter and head alike"


def test_the_first_step_needs_a_gradient_in_the_head(tiny_llama: Path, tokenizer) -> None:
    """LA501: a head that is frozen, or cut off, stops the run before anything changed."""
    pairs = small_reward.scored(small.as_pairs(small.rows(8)), tokenizer)
    backbone = small_reward.backbone(tiny_llama)
    stage = RewardModel(backbone, small_reward.recipe(), pairs, [])
    engine = small_reward.engine(stage)
    head = dict(backbone.parameters(Role.REWARD))["score.weight"]

    def cut_off(batch) -> torch.Tensor:
        return backbone.hidden(batch).index_select(0, batch.leaf_ends()) @ head.detach()

    backbone.scores = cut_off  # type: ignore[method-assign]
    with pytest.raises(TrainingStopped, match="no gradient") as told:
        engine.update(stage.window(0), stage.loss)
    assert list(told.value.details) == ["score.weight"]


def test_checkpoint_tensors_hold_the_head(tiny_llama: Path) -> None:
    first = small_reward.backbone(tiny_llama, seed=1)
    second = small_reward.backbone(tiny_llama, seed=2)
    stages = [RewardModel(backbone, small_reward.recipe(), [], []) for backbone in (first, second)]
    kept = stages[0].adapters()
    assert "score.weight" in kept["reward"]
    assert not torch.equal(kept["reward"]["score.weight"], stages[1].adapters()["reward"]["score.weight"])
    stages[1].load_adapters(kept)
    again = stages[1].adapters()["reward"]
    assert all(torch.equal(again[name], value) for name, value in kept["reward"].items())


def test_a_judge_suffix_moves_the_place_where_the_score_is_read(model: Backbone, tokenizer) -> None:
    """After the answer stands a user turn and the opening of another answer, and nothing else."""
    (scored,) = small_reward.scored(PAIRS[:1], tokenizer, "the answer?")
    text = tokenizer.decode(scored.chosen)
    plain = tokenizer.decode(small_reward.scored(PAIRS[:1], tokenizer)[0].chosen)
    assert text == f"{plain}\n<|im_start|>user\nthe answer?<|im_end|>\n<|im_start|>assistant\n"
    stage = RewardModel(model, small_reward.recipe(), [scored], [])
    (batch,) = stage.window(0).batches
    with torch.no_grad():
        both, _ = stage.score(batch)
        assert both.chosen[0].item() == pytest.approx(alone(model, scored.chosen).item(), abs=1e-5)


def test_trees_hold_no_trained_token(model: Backbone, pairs) -> None:
    """No log-prob is asked for, so none is forecast, computed or kept for the backward pass."""
    stage = RewardModel(model, small_reward.recipe(), pairs, [])
    _, trees = stage.compared(stage.pairs(0))
    batch = passes.to_batch(trees, torch.device("cpu"))
    assert len(batch.target) == 0
    assert isinstance(trees[0], Tree)
    assert Rendered(trees[0].root, trees[0].root_trained).trained.count(True) == 0
