"""The DPO stage: windows, the loss by hand, evaluation, the proof of the start, and every loss on a real model."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from types import SimpleNamespace

import pytest
import torch

from lite_align.data import forest
from lite_align.data.types import Leaf, Tree
from lite_align.errors import RecipeError, TrainingStopped
from lite_align.losses.preference import LOSSES
from lite_align.model.backbone import Backbone, Role
from lite_align.model.load import load_model
from lite_align.recipe import ModelOptions
from lite_align.stages import train_dpo
from lite_align.stages.dpo import DPO, PairSet, loss_options
from lite_align.train.faults import TokenBudget
from lite_align.train.fit import make_step
from tests.stages import small
from tests.waiting import without_waiting

ROWS = small.rows(20, prompts=17)


@pytest.fixture(scope="module")
def model(tiny_llama) -> Backbone:
    return small.backbone(tiny_llama)


@pytest.fixture(scope="module")
def both(model) -> PairSet:
    pairs = small.as_pairs(ROWS)
    return small.pair_set(model, pairs, small.as_trees(pairs, model.loaded.tokenizer))


@pytest.fixture
def fresh(model) -> Iterator[Backbone]:
    """The model of this module; its adapter is put back at the end."""
    before = model.adapter_tensors(Role.POLICY)
    yield model
    model.set_adapter_tensors(Role.POLICY, before)


class FixedBackbone(SimpleNamespace):
    """Log-probs by pair, as if a model had given them."""

    def __init__(self, logps: dict[int, tuple[float, float]]) -> None:
        super().__init__(logps=logps, device=torch.device("cpu"), dtype=torch.float32, roles=[])

    @contextmanager
    def role(self, role: Role) -> Iterator[None]:
        self.roles.append(role)
        yield

    def leaf_logps(self, batch) -> torch.Tensor:
        return torch.tensor([value for key in batch.keys for value in self.logps[key]])


def tree(chosen: int, rejected: int) -> Tree:
    """A pair with these numbers of trained tokens in its answers."""
    leaves = tuple(Leaf(tuple(range(5, 5 + n)), (True,) * n) for n in (chosen, rejected))
    return Tree(0, (1, 2, 3), (False,) * 3, leaves)


def by_hand(**changes) -> DPO:
    """Two pairs: ratios (+1, -1) with weight 1 and (-1, +1) with weight 3; chosen answers of 2 and 3 tokens."""
    first, second = small.as_pairs(ROWS[:2])
    pairs = [first, replace(second, weight=3.0)]
    known = PairSet.of(pairs, [tree(2, 4), tree(3, 1)], [(-4.0, -4.0), (-5.0, -5.0)])
    recipe = small.recipe({"beta": 0.5, "sft_weight": 0.25, **changes})
    backbone = FixedBackbone({0: (-3.0, -5.0), 1: (-6.0, -4.0)})
    return DPO(backbone, recipe, known, known)  # type: ignore[arg-type]


# Windows.


def keys(stage: DPO, step: int) -> list[int]:
    return sorted(chain.from_iterable(batch.keys for batch in stage.window(step).batches))


def test_every_pair_is_seen_once_an_epoch_and_windows_depend_on_the_step_alone(model, both):
    stage = small.split(model, both, small.recipe(batch_size=8, tokens_per_microbatch=60), 0)
    assert stage.steps_per_epoch == 3  # 8 + 8 + 4
    epochs = [[keys(stage, 3 * epoch + step) for step in range(3)] for epoch in range(3)]
    for windows in epochs:
        assert [len(window) for window in windows] == [8, 8, 4]
        assert sorted(chain.from_iterable(windows)) == list(range(20))
    assert epochs[0] != epochs[1]
    assert [stage.epoch(step) for step in (0, 3, 9)] == [0.0, 1.0, 3.0]
    # the same step again, after others, and from another stage
    other = small.split(model, both, small.recipe(batch_size=8, tokens_per_microbatch=60), 0)
    for step in (5, 0, 7):
        for ours, theirs in zip(stage.window(step).batches, other.window(step).batches, strict=True):
            assert torch.equal(ours.input_ids, theirs.input_ids)
    another = small.split(model, both, small.recipe(batch_size=8, seed=43), 0)
    assert keys(another, 0) != keys(stage, 0)


def test_microbatches_keep_to_the_budget(model, both):
    stage = small.split(model, both, small.recipe(tokens_per_microbatch=90), 0)
    batches = stage.window(0).batches
    assert len(batches) > 1
    assert all(batch.tokens <= 90 or len(batch.keys) == 1 for batch in batches)


def test_processes_share_a_window(model, both):
    recipe = small.recipe(batch_size=8)
    whole = small.split(model, both, recipe, 0)
    parts = [DPO(model, recipe, whole.train, whole.held_out, process=(n, 3)) for n in range(3)]
    for step in range(3):
        assert sorted(chain.from_iterable(keys(part, step) for part in parts)) == keys(whole, step)
        assert {part.window(step).weight for part in parts} == {whole.window(step).weight}


# Loss, metrics, evaluation.


def test_loss_and_metrics_by_hand():
    # beta * gap is 0.5 * 2 = 1 and -1; -log sigmoid(1) = 0.31326, of -1 it is 1.31326.
    # The SFT part is 0.25 * 3/2 and 0.25 * 6/3. The second pair counts three times.
    stage = by_hand()
    (batch,) = stage.window(0).batches
    found = stage.loss(batch)
    logistic = math.log1p(math.exp(-1))
    assert float(found.total) == pytest.approx((logistic + 0.375) + 3 * (logistic + 1 + 0.5), rel=1e-6)
    assert stage.window(0).weight == 4.0
    assert found.count == 2
    expected = {
        "loss": 2 * logistic + 1 + 0.875,
        "loss/preference": 2 * logistic + 1,
        "loss/sft": 0.875,
        "rewards/chosen": 0.0,
        "rewards/rejected": 0.0,
        "rewards/accuracies": 1.0,
        "rewards/margins": 0.0,
        "logps/chosen": -9.0,
        "logps/rejected": -9.0,
        "lengths/chosen": 5.0,
        "lengths/rejected": 5.0,
    }
    assert {name: float(value) for name, value in found.sums.items()} == pytest.approx(expected, abs=1e-6)
    assert set(stage.backbone.roles) == {Role.POLICY}


def test_without_an_sft_part_there_is_one_loss():
    (batch,) = by_hand(sft_weight=0.0).window(0).batches
    sums = by_hand(sft_weight=0.0).loss(batch).sums
    assert float(sums["loss"]) == pytest.approx(2 * math.log1p(math.exp(-1)) + 1)
    assert not {"loss/sft", "loss/preference"} & sums.keys()


def test_evaluation_counts_each_pair_once_whatever_the_packs():
    logistic = math.log1p(math.exp(-1))
    for budget in (1, 10_000):
        stage = by_hand()
        stage.budget.tokens = budget
        found = stage.evaluate()
        assert found["loss"] == pytest.approx((2 * logistic + 1 + 0.875) / 2)  # weights are for training
        assert found["rewards/accuracies"] == pytest.approx(0.5)
        assert found["logps/chosen"] == pytest.approx(-4.5)
        assert stage.held_out_logps() == [(-3.0, -5.0), (-6.0, -4.0)]


def test_nothing_held_out_evaluates_to_nothing():
    stage = by_hand()
    stage.held_out = PairSet.of([], [], [])
    assert stage.evaluate() == {}
    assert stage.held_out_logps() == []


def test_margins_of_held_out_rows_are_those_of_the_metrics(fresh, both):
    for loss in ({}, {"length_normalized": True}, {"name": "simpo", "beta": 2.0}, {"name": "ipo"}):
        stage = small.split(fresh, both, small.recipe(loss), 6)
        small.engine(stage).update(stage.window(0), stage.loss)
        found = train_dpo.held_out_rows(stage)
        assert [row["source"] for row in found] == [f"rows.jsonl:{n}" for n in range(15, 21)]
        evaluated = stage.evaluate()
        mean = sum(row["after"]["margin"] for row in found) / len(found)
        assert mean == pytest.approx(evaluated["rewards/margins"], abs=1e-6)
        mean = sum(row["after"]["chosen_logp"] for row in found) / len(found)
        assert mean == pytest.approx(evaluated["logps/chosen"], rel=1e-6)
        if stage.objective.needs_reference:
            assert {row["before"]["margin"] for row in found} == {0.0}
        assert any(row["after"]["margin"] != row["before"]["margin"] for row in found)


# The proof of the start.


def test_the_start_is_proved(fresh, both):
    proof = small.split(fresh, both, small.recipe(), 4).prove_start()
    assert proof["expected"] == math.log(2)
    assert proof["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert 0 <= proof["largest_difference"] < 1e-4


def test_a_policy_that_has_moved_is_no_start(fresh, both):
    stage = small.split(fresh, both, small.recipe(learning_rate=0.1), 4)
    small.engine(stage).update(stage.window(0), stage.loss)
    with pytest.raises(TrainingStopped, match="does not start at its reference") as stopped:
        stage.prove_start()
    assert "Nothing was trained" in stopped.value.remedy


@pytest.mark.parametrize("wrong", [0.05, float("nan")])
def test_a_wrong_reference_is_no_start(fresh, both, wrong):
    stage = small.split(fresh, both, small.recipe(batch_size=16), 4)
    assert stage.train.reference is not None
    stage.train.reference[3, 1] += wrong
    with pytest.raises(TrainingStopped, match="does not start at its reference"):
        stage.prove_start()


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.at_zero is not None])
def test_every_loss_with_a_reference_starts_at_its_known_value(fresh, both, name):
    proof = small.split(fresh, both, small.recipe({"name": name}), 4).prove_start()
    assert proof["loss"] == pytest.approx(proof["expected"], rel=1e-4, abs=1e-4)


def test_a_loss_without_a_reference_has_nothing_to_prove(fresh, both):
    stage = small.split(fresh, both, small.recipe({"name": "simpo", "beta": 2.0}), 4)
    stage.train = PairSet.of(stage.train.pairs, stage.train.trees, None)
    assert stage.prove_start()["loss"] is None


# Training.


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains(fresh, both, name):
    recipe = small.recipe({"name": name, "sft_weight": 0.1})
    stage = small.split(fresh, both, recipe, 4)
    if not stage.objective.needs_reference:
        stage.train = PairSet.of(stage.train.pairs, stage.train.trees, None)
    engine = small.engine(stage)
    for step in range(2):
        engine.update(stage.window(step), stage.loss)
        logged = engine.logged()
        assert all(math.isfinite(value) for value in logged.values()), logged
        assert logged["loss"] == pytest.approx(logged["loss/preference"] + logged["loss/sft"], rel=1e-6)
    assert engine.parameters.moved() > 0.99
    assert all(math.isfinite(value) for value in stage.evaluate().values())


def test_a_batch_that_is_repeated_is_learned(fresh, both):
    stage = small.split(fresh, both, small.recipe(learning_rate=3e-3), 4)
    engine = small.engine(stage)
    losses = []
    for _ in range(5):
        engine.update(stage.window(0), stage.loss)
        losses.append(engine.logged()["loss"])
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.6


def test_adapters_go_out_and_in_exactly(fresh, both):
    stage = small.split(fresh, both, small.recipe(), 4)
    start = stage.adapters()
    small.engine(stage).update(stage.window(0), stage.loss)
    trained = stage.adapters()
    assert any(not torch.equal(start["policy"][name], trained["policy"][name]) for name in start["policy"])
    stage.load_adapters(start)
    assert all(
        torch.equal(value, stage.adapters()["policy"][name]) for name, value in start["policy"].items()
    )


# Without waiting, in little memory, with prompts apart.


@pytest.mark.parametrize(("name", "recompute"), [*((name, False) for name in LOSSES), ("sigmoid", True)])
def test_a_step_does_not_wait_for_the_device(fresh, both, monkeypatch, name, recompute):
    recipe = small.recipe({"name": name, "sft_weight": 0.2}, tokens_per_microbatch=120)
    stage = small.split(fresh, both, recipe, 4)
    engine = small.engine(stage)
    engine.update(stage.window(0), stage.loss)  # the first step proves that gradients arrive
    fresh.recompute(len(fresh.blocks) if recompute else 0)
    window = stage.window(1)
    assert len(window.batches) > 1
    try:
        with without_waiting(monkeypatch):
            engine.update(window, stage.loss)
    finally:
        fresh.recompute(0)
    assert engine.step == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_step_does_not_wait_for_a_gpu(tiny_llama, quantization):
    options = ModelOptions.model_validate(
        {"name": str(tiny_llama), "quantization": quantization, "dtype": "bfloat16"}
    )
    model = Backbone(load_model(options, device="cuda"), small.SHAPE, seed=42)
    stage = small.stage(model, ROWS, small.recipe({"sft_weight": 0.2}, tokens_per_microbatch=120))
    engine = small.engine(stage, 10)
    engine.update(stage.window(0), stage.loss)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in (1, 2):
            engine.update(stage.window(step), stage.loss)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert math.isfinite(engine.logged()["loss"])


def strike(monkeypatch, nth: int) -> list[int]:
    """Make the n-th pass through the model (from 0) run out of memory; returns the sizes of all passes."""
    forward, passes = Backbone.leaf_logps, []

    def failing(self: Backbone, batch):
        passes.append(len(batch.keys))
        if len(passes) == nth + 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, batch)

    monkeypatch.setattr(Backbone, "leaf_logps", failing)
    return passes


@pytest.mark.parametrize("nth", [0, 1])
def test_evaluation_and_proof_outlive_memory_that_runs_out(fresh, both, monkeypatch, nth):
    def measures(stage: DPO):
        return {"evaluate": stage.evaluate, "logps": stage.held_out_logps, "proof": stage.prove_start}

    def stage() -> DPO:
        return small.split(fresh, both, small.recipe(tokens_per_microbatch=150), 8)

    for name, measure in measures(stage()).items():
        expected = measure()
        struck = stage()
        told = []
        struck.budget = TokenBudget(150, tell=told.append)
        with monkeypatch.context() as patched:
            passes = strike(patched, nth)
            found = measures(struck)[name]()
        assert len(told) == 1, "the fault fired"
        assert passes[nth] > 1
        assert sum(passes) - passes[nth] == 8, "each pair once, the failed pass aside"
        assert struck.budget.tokens < 76
        if name == "logps":
            torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-5, atol=1e-5)
        elif name == "evaluate":
            assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
        else:
            assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)


@pytest.mark.parametrize("phase", ["forward", "backward"])
@pytest.mark.parametrize("number", range(3))
def test_a_step_outlives_memory_that_runs_out(fresh, both, monkeypatch, number, phase):
    start, found = fresh.adapter_tensors(Role.POLICY), []
    for strikes in (False, True):
        fresh.set_adapter_tensors(Role.POLICY, start)
        stage = small.split(fresh, both, small.recipe({"sft_weight": 0.2}, tokens_per_microbatch=150), 4)
        told, sizes, loss_of = [], [], stage.loss
        stage.budget = TokenBudget(150, tell=told.append)

        def loss(batch, strikes=strikes, sizes=sizes, loss_of=loss_of):
            found = loss_of(batch)
            sizes.append(len(batch.keys))
            if strikes and len(sizes) == number + 1:
                if phase == "forward":
                    _no_memory()
                found.total.register_hook(_no_memory)
            return found

        monkeypatch.setattr(stage, "loss", loss)
        engine = small.engine(stage)
        make_step(stage, engine)
        assert [lowered.where for lowered in told] == [f"the {phase} pass of step 1"] * strikes
        assert sum(sizes[number + 1 :] if strikes else sizes) == 8
        found.append((engine.parameters.gradient.clone(), engine.logged()))
    (gradient, logged), (gradient_struck, logged_struck) = found
    assert (gradient_struck - gradient).norm() <= 1e-6 * gradient.norm()
    assert logged_struck == pytest.approx(logged, rel=1e-5, abs=1e-5)


def _no_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory.")


def test_prompts_apart_make_the_same_step(fresh, both):
    start = fresh.adapter_tensors(Role.POLICY)
    apart = [forest.apart(tree) for tree in both.trees]
    alone = small.pair_set(fresh, both.pairs, apart)
    torch.testing.assert_close(alone.reference, both.reference, rtol=1e-5, atol=1e-5)
    assert sum(tree.tokens for tree in apart) > 1.2 * sum(tree.tokens for tree in both.trees)
    found = []
    for pairs in (both, alone):
        fresh.set_adapter_tensors(Role.POLICY, start)
        stage = small.split(fresh, pairs, small.recipe({"sft_weight": 0.2}), 6)
        engine = small.engine(stage)
        for step in range(2):
            engine.update(stage.window(step), stage.loss)
        found.append((engine.parameters.gradient.clone(), engine.logged(), stage.evaluate()))
    (gradient, logged, held_out), (gradient_alone, logged_alone, held_out_alone) = found
    assert (gradient_alone - gradient).norm() < 1e-4 * gradient.norm()
    assert logged_alone == pytest.approx(logged, rel=1e-4, abs=1e-5)
    assert held_out_alone == pytest.approx(held_out, rel=1e-4, abs=1e-5)


# Options.


def test_options_of_the_loss_come_from_the_recipe():
    assert loss_options(small.recipe({"beta": 0.3, "label_smoothing": 0.1})) == {
        "beta": 0.3,
        "label_smoothing": 0.1,
    }
    assert loss_options(small.recipe({"name": "hinge", "options": {"margin": 0.5}})) == {
        "beta": 0.1,
        "margin": 0.5,
    }


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        ({"name": "sigmiod"}, "Did you mean sigmoid"),
        ({"name": "hinge", "options": {"margn": 0.5}}, "Did you mean margin"),
        ({"name": "hinge", "label_smoothing": 0.1}, "label_smoothing"),
        ({"name": "ipo", "length_normalized": True}, "means per token already"),
    ],
)
def test_wrong_options_of_the_loss_are_told(loss, text):
    with pytest.raises(RecipeError) as caught:
        loss_options(small.recipe(loss))
    assert text in str(caught.value)
