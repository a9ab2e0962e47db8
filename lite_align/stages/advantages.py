"""Scores to advantages: what every sampled token weighs in the losses, and the figures of a round.

Shape letters: N answers, R tokens of all of them one after the other.
"""

import math
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from lite_align.errors import TrainingStopped
from lite_align.losses import ppo
from lite_align.recipe import PPORecipe
from lite_align.stages.held_out import measures
from lite_align.stages.rollouts import Rollout

LARGEST_START = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Mean absolute log-ratio that rounding explains before the first update of a round (LA601; in bf16 and on a GPU an
estimate: 4e-3 was seen at most)."""

LEAST_KL = -0.5
"""Nats an answer; the KL of answers that were really sampled from the policy is not below it (LA602)."""


@dataclass(frozen=True)
class Columns:
    """What is learned from, for all R tokens of a round's answers one after the other, (R,) each.

    Attributes:
        kept: 1 for tokens that take part.
        rewards: of every token.
        advantages: as they weigh in the policy loss.
        returns: what the value head learns; None without one.
    """

    kept: Tensor
    rewards: Tensor
    advantages: Tensor
    returns: Tensor | None


def kl_in(recipe: PPORecipe) -> str:
    """Where the KL counts: "reward" or "loss"."""
    given = recipe.ppo.kl_in
    return ("loss" if recipe.ppo.advantage == "grpo" else "reward") if given == "auto" else given


def columns(rollout: Rollout, recipe: PPORecipe, kl_weight: float) -> Columns:
    """Rewards and advantages of every token (see `losses.ppo`)."""
    ragged, options = rollout.ragged, recipe.ppo
    device = rollout.logps.device
    valid = torch.tensor([float(score is not None) for score in rollout.scores], device=device)
    scores = torch.tensor([score or 0.0 for score in rollout.scores], device=device)
    mask = ragged.padded(torch.ones(ragged.tokens, device=device)) * valid[:, None]
    kl = ragged.padded(ppo.k1(rollout.logps, rollout.reference_logps))
    token_rewards = ppo.token_rewards(scores, kl, kl_weight if kl_in(recipe) == "reward" else 0.0, mask)
    kept, earned = ragged.flat(mask), ragged.flat(token_rewards)
    if options.advantage == "gae":
        assert rollout.values is not None
        values = ragged.padded(rollout.values)
        advantages = ppo.generalised_advantages(token_rewards, values, mask, decay=options.gae_lambda)
        returns = ragged.flat(advantages + values)
        return Columns(kept, earned, ragged.flat(ppo.whitened(advantages, mask)), returns)
    groups = torch.arange(len(rollout.scores), device=device) // rollout.samples
    whole = token_rewards.sum(1)
    if options.advantage == "rloo":
        single = ppo.leave_one_out_advantages(whole, groups, valid)
        return Columns(kept, earned, ragged.flat(ppo.whitened(single[:, None] * mask, mask)), None)
    single = ppo.group_relative_advantages(whole, groups, valid)
    return Columns(kept, earned, ragged.flat(single[:, None] * mask), None)


def require_right_kl(rollout: Rollout, number: int, dtype: torch.dtype) -> float:
    """Stop where the KL to the reference cannot be right (LA602); returns the largest difference of log-probs, in nats.

    Raises:
        TrainingStopped: the policy is not its reference in the first round, or the KL is far below zero.
    """
    differences = ppo.k1(rollout.logps, rollout.reference_logps)
    apart = float(differences.abs().mean())
    if number == 0 and not apart <= LARGEST_START[dtype]:
        raise TrainingStopped(
            f"LA602: the policy does not start at its reference: log-probs differ by {apart:.2g} nats a token.",
            remedy="Nothing was learned. Run lite-align doctor; if it finds nothing, please report it with the model.",
        )
    kl = float(differences.sum()) / len(rollout.answers)
    if not kl >= LEAST_KL:
        raise TrainingStopped(
            f"LA602: the KL to the reference is {kl:.2f} nats an answer; that of sampled answers is not below 0.",
            remedy="Set ppo.top_k=0 and ppo.top_p=1, so that answers are those of the policy itself.",
        )
    return float(differences.abs().max())


def told(rollout: Rollout, own: Columns, kl_weight: float) -> dict[str, float]:
    """The figures of a rollout for its row of metrics."""
    known = [score for score in rollout.scores if score is not None]
    gap = torch.tensor(
        [logp for answer in rollout.answers for logp in answer.logps], device=rollout.logps.device
    )
    row = {
        "objective/reward": fmean(known),
        "objective/beta": kl_weight,
        **measures(rollout),
        "reward/errors": float(rollout.errors),
        "policy/sampler_gap": float((gap - rollout.logps).abs().mean()),
        "policy/skipped": 0.0,
    }
    for name, values in rollout.sources.items():
        row[f"reward/{name}"] = fmean([value for value in values if value is not None] or [math.nan])
    if own.returns is not None:
        assert rollout.values is not None
        row["value/explained_variance"] = float(ppo.explained_variance(rollout.values, own.returns, own.kept))
    return row
