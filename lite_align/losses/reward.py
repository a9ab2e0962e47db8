"""Losses of a reward model as pure functions of scores.

Shapes: C comparisons. Symbols: r_w score of the chosen answer, r_l of the rejected one, σ the logistic function.
Every comparison is looked at alone: how many of them share a prompt, and how they are packed, changes nothing.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import softplus


@dataclass(frozen=True)
class Comparisons:
    """Scores of C compared answers.

    `chosen`, `rejected`: (C,) scores r_w and r_l, of which only differences have a meaning. `margin`: (C,) how much
    better the chosen answer was rated, to be exceeded by the difference; None: only the sign of it counts.
    """

    chosen: Tensor
    rejected: Tensor
    margin: Tensor | None = None

    def gap(self) -> Tensor:
        """r_w − r_l, the log-odds that the chosen answer is the better one, (C,)."""
        return self.chosen - self.rejected


@dataclass(frozen=True)
class RewardLoss:
    """The loss of C comparisons and its two parts, (C,) each: total = ranking + coefficient · centering."""

    total: Tensor
    ranking: Tensor
    centering: Tensor


def bradley_terry(pairs: Comparisons) -> Tensor:
    """−log σ(r_w − r_l − margin): how surprising the choice is, (C,) nats.

    Source: Bradley and Terry 1952 as in InstructGPT, arXiv 2203.02155 eq. 1; margin: Llama 2, arXiv 2307.09288 eq. 2.
    """
    gap = pairs.gap()
    return softplus(-(gap if pairs.margin is None else gap - pairs.margin))


def centering(pairs: Comparisons) -> Tensor:
    """(r_w + r_l)²: scores have no zero of their own, and this pulls their mean there, (C,).

    Source: arXiv 2312.09244, section 3; TRL's `center_rewards_coefficient`.
    """
    return (pairs.chosen + pairs.rejected).square()


def total(pairs: Comparisons, center_rewards_coefficient: float) -> RewardLoss:
    """Both parts, the second one times its coefficient."""
    ranking, centred = bradley_terry(pairs), centering(pairs)
    return RewardLoss(ranking + center_rewards_coefficient * centred, ranking, centred)


def metrics(pairs: Comparisons) -> dict[str, Tensor]:
    """What is logged of C comparisons, (C,) each, detached; equal scores are half an accurate choice."""
    gap = pairs.gap().detach()
    return {
        "rewards/chosen": pairs.chosen.detach(),
        "rewards/rejected": pairs.rejected.detach(),
        "rewards/margins": gap,
        "rewards/accuracies": (gap.sign() + 1) / 2,
    }
