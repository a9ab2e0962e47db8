"""The plain PPO that others are compared with: its mathematics by hand, and its four models against each other."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks import plain_losses, plain_ppo
from benchmarks.plain_ppo import Models, PlainPPO, Rollout, Settings

# Two episodes of three and one tokens.
MASK = torch.tensor([[True, True, True], [True, False, False]])


def test_rewards_are_the_kl_and_the_score_on_the_last_token():
    k1 = torch.tensor([[1.0, -2.0, 30.0], [0.5, 9.0, 9.0]])
    rewards = plain_losses.shaped(torch.tensor([2.0, -1.0]), k1, MASK, 0.1)
    # -0.1 * 1, +0.1 * 2, -0.1 * 10 (clamped) + 2; -0.1 * 0.5 - 1, nothing on padding.
    assert rewards.tolist() == [pytest.approx([-0.1, 0.2, 1.0]), pytest.approx([-1.05, 0.0, 0.0])]


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_gae_is_the_weighted_sum_of_all_later_errors(lam: float):
    """1506.02438, eq. 16, as the double sum over each episode alone."""
    generator = torch.Generator().manual_seed(0)
    rewards, values = (torch.randn(2, 3, generator=generator) * MASK for _ in range(2))
    found = plain_losses.gae(rewards, values, lam)
    for row, length in enumerate(MASK.sum(1).tolist()):
        r, v = rewards[row].tolist(), [*values[row].tolist()[:length], 0.0]
        for t in range(length):
            expected = sum(lam ** (u - t) * (r[u] + v[u + 1] - v[u]) for u in range(t, length))
            assert found[row, t].item() == pytest.approx(expected, abs=1e-6)


def test_whitening_looks_at_the_mask_alone():
    # 1, 2, 3, 6: mean 3, variance (4 + 1 + 0 + 9) / 4 = 3.5.
    found = plain_losses.whitened(torch.tensor([[1.0, 2.0, 3.0], [6.0, 99.0, 99.0]]), MASK)
    step = 1 / math.sqrt(3.5)
    assert found.tolist() == [pytest.approx([-2 * step, -step, 0.0]), pytest.approx([3 * step, 0.0, 0.0])]


def test_groups_are_compared_with_themselves():
    returns, groups = torch.tensor([1.0, 10.0, 2.0, 6.0, 5.0]), [0, 1, 0, 0, 2]
    # 1 - (2 + 6) / 2, 2 - (1 + 6) / 2, 6 - (1 + 2) / 2; the others are alone.
    left = plain_losses.over_groups(returns, groups, plain_losses.leave_one_out)
    assert left.tolist() == [-3.0, 0.0, -1.5, 4.5, 0.0]
    # mean 3, variance (4 + 1 + 9) / 2 = 7.
    spread = math.sqrt(7) + 1e-4
    standard = plain_losses.over_groups(returns, groups, plain_losses.standard_score)
    assert standard.tolist() == pytest.approx([-2 / spread, 0.0, -1 / spread, 3 / spread, 0.0])


def test_the_policy_loss_takes_the_worse_of_both_ratios():
    ratios = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1])
    loss, outside = plain_losses.clipped_policy(ratios.log(), torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0]), 0.2)
    assert loss.tolist() == pytest.approx([-1.2, 1.5, -0.5, 0.8, -2.2])
    assert outside.tolist() == [True, True, True, True, False]


def test_the_value_loss_takes_the_worse_of_both_values():
    # From 0 to 1 held at 0.2: towards 2 worse, towards 0 better.
    loss, far = plain_losses.clipped_value(torch.ones(2), torch.zeros(2), torch.tensor([2.0, 0.0]), 0.2)
    assert loss.tolist() == pytest.approx([0.5 * 1.8**2, 0.5])
    assert far.tolist() == [True, True]


def test_k3_is_never_negative_and_has_the_kl_as_its_mean():
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    each = plain_losses.k3((q / p).log())
    assert (each >= 0).all()
    assert float((p * each).sum()) == pytest.approx(float((p * (p / q).log()).sum()), abs=1e-6)


def test_explained_variance_is_1_for_true_values_and_0_for_constant_ones():
    returns = torch.tensor([[1.0, 2.0, 4.0], [0.0, 7.0, 7.0]])
    assert plain_losses.explained_variance(returns, returns, MASK) == 1
    assert plain_losses.explained_variance(torch.ones_like(returns), returns, MASK) == 0


def test_rows_pad_prompts_left_and_answers_right():
    rows = plain_ppo.padded(Rollout([[5], [6, 7]], [[8, 9], [3]], [0, 1]), [0, 1])
    assert rows.ids.tolist() == [[0, 5, 8, 9], [6, 7, 3, 0]]
    assert rows.attended.tolist() == [[False, True, True, True], [True, True, True, False]]
    assert rows.answers.tolist() == [[True, True], [True, False]]
    assert rows.targets.tolist() == [[8, 9], [3, 0]]


# Four models.

ROLLOUT = Rollout([[5, 6], [7, 8, 9, 4], [5, 6], [11]], [[4, 5, 2], [6], [9, 2], [8, 8, 8, 8]], [0, 1, 0, 1])
OWN = Settings(stop_ids=(2,), learning_rate=1e-3, value_learning_rate=1e-2, target_kl=None)


def model(seed: int) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    shape = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.3}
    return LlamaForCausalLM(LlamaConfig(**shape, **heads, max_position_embeddings=32))


def plain(settings: Settings = OWN, *, reference_seed: int = 0) -> PlainPPO:
    frozen = [model(seed).requires_grad_(False) for seed in (reference_seed, 1)]
    torch.manual_seed(4)
    head = torch.randn(16)
    return PlainPPO(
        Models(model(0), frozen[0], frozen[1], head, model(2), nn.Linear(16, 1)), settings, forward_rows=3
    )


def test_log_probs_values_and_scores_are_those_of_unpadded_rows():
    it = plain(reference_seed=3)
    found = it.score(replace(ROLLOUT, scores=torch.zeros(4)))
    raw = torch.cat([it.rewards(rows) for rows in it._passes(ROLLOUT)])
    for number, (prompt, answer) in enumerate(zip(ROLLOUT.prompts, ROLLOUT.answers)):
        ids, start = torch.tensor([[*prompt, *answer]]), len(prompt) - 1
        for each, kept in ((it.models.policy, found.old), (it.models.reference, found.reference)):
            logps = (
                each(input_ids=ids).logits[0].log_softmax(-1)[start:-1].gather(1, ids[0, start + 1 :, None])
            )
            assert torch.allclose(kept[number, : len(answer)], logps[:, 0], atol=1e-5)
        hidden = it.models.value.model(input_ids=ids).last_hidden_state[0, start:-1]
        values = it.models.value_head(hidden)[:, 0]
        assert torch.allclose(found.values[number, : len(answer)], values, atol=1e-5)
        end = it.models.reward.model(input_ids=ids).last_hidden_state[0, -1]
        assert torch.allclose(raw[number], end @ it.models.reward_head, atol=1e-5)


def test_scores_are_standardised_clipped_or_those_of_a_missing_stop():
    own = replace(OWN, reward_mean=1.0, reward_std=2.0, reward_clip=1.5)
    scores = plain(own).finished(ROLLOUT, torch.tensor([2.0, 2.0, 9.0, 2.0]))
    assert scores.tolist() == [0.5, -1.0, 1.5, -1.0]


@pytest.mark.parametrize("advantage", ["gae", "rloo", "grpo"])
@pytest.mark.parametrize("kl_in", ["reward", "loss"])
def test_an_update_moves_what_is_trained_and_learns(advantage: str, kl_in: str):
    it = plain(replace(OWN, advantage=advantage, kl_in=kl_in))
    frozen = [it.models.reference, it.models.reward]
    before = [parameter.clone() for each in frozen for parameter in each.parameters()]
    rollout = replace(ROLLOUT, scores=torch.tensor([1.0, -1.0, 0.0, 2.0]))
    logged = [it.update(rollout, [[0, 1, 2, 3]] * 3) for _ in range(4)]
    after = [parameter for each in frozen for parameter in each.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert logged[0]["objective/kl"] == 0  # the policy starts as the reference
    assert logged[-1]["objective/kl"] != 0
    if advantage == "gae":
        assert logged[-1]["value/loss"] < logged[0]["value/loss"]
    now = it.score(rollout)
    best, worst = (now.old[n].sum() - now.reference[n].sum() for n in (3, 1))
    assert best > worst  # the better answer of prompt 1 has become likelier than the worse one


def test_an_episode_without_a_score_takes_no_part():
    with_it = plain(replace(OWN, advantage="rloo"))
    scores = torch.tensor([1.0, float("nan"), 0.0, float("nan")])
    logged = with_it.update(replace(ROLLOUT, scores=scores), [[0, 1], [2, 3], [1, 3]])
    without = plain(replace(OWN, advantage="rloo"))
    only = [0, 2]
    left = Rollout(
        [ROLLOUT.prompts[n] for n in only],
        [ROLLOUT.answers[n] for n in only],
        [0, 0],
        torch.tensor([1.0, 0.0]),
    )
    alone = without.update(left, [[0], [1]])
    for name in ("objective/reward", "policy/loss", "loss", "grad_norm"):
        assert logged[name] == pytest.approx(alone[name], abs=1e-5)


def test_a_round_stops_early_where_the_policy_has_moved_too_far():
    it = plain(replace(OWN, learning_rate=1e-1, update_kl=1e-3))
    logged = it.update(replace(ROLLOUT, scores=torch.arange(4.0)), [[0, 1, 2, 3]] * 5)
    assert logged["policy/skipped"] == 3  # the first step has ratio 1, the second is over the limit


@pytest.mark.parametrize(("kl", "factor"), [(6.3, 1.05), (12.0, 1.2), (0.0, 0.8)])
def test_beta_follows_the_kl(kl: float, factor: float):
    it = plain(replace(OWN, kl=0.5, target_kl=6.0, kl_horizon=8.0))
    it.control(kl, 8)
    assert it.beta == pytest.approx(0.5 * factor)
