"""PPO and memory: what runs out costs time and no answer, passes of any size learn the same, the base exists once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.counters import saved_bytes
from lite_align.data import forest
from lite_align.data.types import Rendered
from lite_align.errors import TooLittleMemory
from lite_align.model.backbone import Backbone, Role
from lite_align.stages.ppo import PPO
from lite_align.stages.rollouts import Collector
from lite_align.train import fit
from tests.stages import small, small_ppo

Answers = list[tuple[int, ...]]


def out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")


def strike(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, nth: int) -> None:
    """Let the n-th call of a method run out of memory."""
    plain, calls = getattr(owner, name), iter(range(1, 10**9))

    def wrapper(*args: Any, **keywords: Any) -> Any:
        if next(calls) == nth:
            out_of_memory()
        return plain(*args, **keywords)

    monkeypatch.setattr(owner, name, wrapper)


def heard(monkeypatch: pytest.MonkeyPatch) -> list[Answers]:
    """All answers that are scored from now on."""
    plain: Callable[..., Any] = Collector.score
    found: list[Answers] = []

    def score(self: Collector, asked: Any, answers: Any, *args: Any, **keywords: Any) -> Any:
        found.append([one.ids for one in answers])
        return plain(self, asked, answers, *args, **keywords)

    monkeypatch.setattr(Collector, "score", score)
    return found


# Calls, numbered by what a run does: the start is measured, then round after round.
MOMENTS = [
    (Backbone, "state_statistics", 1, "the scoring under policy"),
    (PPO, "loss", 1, "the forward pass of step 1"),
    (Backbone, "sample", 4, "the sampling of answers"),
]


def test_a_run_outlives_memory_that_runs_out(ppo_job, reward_run: Path, monkeypatch: pytest.MonkeyPatch):
    """In sampling, in scoring and in learning, with the same answers and nearly the same numbers."""
    settings = {"ppo__reward": str(reward_run), "train__max_steps": 8, "train__tokens_per_microbatch": 256}
    plain, struck = (ppo_job(name, **settings) for name in ("plain", "struck"))
    answers = heard(monkeypatch)
    plain.train()
    expected, answers[:] = list(answers), []
    for owner, name, nth, _ in MOMENTS:
        strike(monkeypatch, owner, name, nth)
    struck.train()
    assert [event["where"] for event in struck.record()["events"] if event["kind"] == "out_of_memory"] == [
        where for _, _, _, where in MOMENTS
    ]
    assert not any(event["kind"] == "out_of_memory" for event in plain.record()["events"])
    assert answers == expected
    for ours, theirs in zip(struck.metrics(), plain.metrics(), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)


# The stage alone.


@pytest.fixture(scope="module")
def loaded(talkative: Path) -> Backbone:
    return small_ppo.backbone(talkative)


@pytest.fixture
def model(loaded: Backbone) -> Backbone:
    loaded.set_adapter_tensors(Role.POLICY, loaded.adapter_tensors(Role.REFERENCE))
    for _, parameter in loaded.parameters(Role.POLICY):
        parameter.data = parameter.data.clone()
        parameter.grad = None
    return loaded


def learned(
    model: Backbone, tokens: int, advantage: str, strike_at: int = 0
) -> tuple[dict[str, Tensor], PPO]:
    """The policy after one round in passes of so many tokens; with a call of `loss` that runs out of memory."""
    model.set_adapter_tensors(Role.POLICY, model.adapter_tensors(Role.REFERENCE))
    for _, parameter in model.parameters(Role.POLICY):
        parameter.data, parameter.grad = parameter.data.clone(), None
    options = {"advantage": advantage, "update_kl": 0.02, "value": "policy"}
    recipe = small_ppo.recipe(options, tokens_per_microbatch=tokens, learning_rate=3e-3, adam_epsilon=1e-3)
    stage = small_ppo.stage(model, recipe)
    engine = small_ppo.engine(stage)
    plain, calls = stage.loss, iter(range(1, 10**9))

    def loss(batch: Any) -> Any:
        if next(calls) == strike_at:
            out_of_memory()
        return plain(batch)

    stage.loss = loss  # pyright: ignore[reportAttributeAccessIssue]
    for _ in range(stage.steps_per_round):
        fit.make_step(stage, engine)
    return model.adapter_tensors(Role.POLICY), stage


def apart(one: dict[str, Tensor], other: dict[str, Tensor], start: dict[str, Tensor]) -> float:
    """The difference of two updates, relative to the update."""
    difference = sum(float((one[name] - other[name]).square().sum()) for name in one)
    moved = sum(float((one[name] - start[name]).square().sum()) for name in one)
    assert moved > 0
    return (difference / moved) ** 0.5


@pytest.mark.parametrize("advantage", ["gae", "rloo", "grpo"])
def test_the_size_of_passes_changes_nothing_but_time(model: Backbone, advantage: str):
    start = model.adapter_tensors(Role.POLICY)
    large, of_large = learned(model, 2048, advantage)
    tiny, of_tiny = learned(model, 16, advantage)
    again, stage = learned(model, 2048, advantage, strike_at=2)
    assert apart(tiny, large, start) < 1e-6
    assert apart(again, large, start) < 1e-6
    assert stage.budget.tokens < 2048
    skipped = [one.measured()["policy/skipped"] for one in (of_large, of_tiny, stage)]
    assert len(set(skipped)) == 1


def test_a_prompt_whose_answers_do_not_fit_ends_the_run_with_a_reason(model: Backbone):
    """And does not try the same pass for ever."""
    recipe = small_ppo.recipe(tokens_per_microbatch=64)
    stage = small_ppo.stage(model, recipe)
    engine = small_ppo.engine(stage)
    tries = []

    def loss(batch: Any) -> Any:
        tries.append(batch.answers)
        out_of_memory()

    stage.window(0)
    stage.loss = loss  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TooLittleMemory, match="the forward pass of step 1"):
        fit.make_step(stage, engine)
    assert len(tries) <= 4


# One base.


def test_policy_reference_and_reward_share_one_base(model: Backbone):
    """No weight of the base is there twice, under any name; roles add their adapters and a head."""
    from transformers import AutoModelForCausalLM

    alone = AutoModelForCausalLM.from_pretrained(model.loaded.name)
    own = {id(p) for role in (Role.POLICY, Role.REFERENCE, Role.REWARD) for _, p in model.parameters(role)}
    base = [p for p in model.model.parameters() if id(p) not in own]
    assert sum(p.numel() for p in base) == sum(p.numel() for p in alone.parameters())
    storages = [p.untyped_storage().data_ptr() for p in base]
    assert len(set(storages)) == len(storages)
    adapters = {role: sum(p.numel() for _, p in model.parameters(role)) for role in Role}
    hidden = model.model.config.get_text_config().hidden_size
    assert adapters[Role.POLICY] == adapters[Role.REFERENCE] == adapters[Role.REWARD] - hidden
    everything = {id(p): p.numel() for p in model.model.parameters()}
    assert sum(everything.values()) == sum(p.numel() for p in base) + 3 * adapters[Role.POLICY]


def test_a_round_leaves_the_base_as_it_was(model: Backbone):
    pointers = [p.data_ptr() for p in model.model.parameters() if not p.requires_grad]
    before = model.base_sha256(), model.adapter_sha256(Role.REFERENCE), model.adapter_sha256(Role.REWARD)
    stage = small_ppo.stage(
        model, small_ppo.recipe({"value": "reward"}), reward=small_ppo.model_reward(model)
    )
    engine = small_ppo.engine(stage)
    policy = model.adapter_sha256(Role.POLICY)
    for _ in range(stage.steps_per_round):
        fit.make_step(stage, engine)
    assert model.adapter_sha256(Role.POLICY) != policy
    assert before == (
        model.base_sha256(),
        model.adapter_sha256(Role.REFERENCE),
        model.adapter_sha256(Role.REWARD),
    )
    assert pointers == [p.data_ptr() for p in model.model.parameters() if not p.requires_grad]


@pytest.mark.parametrize("advantage", ["gae", "rloo"])
def test_a_step_keeps_little_more_than_one_of_dpo_with_the_same_tokens(model: Backbone, advantage: str):
    """Bytes that a micro-batch keeps for its backward pass, head and losses included."""
    options = {"advantage": advantage, "samples": 2, "rollouts": 8, "max_new_tokens": 30, "value": "reward"}
    recipe = small_ppo.recipe(options, tokens_per_microbatch=4096)
    reward = small_ppo.model_reward(model)
    stage = small_ppo.stage(model, recipe, reward=reward)
    (batch,) = stage.window(0).batches
    rollout = stage._rollout
    assert rollout is not None
    of_ppo = saved_bytes(model.model, lambda: stage.loss(batch))

    trees = []
    for key, tree in enumerate(rollout.trees[n // 2] for n in batch.answers[::2]):
        sequences = [forest.whole(tree, leaf) for leaf in (0, 1)]
        trees.append(forest.grow(key, [Rendered(one.ids, one.trained) for one in sequences]))
    pairs = small.as_pairs(small.rows(len(trees)))
    dpo = small.split(model, small.pair_set(model, pairs, trees), small.recipe(tokens_per_microbatch=4096), 0)
    (same,) = dpo.window(0).batches
    assert same.tokens == batch.tokens
    of_dpo = saved_bytes(model.model, lambda: dpo.loss(same))
    assert of_ppo <= 1.3 * of_dpo
