"""The mathematics of PPO, RLOO and GRPO on sampled answers: pure functions, no model.

Shape letters: N answers, T tokens of the longest one (the stop token included). `mask` (N, T) is 1 on the tokens of an
answer, which stand at its left, and 0 on the padding behind; an answer that takes no part has a row of zeros.
Source of the details: arXiv 2403.17031 (The N+ implementation details of RLHF with PPO).
"""

import torch
from torch import Tensor

LARGEST_LOG_RATIO = 20.0
"""Bound of log-ratios before they are exponentiated."""

LARGEST_KL = 10.0
"""Bound of the KL of a token, in nats, where it counts as a reward."""


# KL estimators (J. Schulman, "Approximating KL divergence", 2020), of p from tokens that p sampled.


def k1(logps: Tensor, reference: Tensor) -> Tensor:
    """Log p − log q of every token: unbiased, of either sign."""
    return logps - reference


def k3(logps: Tensor, reference: Tensor) -> Tensor:
    """q/p − 1 − log(q/p) of every token: unbiased, never negative, less noisy than `k1`."""
    log_ratio = (reference - logps).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    return log_ratio.exp() - 1 - log_ratio


def next_kl_weight(weight: float, kl: float, target: float, answers: int, horizon: int) -> float:
    """The weight of the KL after so many answers with a mean KL, drawn towards a target.

    Source: arXiv 1909.08593 (Fine-tuning language models from human preferences), section 2.2.
    """
    error = max(-0.2, min(0.2, kl / target - 1))
    return weight * (1 + error * answers / horizon)


# Rewards and advantages.


def last_tokens(mask: Tensor) -> Tensor:
    """1 on the last token of every answer, (N, T)."""
    following = torch.nn.functional.pad(mask[:, 1:], (0, 1))
    return mask * (1 - following)


def token_rewards(scores: Tensor, kl: Tensor, kl_weight: float, mask: Tensor) -> Tensor:
    """−weight × KL on every token and the score on the last one: scores (N,), kl (N, T) -> (N, T).

    Source: arXiv 2203.02155 (InstructGPT), eq. 2, token by token.
    """
    penalty = kl_weight * kl.clamp(-LARGEST_KL, LARGEST_KL) * mask
    return scores[:, None] * last_tokens(mask) - penalty


def generalised_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, *, discount: float = 1.0, decay: float = 0.95
) -> Tensor:
    """Advantages of every token, (N, T): the value after the last token is 0.

    Source: arXiv 1506.02438 (GAE), eq. 16, with gamma = `discount` and lambda = `decay`.
    """
    advantages = torch.zeros_like(rewards)
    following, value_after = torch.zeros_like(rewards[:, 0]), torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        error = rewards[:, t] + discount * value_after - values[:, t]
        following = (error + discount * decay * following) * mask[:, t]
        advantages[:, t] = following
        value_after = values[:, t] * mask[:, t]
    return advantages


def leave_one_out_advantages(returns: Tensor, groups: Tensor, valid: Tensor) -> Tensor:
    """Return of each answer minus the mean of the others to its prompt: (N,); 0 where there is no other.

    Args:
        returns: (N,), of whole answers.
        groups: (N,) int64, the prompt of each answer, numbered from 0.
        valid: (N,), 1 for answers that take part.

    Source: arXiv 2402.14740 (Back to basics), the RLOO estimator.
    """
    total, count = _grouped(returns * valid, groups), _grouped(valid, groups)
    others = (count - valid).clamp_min(1)
    alone = count - valid < 1
    return ((returns - (total - returns * valid) / others) * valid).masked_fill(alone, 0.0)


def group_relative_advantages(
    returns: Tensor, groups: Tensor, valid: Tensor, *, least: float = 1e-4
) -> Tensor:
    """Return of each answer in standard deviations (n − 1) of its prompt's answers above their mean: (N,).

    Args as for `leave_one_out_advantages`; `least` is added to the standard deviation.

    Source: arXiv 2402.03300 (DeepSeekMath), section 4.1.2.
    """
    count = _grouped(valid, groups)
    mean = _grouped(returns * valid, groups) / count.clamp_min(1)
    gap = (returns - mean) * valid
    deviation = (_grouped(gap.square(), groups) / (count - 1).clamp_min(1)).sqrt()
    return gap / (deviation + least)


def _grouped(values: Tensor, groups: Tensor) -> Tensor:
    """The sum over its group at every answer, (N,)."""
    sums = values.new_zeros(len(values)).index_add(0, groups, values)
    return sums.index_select(0, groups)


# Masked statistics.


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens of the mask, a scalar; 0 where it has none."""
    return (values * mask).sum() / mask.sum().clamp_min(1)


def whitened(values: Tensor, mask: Tensor, *, least: float = 1e-8) -> Tensor:
    """Values with mean 0 and standard deviation 1 (over n) over the mask, 0 outside."""
    centred = (values - masked_mean(values, mask)) * mask
    return centred / (masked_mean(centred.square(), mask).sqrt() + least)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 − Var(returns − values) / Var(returns) over the mask: 1 is perfect, 0 no better than a constant.

    Where all returns are equal there is nothing to explain: 0.
    """
    residual, spread = returns - values, returns - masked_mean(returns, mask)
    variance = masked_mean((residual - masked_mean(residual, mask)).square(), mask)
    whole = masked_mean(spread.square(), mask)
    return torch.where(whole < 1e-12, torch.zeros_like(whole), 1 - variance / whole.clamp_min(1e-12))


# Losses, token by token: any shape, the same for all arguments.


def log_ratio(logps: Tensor, old_logps: Tensor) -> Tensor:
    """Log of the probability ratio of the policy to the one that sampled."""
    return (logps - old_logps).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)


def policy_loss(logps: Tensor, old_logps: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """The clipped surrogate of every token, to be minimised.

    Source: arXiv 1707.06347 (PPO), eq. 7.
    """
    ratio = log_ratio(logps, old_logps).exp()
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Half the squared error of every token, clipped like the policy's.

    Source: arXiv 2403.17031, detail "value function loss clipping".
    """
    near = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns).square(), (near - returns).square())
