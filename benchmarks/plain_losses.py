"""The mathematics of the plain PPO: pure functions on padded tensors (N, T) with a mask.

Shape letters: N episodes, T answer columns.

Sources: PPO arXiv 1707.06347, GAE 1506.02438, the details of language models 1909.08593 and 2403.17031, RLOO
2402.14740, GRPO 2402.03300, estimators of KL http://joschu.net/blog/kl-approx.html.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens of a mask; values outside are not looked at."""
    return values[mask].mean()


def whitened(values: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 (1/n) over the mask, 0 outside."""
    inside = values[mask]
    centred = values - inside.mean()
    return (centred / (inside.var(unbiased=False) + 1e-8).sqrt()).where(mask, torch.zeros_like(values))


def k3(log_ratio: Tensor) -> Tensor:
    """Estimate exp(x) - 1 - x of KL(p || q), never negative, from x = log q - log p of samples of p."""
    return log_ratio.exp() - 1 - log_ratio


def shaped(scores: Tensor, k1: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Rewards: -beta * k1 (clamped to 10) of every token, and the score on the last one."""
    rewards = (-beta * k1.clamp(-10, 10)).where(mask, torch.zeros_like(k1))
    rewards[torch.arange(len(scores)), mask.sum(1) - 1] += scores
    return rewards


def gae(rewards: Tensor, values: Tensor, gae_lambda: float) -> Tensor:
    """Generalised advantages with gamma 1 (1506.02438, eq. 16); rewards and values are 0 after the last token."""
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
    deltas = rewards + following - values
    found = torch.zeros_like(rewards)
    ahead = torch.zeros_like(rewards[:, 0])
    for column in reversed(range(rewards.shape[1])):
        ahead = deltas[:, column] + gae_lambda * ahead
        found[:, column] = ahead
    return found


def over_groups(returns: Tensor, groups: Sequence[int], advantage: Callable[[Tensor], Tensor]) -> Tensor:
    """Advantages (N,) from the returns (N,) of each prompt's episodes; an episode that is alone has 0."""
    numbers = torch.tensor(list(groups))
    found = torch.zeros_like(returns)
    for number in numbers.unique():
        own = numbers == number
        if own.sum() > 1:
            found[own] = advantage(returns[own])
    return found


def leave_one_out(returns: Tensor) -> Tensor:
    """Each return minus the mean of the others (2402.14740)."""
    return returns - (returns.sum() - returns) / (len(returns) - 1)


def standard_score(returns: Tensor) -> Tensor:
    """Each return's distance from the mean in standard deviations (2402.03300)."""
    return (returns - returns.mean()) / (returns.std(unbiased=True) + 1e-4)


def clipped_policy(log_ratio: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Loss of every token (1707.06347, eq. 7, negated), and whether its ratio lies outside the clip."""
    ratio = log_ratio.clamp(-20, 20).exp()
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))
    return loss, (ratio - 1).abs() > clip


def clipped_value(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Half the squared error of every token, pessimistic about moves beyond `clip`, and whether it moved so far."""
    held = old + (values - old).clamp(-clip, clip)
    loss = 0.5 * torch.maximum((values - returns) ** 2, (held - returns) ** 2)
    return loss, (values - old).abs() > clip


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns)."""
    inside = returns[mask]
    return 1 - (inside - values[mask]).var(unbiased=False) / inside.var(unbiased=False)
