"""Scores to advantages, worked out by hand on made-up rollouts, and the KL that must be right."""

import math
from typing import Any

import pytest
import torch

from lite_align.errors import TrainingStopped
from lite_align.stages.advantages import columns, kl_in, require_right_kl, told
from tests.stages import small_ppo

FP32 = torch.float32


def by_hand(values: list[float]) -> list[float]:
    """Whitened: mean 0, standard deviation 1 over n."""
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    return [(value - mean) / deviation for value in values]


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def recipe(advantage: str, **options: Any):
    return small_ppo.recipe({"advantage": advantage, **options})


def test_gae_by_hand():
    """Two answers of 2 and 3 tokens; lambda 0.5; the weight of the KL is 0.1."""
    logps = tensor(-1.0, -2.0, -1.0, -1.0, -1.0)
    reference = tensor(-1.5, -2.0, -1.0, -2.0, -1.0)  # k1: 0.5, 0 and 0, 1, 0
    values = tensor(0.2, 0.4, -0.2, 0.0, 0.6)
    rollout = small_ppo.rollout([2, 3], [1.0, -1.0], logps=logps, reference_logps=reference, values=values)
    found = columns(rollout, recipe("gae", gae_lambda=0.5), 0.1)
    assert found.rewards.tolist() == pytest.approx([-0.05, 1.0, 0.0, -0.1, -1.0])
    # First answer. Last token: 1 − 0.4 = 0.6. First: −0.05 + 0.4 − 0.2 + 0.5 · 0.6 = 0.45.
    # Second. Last: −1 − 0.6 = −1.6. Middle: −0.1 + 0.6 − 0 − 0.8 = −0.3. First: 0 + 0 + 0.2 − 0.15 = 0.05.
    plain = [0.45, 0.6, 0.05, -0.3, -1.6]
    assert found.returns is not None
    assert found.returns.tolist() == pytest.approx([0.65, 1.0, -0.15, -0.3, -1.0])
    assert found.advantages.tolist() == pytest.approx(by_hand(plain))
    assert found.kept.tolist() == [1.0] * 5


def test_rloo_by_hand():
    """Rewards of answers: 2, −0.1 and 1, 0 (their KL taken off), each against the other of its prompt."""
    reference = tensor(-1.0, -2.0, -1.0, -1.0, -1.0)
    rollout = small_ppo.rollout([1, 1, 2, 1], [2.0, 0.0, 1.0, 0.0], samples=2, reference_logps=reference)
    found = columns(rollout, recipe("rloo"), 0.1)
    assert found.rewards.tolist() == pytest.approx([2.0, -0.1, 0.0, 1.0, 0.0])
    assert found.advantages.tolist() == pytest.approx(by_hand([2.1, -2.1, 1.0, 1.0, -1.0]))
    assert found.returns is None


def test_grpo_by_hand():
    """In standard deviations over n − 1 of the prompt's answers; the KL is in the loss, and nothing is whitened."""
    reference = tensor(-9.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0)
    scores = [3.0, 1.0, 2.0, 5.0, 5.0, 5.0]
    rollout = small_ppo.rollout([1, 2, 1, 1, 1, 1], scores, samples=3, reference_logps=reference)
    found = columns(rollout, recipe("grpo"), 0.1)
    assert found.rewards.tolist() == [3.0, 0.0, 1.0, 2.0, 5.0, 5.0, 5.0]
    own = 1 / (1 + 1e-4)  # their standard deviation is 1
    assert found.advantages.tolist() == pytest.approx([own, -own, -own, 0.0, 0.0, 0.0, 0.0])
    in_reward = columns(rollout, recipe("grpo", kl_in="reward"), 0.1)
    assert in_reward.rewards.tolist() == pytest.approx([2.2, 0.0, 1.0, 2.0, 5.0, 5.0, 5.0])


@pytest.mark.parametrize(
    ("advantage", "given", "found"),
    [
        ("gae", "auto", "reward"),
        ("rloo", "auto", "reward"),
        ("grpo", "auto", "loss"),
        ("gae", "loss", "loss"),
    ],
)
def test_where_the_kl_counts(advantage: str, given: str, found: str):
    assert kl_in(recipe(advantage, kl_in=given)) == found


@pytest.mark.parametrize("advantage", ["gae", "rloo", "grpo"])
def test_an_answer_without_a_reward_changes_nothing_of_the_others(advantage: str):
    """Its tokens have the advantage 0 and are no part of any mean, of a group or of the whole."""
    without = small_ppo.rollout([1, 2, 1, 1], [2.0, 0.5, 1.0, 0.0], samples=2, values=torch.arange(5.0))
    lengths, scores = [1, 2, 3, 1, 2, 1], [2.0, 0.5, None, 1.0, None, 0.0]
    values = tensor(0, 1, 2, 9, 9, 9, 3, 7, 7, 4)
    given = small_ppo.rollout(lengths, scores, samples=3, values=values)
    expected, found = (columns(one, recipe(advantage), 0.1) for one in (without, given))
    here = [0, 1, 2, 6, 9]
    assert found.advantages[here].tolist() == pytest.approx(expected.advantages.tolist(), abs=1e-6)
    lost = [3, 4, 5, 7, 8]
    assert found.kept[lost].tolist() == found.advantages[lost].tolist() == [0.0] * 5
    assert found.rewards[lost].tolist() == [0.0] * 5


# LA602.


def test_a_policy_that_starts_elsewhere_stops_the_first_round():
    logps = torch.full((4,), -1.0)
    off = small_ppo.rollout([2, 2], [1.0, 0.0], logps=logps, reference_logps=logps + 2e-4)
    with pytest.raises(TrainingStopped, match="LA602: the policy does not start at its reference"):
        require_right_kl(off, 0, FP32)
    require_right_kl(off, 1, FP32)  # later it may be anywhere
    near = small_ppo.rollout([2, 2], [1.0, 0.0], logps=logps, reference_logps=logps + tensor(5e-5, 0, 0, 0))
    assert require_right_kl(near, 0, FP32) == pytest.approx(5e-5, rel=0.02)
    assert require_right_kl(off, 0, torch.bfloat16) == pytest.approx(2e-4, rel=0.01)


def test_a_kl_below_zero_stops_any_round():
    logps = torch.full((4,), -1.0)

    def apart(nats: float):
        return small_ppo.rollout([2, 2], [1.0, 0.0], logps=logps, reference_logps=logps + nats / 2)

    require_right_kl(apart(0.49), 3, FP32)
    with pytest.raises(TrainingStopped, match="LA602: the KL to the reference is -0.51 nats") as found:
        require_right_kl(apart(0.51), 3, FP32)
    assert "ppo.top_k=0" in found.value.remedy


@pytest.mark.parametrize("number", [0, 1])
def test_a_kl_that_is_no_number_stops_any_round(number: int):
    broken = small_ppo.rollout([1], [1.0], reference_logps=tensor(math.nan))
    with pytest.raises(TrainingStopped, match="LA602"):
        require_right_kl(broken, number, FP32)


# Figures.


def test_figures_of_a_round():
    """Means over answers with a reward; sources apart; the sampler's own log-probs beside ours."""
    reference = tensor(-1.5, -1.0, -1.0, -2.0)
    rollout = small_ppo.rollout(
        [1, 2, 1], [1.0, None, 3.0], reference_logps=reference, values=tensor(0, 0, 0, 0)
    )
    row = told(rollout, columns(rollout, recipe("gae"), 0.2), 0.2)
    assert row["objective/reward"] == row["reward/text"] == 2.0
    assert row["reward/errors"] == 1.0
    assert row["objective/beta"] == 0.2
    assert row["objective/kl"] == pytest.approx(0.5)  # 1.5 nats, three answers
    assert row["objective/kl_k3"] == pytest.approx((math.exp(-0.5) - 0.5 + math.exp(-1)) / 3)
    assert row["objective/length"] == pytest.approx(4 / 3)
    assert (row["objective/entropy"], row["objective/stop_rate"]) == (0.5, 1.0)
    assert row["policy/sampler_gap"] == 0.0
    assert row["value/explained_variance"] == pytest.approx(0.0)
    assert "value/explained_variance" not in told(rollout, columns(rollout, recipe("rloo"), 0.2), 0.2)
