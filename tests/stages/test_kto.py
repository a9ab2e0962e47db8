"""The stage on thumbs against plain passes, its windows, the reference point, and the proof of the start."""

from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch

from lite_align.data import forest
from lite_align.data.types import Rated, Rendered
from lite_align.errors import TrainingStopped
from lite_align.model.backbone import Backbone, Role
from lite_align.recipe import SpeedOptions
from lite_align.stages.kto import KTO
from lite_align.stages.passes import to_batch
from tests.stages import small

RATED = small.as_thumbs(small.rows(14, prompts=9))
WEIGHTS = {"desirable_weight": 1.5, "undesirable_weight": 2.0}


@pytest.fixture(scope="module", params=["none", pytest.param("nf4", marks=pytest.mark.slow)])
def backbone(request, tiny_llama) -> Backbone:
    return small.backbone(tiny_llama, quantization=request.param)


@pytest.fixture
def model(backbone) -> Iterator[Backbone]:
    """The backbone with a fresh adapter."""
    before = backbone.adapter_tensors(Role.POLICY)
    yield backbone
    backbone.set_adapter_tensors(Role.POLICY, before)


def recipe(**train):
    loss = {"name": "kto", "sft_weight": 0.2, "options": WEIGHTS, **train.pop("loss", {})}
    return small.recipe(loss, **train)


def move(model: Backbone) -> None:
    """An adapter to which all answers are likelier than to the reference, so that the reference point is above 0."""
    trees = [tree for _, tree in small.thumb_examples(RATED, model.loaded.tokenizer)]
    parameters = [parameter for _, parameter in model.parameters(Role.POLICY)]
    for _ in range(4):
        with model.role(Role.POLICY):
            gain = model.leaf_logps(to_batch(trees, model.device)).sum()
        gradients = torch.autograd.grad(gain, parameters, allow_unused=True)
        length = torch.stack([g.norm() for g in gradients if g is not None]).norm()
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.add_(gradient, alpha=0.3 / float(length))


def logp(model: Backbone, role: Role, sequence: Rendered) -> float:
    """Log-prob of one sequence in a pass of its own."""
    with torch.no_grad(), model.role(role):
        return float(model.leaf_logps(to_batch([forest.single(0, sequence)], model.device)))


def gain(model: Backbone, sequence: Rendered) -> float:
    return logp(model, Role.POLICY, sequence) - logp(model, Role.REFERENCE, sequence)


def by_hand(stage: KTO, step: int) -> tuple[float, float, float]:
    """Reference point, mean loss and mean metric margin of a step, row by row with TRL's pairing of answers."""
    of = stage.train
    rows = [row for block in stage.windows.step(step)[0] for row in block]
    foreign, losses, rewards = [], [], {True: [], False: []}
    blocks = stage.windows.step(step)[0]
    for place, block in enumerate(blocks):
        before = next(
            other
            for back in range(1, len(blocks))
            if of.answered[(other := blocks[place - back])[0]].prompt != of.answered[block[0]].prompt
        )
        foreign += [
            gain(stage.backbone, of.answered[before[n % len(before)]].under(of.answered[block[0]].prompt))
            for n in range(len(block))
        ]
    zero = max(0.0, sum(foreign) / len(foreign))
    for row in rows:
        answered, up = of.answered[row], of.rows[row].label
        r = gain(stage.backbone, answered.under(answered.prompt))
        wanted = stage.beta * (r - zero if up else zero - r)
        weight = WEIGHTS["desirable_weight" if up else "undesirable_weight"]
        nll = -logp(stage.backbone, Role.POLICY, answered.under(answered.prompt)) / sum(
            answered.answer.trained
        )
        losses.append(weight * (1 - 1 / (1 + 2.718281828459045**-wanted)) + (0.2 * nll if up else 0))
        rewards[up].append(stage.beta * r)
    margin = sum(rewards[True]) / len(rewards[True]) - sum(rewards[False]) / len(rewards[False])
    return zero, sum(losses) / len(losses), margin


def test_a_step_is_what_plain_passes_and_the_formula_give(model):
    stage = small.thumb_stage(model, RATED, recipe())
    move(model)
    engine = small.engine(stage)
    zero, loss, margin = by_hand(stage, 0)
    assert zero > 0.05  # or the reference point would not be tested
    window = stage.window(0)
    assert float(window.batches[0].window.zero) == pytest.approx(zero, abs=1e-5)
    engine.update(window, stage.loss)
    row = engine.logged()
    assert row["loss"] == pytest.approx(loss, abs=1e-5)
    assert row["kl"] == pytest.approx(zero, abs=1e-5)
    assert row["rewards/margins"] == pytest.approx(margin, abs=1e-5)
    assert row["rewards/margins"] == pytest.approx(row["rewards/chosen"] - row["rewards/rejected"], abs=1e-6)
    assert row["loss"] == pytest.approx(row["loss/preference"] + row["loss/sft"], abs=1e-6)


class Update(NamedTuple):
    batches: int
    gradient: torch.Tensor
    adapter: torch.Tensor
    metrics: dict[str, float]


def update(model: Backbone, the_recipe, rated: list[Rated] = RATED) -> Update:
    """Two steps from the same adapter."""
    before = model.adapter_tensors(Role.POLICY)
    try:
        stage = small.thumb_stage(model, rated, the_recipe)
        move(model)
        engine = small.engine(stage)
        engine.update(stage.window(0), stage.loss)
        gradient = engine.parameters.gradient.clone()
        engine.update(stage.window(1), stage.loss)
        batches = len(stage.window(0).batches)
        return Update(batches, gradient, engine.parameters.flat.detach().clone(), engine.logged())
    finally:
        model.set_adapter_tensors(Role.POLICY, before)


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_every_budget_and_separate_prompts_give_the_same_update(model):
    """8 × 1 = 1 × 8: the reference point is one for the whole window."""
    whole = update(model, recipe(tokens_per_microbatch=100_000))
    assert whole.batches == 1
    assert whole.metrics["kl"] > 0.05
    separate = recipe(tokens_per_microbatch=100_000)
    separate = separate.model_copy(update={"speed": SpeedOptions(share_prompts=False)})
    single = update(model, recipe(tokens_per_microbatch=1))
    assert single.batches > 4
    for other in (single, update(model, recipe(tokens_per_microbatch=150)), update(model, separate)):
        assert apart(other.gradient, whole.gradient) <= 1e-5
        assert apart(other.adapter, whole.adapter) <= 1e-5
        assert other.metrics == pytest.approx(whole.metrics, rel=1e-4, abs=1e-5)


def test_another_reference_point_would_be_noticed(model, monkeypatch):
    whole = update(model, recipe())
    monkeypatch.setattr(KTO, "zero", lambda self, of, window, others: torch.tensor(0.5))
    assert apart(update(model, recipe()).gradient, whole.gradient) > 1e-3


def test_the_proof_holds_at_the_start_alone(model):
    stage = small.thumb_stage(model, RATED, recipe())
    proof = stage.prove_start()
    labels = [stage.train.rows[row].label for block in stage.windows.step(0)[0] for row in block]
    assert proof["expected"] == pytest.approx(sum(0.75 if up else 1.0 for up in labels) / len(labels))
    assert proof["loss"] == pytest.approx(proof["expected"], abs=1e-5)
    assert proof["reference_point"] < 1e-4
    assert proof["largest_difference"] < 1e-3
    move(model)
    with pytest.raises(TrainingStopped, match="does not start at its reference"):
        stage.prove_start()


def test_evaluation_measures_held_out_rows_from_one_point_whatever_the_passes(model):
    stages = [
        small.thumb_stage(model, RATED, recipe(tokens_per_microbatch=tokens), held_out=8)
        for tokens in (1, 9999)
    ]
    move(model)
    one, other = (stage.evaluate() for stage in stages)
    assert one == pytest.approx(other, rel=1e-5, abs=1e-5)
    assert one["kl"] > 0
    of, logps = stages[0].held_out, stages[0].held_out_logps()
    for row, value in enumerate(logps):
        sequence = of.answered[row].under(of.answered[row].prompt)
        assert value == pytest.approx(logp(model, Role.POLICY, sequence), abs=1e-4)
    mean = sum(value for value, up in zip(logps, of.up, strict=True) if up) / sum(of.up)
    assert one["logps/chosen"] == pytest.approx(mean, abs=1e-4)


def test_a_loss_without_a_reference_point_scores_no_mismatched_answers(model):
    stage = small.thumb_stage(model, RATED, recipe(loss={"name": "apo_zero_unpaired"}), steps=0)
    move(model)
    assert float(stage.window(0).batches[0].window.zero) == 0
    assert "kl" not in stage.loss(stage.window(0).batches[0]).sums


def test_means_per_token_reach_the_reference_point(model):
    normalized = {"length_normalized": True, "beta": 5.0}
    stage = small.thumb_stage(model, RATED, recipe(loss=normalized))
    move(model)
    of = stage.train
    window, others = stage.windows.step(0)
    means = [
        gain(model, of.answered[other].under(of.answered[block[0]].prompt))
        / sum(of.answered[other].answer.trained)
        for block, stand in zip(window, others, strict=True)
        for other in stand
    ]
    expected = max(0.0, sum(means) / len(means))
    assert float(stage.window(0).batches[0].window.zero) == pytest.approx(expected, abs=1e-6)
