"""The stage: which answers an optimiser step sees, what stops a round or a run, what guards do, and its state."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from lite_align.errors import TrainingStopped
from lite_align.model.backbone import Backbone, Role
from lite_align.stages.episodes import Episode, NoReward
from lite_align.stages.guards import Guards, Measured, Tripped
from lite_align.stages.ppo import KL_RAISE, LEAST_KL_WEIGHT, PPO, RATE_CUT, minibatches
from lite_align.stages.rollouts import Collector
from lite_align.train import fit
from tests import finished
from tests.stages import small_ppo

# Rounds have 16 answers, 4 to a prompt, and 2 passes of 2 minibatches of 8.


@pytest.fixture(scope="module")
def loaded(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tmp_path_factory.mktemp("talkative") / "model"
    return small_ppo.backbone(small_ppo.talkative(tiny_llama, folder))


@pytest.fixture
def model(loaded: Backbone) -> Backbone:
    """The model, whose policy is its reference again after every test."""
    loaded.set_adapter_tensors(Role.POLICY, loaded.adapter_tensors(Role.REFERENCE))
    for _, parameter in loaded.parameters(Role.POLICY):
        parameter.data = parameter.data.clone()  # the buffer of another engine stays behind
        parameter.grad = None
    return loaded


def made(stage: PPO, engine: Any) -> list[tuple[int, ...]]:
    """Make the step that is next; the answers that it learned from, micro-batch after micro-batch."""
    window = stage.window(engine.step)
    if window.batches:
        engine.update(window, stage.loss)
    else:
        engine.skip()
    return [batch.answers for batch in window.batches]


def answers(stage: PPO, step: int) -> list[int]:
    return [n for batch in stage.window(step).batches for n in batch.answers]


# Which answers.


def test_every_answer_is_learned_from_once_a_pass_with_the_others_of_its_prompt(model: Backbone):
    stage = small_ppo.stage(model, small_ppo.recipe())
    assert (stage.steps_per_round, stage.prompts_per_round, stage.minibatches) == (4, 4, 2)
    seen = [stage.minibatch(number, index) for number in range(2) for index in range(4)]
    for start in range(0, 8, 2):
        assert sorted(seen[start] + seen[start + 1]) == list(range(16))
    for batch in seen:
        assert [n // 4 for n in batch] == [n // 4 for n in batch[::4] for _ in range(4)]
        assert [n % 4 for n in batch] == [0, 1, 2, 3] * 2
    assert len({tuple(one) for one in seen}) > 4, "every pass has an order of its own"


def test_a_last_minibatch_may_be_smaller():
    recipe = small_ppo.recipe({"rollouts": 20}, batch_size=8)
    assert minibatches(recipe) == 3


def test_a_window_is_the_minibatch_in_packs_within_the_budget(model: Backbone):
    recipe = small_ppo.recipe(tokens_per_microbatch=64)
    stage = small_ppo.stage(model, recipe)
    for step in range(4):
        window = stage.window(step)
        found = [n for batch in window.batches for n in batch.answers]
        assert sorted(found) == sorted(stage.minibatch(0, step))
        assert stage._rollout is not None
        assert window.weight == sum(stage._rollout.ragged.lengths[n] for n in found)
        for batch in window.batches:
            assert batch.tokens <= 64 or len(batch.answers) == 4  # one prompt
            assert batch.places.tolist() == stage._rollout.ragged.places(batch.answers)
            assert len(batch.keys) == len(batch.answers) / 4, "what cannot be divided counts once"


def test_prompts_are_asked_in_turn_before_one_is_asked_again(model: Backbone):
    stage = small_ppo.stage(model, small_ppo.recipe(), prompts=6)
    asked = [one.columns["number"] for number in range(6) for one in stage.asked(number)]
    assert [sorted(asked[start : start + 6]) for start in range(0, 24, 6)] == [list(range(6))] * 4
    assert asked[:6] != asked[6:12]
    assert stage.epoch(4) == pytest.approx(4 / 6)
    assert stage.examples == 6


def test_a_round_is_a_function_of_its_number_and_the_policy(model: Backbone):
    one, other = (small_ppo.stage(model, small_ppo.recipe()) for _ in range(2))
    one.window(0)
    torch.manual_seed(3)
    other.window(0)
    assert one._rollout is not None
    assert other._rollout is not None
    assert [a.ids for a in one._rollout.answers] == [a.ids for a in other._rollout.answers]
    one.begin_round(1)
    assert one._rollout is not None
    assert [a.ids for a in one._rollout.answers] != [a.ids for a in other._rollout.answers]
    reseeded = small_ppo.stage(model, small_ppo.recipe(seed=43))
    reseeded.window(0)
    assert reseeded._rollout is not None
    assert [a.ids for a in reseeded._rollout.answers] != [a.ids for a in other._rollout.answers]


def test_answers_without_a_reward_have_no_weight(model: Backbone):
    def value(episode: Episode) -> float:
        if episode.tokens % 4 == 1:
            raise NoReward("raised")
        return small_ppo.letters(episode)

    stage = small_ppo.stage(model, small_ppo.recipe(), texts=[small_ppo.Text(value)])
    window = stage.window(0)
    rollout = stage._rollout
    assert rollout is not None
    assert 0 < rollout.scores.count(None) <= 8
    kept = [n for n in stage.minibatch(0, 0) if rollout.scores[n] is not None]
    assert window.weight == sum(rollout.ragged.lengths[n] for n in kept)
    losses = [stage.loss(batch) for batch in window.batches]
    assert sum(loss.count for loss in losses) == window.weight


# What stops.


def test_another_temperature_is_noticed_before_any_weight_moves(model: Backbone):
    """LA601: the log-probs that answers were measured with are not those that are trained."""
    stage = small_ppo.stage(model, small_ppo.recipe())
    engine = small_ppo.engine(stage)
    before = {name: value.clone() for name, value in model.adapter_tensors(Role.POLICY).items()}
    window = stage.window(0)
    stage.options = stage.options.model_copy(update={"temperature": 1.01})
    with pytest.raises(TrainingStopped, match="LA601") as told:
        engine.update(window, stage.loss)
    assert "Nothing of this round was learned" in told.value.remedy
    assert all(torch.equal(before[name], value) for name, value in model.adapter_tensors(Role.POLICY).items())
    assert engine.step == 0


def test_the_first_update_of_a_round_is_proved_although_minibatches_before_it_were_skipped(model: Backbone):
    stage = small_ppo.stage(model, small_ppo.recipe({"advantage": "rloo"}))
    stage.window(0)
    assert stage._rollout is not None
    assert stage._columns is not None
    stage._columns.advantages[stage._rollout.ragged.places(stage.minibatch(0, 0))] = 0.0
    assert stage.window(0).batches == []
    stage._first_step = None  # as at the begin of the round
    assert stage.window(0).batches == []
    window = stage.window(1)
    stage.options = stage.options.model_copy(update={"temperature": 1.01})
    with pytest.raises(TrainingStopped, match="LA601"):
        stage.loss(window.batches[0])


def test_a_policy_that_left_its_reference_does_not_start(model: Backbone):
    """LA602: of two roles that are not the same, before anything is learned."""
    finished.move(model, Role.POLICY, 0.1, seed=8)
    stage = small_ppo.stage(model, small_ppo.recipe())
    with pytest.raises(TrainingStopped, match="LA602"):
        stage.window(0)
    stage.begin_round(1)  # where it has learned, it may


@pytest.mark.parametrize("advantage", ["gae", "rloo", "grpo"])
def test_rewards_that_are_all_the_same_teach_nothing(model: Backbone, advantage: str):
    recipe = small_ppo.recipe({"advantage": advantage, "missing_stop": 0.5})
    stage = small_ppo.stage(model, recipe, texts=[small_ppo.Text(lambda episode: 0.5)])
    with pytest.raises(TrainingStopped, match="No answer of the first round is better") as told:
        stage.window(0)
    assert told.value.details == ("text: 0.5",)


def test_in_later_rounds_they_are_skipped(model: Backbone):
    stage = small_ppo.stage(model, small_ppo.recipe({"kl": 0.0}))
    stage.window(0)
    stage.collector.text_rewards = [small_ppo.Text(lambda episode: -1.0)]
    assert [len(stage.window(step).batches) for step in range(4, 8)] == [0] * 4
    assert stage.measured()["policy/skipped"] == 4


def test_a_round_without_rewards_stops_with_the_first_messages(model: Backbone):
    def value(episode: Episode) -> float:
        raise NoReward("raised", "KeyError: 'solution'")

    stage = small_ppo.stage(model, small_ppo.recipe(), texts=[small_ppo.Text(value)])
    with pytest.raises(TrainingStopped, match="16 of 16 answers have no reward") as told:
        stage.window(0)
    assert any("KeyError: 'solution'" in line for line in told.value.details)


@pytest.mark.parametrize(("limit", "skipped"), [(1e-4, 4), (None, 0)])
def test_a_policy_that_moved_too_far_leaves_the_rest_of_the_round_out(model: Backbone, limit, skipped: int):
    """And only of this round; the next one begins at the policy that sampled it."""
    recipe = small_ppo.recipe({"update_kl": limit, "kl": 0.0}, learning_rate=0.02)
    stage = small_ppo.stage(model, recipe)
    engine = small_ppo.engine(stage)
    learned = [bool(made(stage, engine)) for _ in range(8)]
    # The second minibatch measures how far the first one went; its own update is made.
    assert learned == [True, True, not limit, not limit] * 2
    assert engine.skipped == stage.measured()["policy/skipped"] * 2 == skipped


def test_a_step_that_is_made_again_is_not_taken_for_one_that_moved_too_far(model: Backbone):
    """Memory ran out in the middle of a step: what half of it has measured says nothing about the step before."""
    stage = small_ppo.stage(model, small_ppo.recipe({"update_kl": 1e-12}))
    for step in (0, 1):
        window = stage.window(step)
        stage._kl, stage._tokens = torch.tensor(99.0), torch.tensor(1.0)  # as half a step leaves them
        again = stage.window(step)
        assert [batch.answers for batch in again.batches] == [batch.answers for batch in window.batches]
        assert again.batches
        stage._clear()
    stage._kl, stage._tokens = torch.tensor(99.0), torch.tensor(1.0)  # of the whole step
    assert not stage.window(2).batches
    assert not stage.window(2).batches


# The weight of the KL.


def test_the_weight_moves_between_rounds_only(model: Backbone):
    """0.05 · (1 − 0.2 · 16 / 100) where the KL is far below its target."""
    stage = small_ppo.stage(model, small_ppo.recipe({"kl": 0.05, "target_kl": 6.0}))
    weights = []
    for step in range(12):
        stage.window(step)
        weights.append(stage.kl_weight)
    assert weights[:4] == [0.05] * 4
    assert weights[4:8] == [pytest.approx(0.05 * 0.968)] * 4
    assert weights[8:] == [pytest.approx(0.05 * 0.968**2)] * 4
    fixed = small_ppo.stage(model, small_ppo.recipe({"kl": 0.05, "target_kl": None}))
    for step in (0, 4):
        fixed.window(step)
        assert fixed.kl_weight == 0.05


@pytest.mark.parametrize("advantage", ["gae", "rloo", "grpo"])
def test_rewards_rise_when_it_learns(model: Backbone, advantage: str):
    """The whole cycle, twelve rounds, for each kind of advantage."""
    options = {"advantage": advantage, "kl": 0.0, "rollouts": 32, "update_kl": None, "missing_stop": -2.0}
    stage = small_ppo.stage(model, small_ppo.recipe(options, batch_size=16, learning_rate=0.01))
    engine = small_ppo.engine(stage)
    rewards = []
    for step in range(48):
        made(stage, engine)
        if step % 4 == 3:
            rewards.append(stage.measured()["objective/reward"])
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.3


# Guards.


class Watching(Guards):
    """Guards that see what a test wants them to see."""

    def __init__(self, good: int, *seen: tuple[str, str]) -> None:
        self.good = good
        self._seen = seen

    def look(self, now: Measured) -> list[Tripped]:
        if not self._seen:
            self.good = now.step
        return [Tripped(guard, action, now.step, f"{guard} saw it.") for guard, action in self._seen]


def guarded(model: Backbone, *seen: tuple[str, str], told: list[Tripped] | None = None) -> PPO:
    heard = [] if told is None else told
    stage = small_ppo.stage(model, small_ppo.recipe(), held_out=6, tell=heard.append)
    stage.begin()
    stage.window(0)
    stage.guards = Watching(0, *seen)
    return stage


def test_the_start_is_measured_and_given_to_the_guards(model: Backbone):
    stage = small_ppo.stage(model, small_ppo.recipe(), held_out=6)
    start = stage.begin()
    assert start["kl"] == 0.0
    assert "rounds" not in start
    assert stage.guards is not None
    assert any(line.startswith("hacking: ") for line in stage.guards.blind), "neither pairs nor rules"
    assert len(stage.start_rows) == 6
    assert {row["step"] for row in stage.samples_over_time} == {0}
    assert small_ppo.stage(model, small_ppo.recipe()).begin() == {}


def test_a_warning_is_told_and_nothing_else(model: Backbone):
    told: list[Tripped] = []
    stage = guarded(model, ("stop_rate", "warn"), ("length", "off"), told=told)
    figures = stage.evaluate()
    assert "reward" in figures
    assert "rounds" not in figures
    assert [one.guard for one in told] == [one.guard for one in stage.tripped] == ["stop_rate", "length"]
    assert (stage.ended, stage.rate_factor, stage._next_kl_weight) == ("", 1.0, stage.kl_weight * 0.968)


def test_raise_kl_counts_from_the_next_round_on(model: Backbone):
    stage = guarded(model, ("kl", "raise_kl"))
    before = stage._next_kl_weight
    stage.evaluate()
    assert stage.kl_weight == 0.05
    stage.window(4)
    assert stage.kl_weight == pytest.approx(before * KL_RAISE)
    stage._next_kl_weight = 0.0
    stage.evaluate()
    assert stage._next_kl_weight == LEAST_KL_WEIGHT


def test_lower_rate_reaches_the_next_update(model: Backbone):
    stage = guarded(model, ("value", "lower_rate"))
    engine = small_ppo.engine(stage)
    stage.evaluate()
    stage.evaluate()
    assert stage.rate_factor == RATE_CUT**2
    before = engine.rate
    engine.rate_factor = stage.rate_factor  # as train.fit does before every step
    fit.make_step(stage, engine)
    assert engine.rate == pytest.approx(before * RATE_CUT**2)
    assert engine.optimizer.param_groups[0]["lr"] == pytest.approx(before * RATE_CUT**2)


def test_stop_ends_the_run_where_it_is(model: Backbone):
    stage = guarded(model, ("hacking", "stop"))
    engine = small_ppo.engine(stage)
    made(stage, engine)
    before = model.adapter_tensors(Role.POLICY)
    stage.evaluate()
    assert stage.ended == "hacking saw it."
    assert stage.rolled_back_to is None
    assert same(model.adapter_tensors(Role.POLICY), before)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_roll_back_puts_the_last_good_policy_in_place_and_ends_the_run(model: Backbone):
    stage = guarded(model)
    engine = small_ppo.engine(stage)
    for _ in range(4):
        made(stage, engine)
    good = model.adapter_tensors(Role.POLICY)
    stage.evaluate()  # nothing is seen: step 4 is good
    for _ in range(4):
        made(stage, engine)
    assert not same(model.adapter_tensors(Role.POLICY), good)
    stage.guards = Watching(4, ("length", "roll_back"))
    stage.evaluate()
    assert same(model.adapter_tensors(Role.POLICY), good)
    assert (stage.rolled_back_to, stage.ended) == (4, "length saw it.")
    assert same(stage.adapters()["policy"], good)


def test_with_nothing_good_in_between_it_goes_back_to_the_start(model: Backbone):
    start = model.adapter_tensors(Role.POLICY)
    stage = guarded(model, ("length", "roll_back"))
    engine = small_ppo.engine(stage)
    for _ in range(4):
        made(stage, engine)
    stage.evaluate()
    assert same(model.adapter_tensors(Role.POLICY), start)
    assert stage.rolled_back_to == 0


# State.


@pytest.mark.parametrize("advantage", ["gae", "rloo"])
def test_a_stage_goes_on_from_its_state_as_if_it_had_never_stopped(model: Backbone, advantage: str):
    recipe = small_ppo.recipe({"advantage": advantage, "value": "reward"}, learning_rate=0.01)
    reward = small_ppo.model_reward(model)
    stage = small_ppo.stage(model, recipe, held_out=6, reward=reward)
    stage.begin()
    engine = small_ppo.engine(stage)
    for _ in range(4):
        made(stage, engine)
    stage.evaluate()
    stage.rate_factor, stage.collector.at_once = 0.25, 4
    stage.tripped.append(Tripped("stop_rate", "warn", 4, "Fewer."))
    state = json.loads(json.dumps(stage.state()))
    tensors = {name: {k: v.clone() for k, v in one.items()} for name, one in stage.adapters().items()}
    moments, skipped = {name: value.clone() for name, value in engine.state().items()}, engine.skipped
    assert set(tensors) == {"policy", "good"} | ({"value"} if advantage == "gae" else set())
    expected = [made(stage, engine) for _ in range(4)]
    end = stage.adapters(), stage.state(), stage.measured()["objective/reward"]

    model.set_adapter_tensors(Role.POLICY, model.adapter_tensors(Role.REFERENCE))
    other = small_ppo.stage(model, recipe, held_out=6, reward=reward)
    engine = small_ppo.engine(other)
    engine.load_state(moments, 4, skipped)
    other.load_state(state)
    other.load_adapters(tensors)
    assert other.state() == state
    assert (other.rounds, other.rate_factor, other.collector.at_once) == (1, 0.25, 4)
    assert [made(other, engine) for _ in range(4)] == expected
    adapters, after, reward_then = end
    assert {name: same(one, adapters[name]) for name, one in other.adapters().items()} == dict.fromkeys(
        adapters, True
    )
    assert other.state() == after
    assert other.measured()["objective/reward"] == reward_then


def test_the_value_head_learns_at_a_rate_of_its_own(model: Backbone):
    """And alone moves nothing of the policy: both have their own norm."""
    recipe = small_ppo.recipe({"advantage": "gae", "samples": 1, "value_learning_rate": 0.125})
    stage = small_ppo.stage(model, recipe)
    engine = small_ppo.engine(stage)
    made(stage, engine)
    assert [group["lr"] for group in engine.optimizer.param_groups] == [1e-3, 0.125]
    assert small_ppo.stage(model, small_ppo.recipe()).groups() == []


def test_sources_are_asked_once_a_round(model: Backbone, monkeypatch: pytest.MonkeyPatch):
    calls: Counter[str] = Counter()
    plain = Collector.sample

    def counted(self: Collector, *args: Any, **keywords: Any) -> Any:
        calls["sample"] += 1
        return plain(self, *args, **keywords)

    monkeypatch.setattr(Collector, "sample", counted)
    stage = small_ppo.stage(model, small_ppo.recipe())
    for step in range(8):
        stage.window(step)
        stage.window(step)
    assert calls["sample"] == 2
