"""Losses on single answers with a thumb up or down, and the reference point that they are measured from.

Shapes: B answers. Symbols in the formulas: y an answer, up or down its thumb, r = log π(y) − log ref(y) its
log-ratio, z the reference point, λ_up and λ_down the weights of the thumbs, σ the logistic function. Every loss
looks at one answer and at z, which is one number for a whole optimiser step: micro-batches and packing cannot
change it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lite_align.losses.entry import LossEntry, Options, Positive, add, entry
from lite_align.losses.preference import LossParts

LOSSES: dict[str, LossEntry] = {}
WEIGHTS = ("desirable_weight", "undesirable_weight")
BALANCE = (1.0, 4 / 3)  # where λ_up n_up / (λ_down n_down) should lie, arXiv 2402.01306 section 4.2


@dataclass(frozen=True)
class ThumbLogps:
    """Log-probs of B answers under policy and reference.

    `policy`, `reference`: (B,) sums over trained tokens, in nats; `lengths`: (B,) numbers of trained tokens, the
    end token included; `up`: (B,) bool, the thumbs; `zero`: scalar, the reference point of `reference_point`.
    """

    policy: Tensor
    reference: Tensor
    lengths: Tensor
    up: Tensor
    zero: Tensor

    def ratio(self) -> Tensor:
        """r: log π − log ref, (B,)."""
        return self.policy - self.reference

    def per_token(self) -> "ThumbLogps":
        """The same answers with means over trained tokens; `zero` must have been made of means then."""
        lengths = self.lengths.clamp(min=1)
        return replace(
            self,
            policy=self.policy / lengths,
            reference=self.reference / lengths,
            lengths=torch.ones_like(self.lengths),
        )


def unpaired(
    name: str, *, source: str, needs_zero: bool
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Enter a loss `(thumbs, *, options…) -> (B,)` into the table; two losses of one name are refused."""

    def enter(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        add(LOSSES, entry(function, name, "thumbs", source=source, needs_zero=needs_zero))
        return function

    return enter


@unpaired("kto", source="arXiv 2402.01306 eq. 8", needs_zero=True)
def kto(
    thumbs: ThumbLogps,
    *,
    beta: Positive = 0.1,
    desirable_weight: Positive = 1.0,
    undesirable_weight: Positive = 1.0,
) -> Tensor:
    """KTO: the value of a gain or loss against what the policy gives to any answer; needs no pairs.

    λ_up (1 − σ(β (r − z))) for a thumb up, λ_down (1 − σ(β (z − r))) for a thumb down
    """
    gain = beta * (thumbs.ratio() - thumbs.zero)
    return torch.where(
        thumbs.up, desirable_weight * torch.sigmoid(-gain), undesirable_weight * torch.sigmoid(gain)
    )


@unpaired("apo_zero_unpaired", source="arXiv 2408.06266 eq. 7, each half alone, as in TRL", needs_zero=False)
def apo_zero_unpaired(
    thumbs: ThumbLogps,
    *,
    beta: Positive = 0.1,
    desirable_weight: Positive = 1.0,
    undesirable_weight: Positive = 1.0,
) -> Tensor:
    """APO-zero on single answers: KTO measured from 0; cheaper, as no mismatched answers are scored.

    λ_up (1 − σ(β r)) for a thumb up, λ_down σ(β r) for a thumb down
    """
    still = replace(thumbs, zero=torch.zeros_like(thumbs.zero))
    return kto(still, beta=beta, desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)


def reference_point(policy: Tensor, reference: Tensor, lengths: Tensor | None = None) -> Tensor:
    """z: how much more the policy likes answers of this step under prompts that are not theirs; a scalar, no gradient.

    An estimate of the KL from policy to reference, at least 0 (arXiv 2402.01306 section 4.1): the mean log-ratio
    over mismatched prompts and answers.

    Args:
        policy, reference: (M,) log-probs of the mismatched answers; z of none is 0.
        lengths: (M,) trained tokens; given, log-ratios are means per token.
    """
    ratio = (policy - reference).detach()
    if lengths is not None:
        ratio = ratio / lengths.clamp(min=1)
    return ratio.sum().div(max(1, len(ratio))).clamp(min=0)


def balanced_weights(up: float, down: float) -> dict[str, float]:
    """Weights of the thumbs that bring λ_up n_up / (λ_down n_down) into [1, 4/3] (arXiv 2402.01306 section 4.2).

    The rarer thumb is raised, by as little as it takes; the other keeps 1. Example: 100 up and 400 down give
    λ_up 4; 400 up and 100 down give λ_down 3, which leaves 4/3.
    """
    low, high = BALANCE
    ratio = up / down
    return dict(zip(WEIGHTS, (max(1.0, low / ratio), max(1.0, ratio / high)), strict=True))


def at_zero(options: Options, up: bool) -> float:
    """The loss of an answer where policy equals reference: λ/2."""
    desirable, undesirable = (options[name] for name in WEIGHTS)
    return (desirable if up else undesirable) / 2


def total(
    thumbs: ThumbLogps,
    loss: LossEntry,
    options: Options,
    *,
    sft_weight: float = 0.0,
    length_normalized: bool = False,
) -> LossParts:
    """An unpaired loss with the two additions that fit all losses, (B,) each.

    `sft_weight` adds sft_weight · NLL/|y| to answers with a thumb up, always per token. `length_normalized` turns
    log-ratios into means per token first, those behind the reference point as well.
    """
    part = loss.function(thumbs.per_token() if length_normalized else thumbs, **options)
    nll = -thumbs.policy / thumbs.lengths.clamp(min=1)
    sft_part = sft_weight * torch.where(thumbs.up, nll, torch.zeros_like(nll))
    return LossParts(part + sft_part, part, sft_part)


def metrics(thumbs: ThumbLogps, beta: float, *, length_normalized: bool = False) -> dict[str, Tensor]:
    """What is logged of B answers, (B,) each, without gradients.

    `rewards` are β times log-ratios. `accuracies`: whether an answer gained more than the reference point if its thumb
    is up, less if it is down; equal ones count as half a hit, so that a policy that equals its reference has 0.5.
    """
    scored = thumbs.per_token() if length_normalized else thumbs
    gain = (scored.ratio() - scored.zero).detach()
    right = torch.where(thumbs.up, gain, -gain)
    return {
        "rewards": beta * scored.ratio().detach(),
        "accuracies": (torch.sign(right) + 1) / 2,
        "logps": thumbs.policy.detach(),
    }
