"""Preference losses as pure functions of log-probs; the table `LOSSES` is made by the decorator `preference`.

Shapes: B pairs. Symbols in the formulas: w chosen, l rejected, |y| trained tokens of an answer y,
r = log π(y) − log ref(y) its log-ratio, gap = r_w − r_l, σ the logistic function. All logarithms are natural,
all log-probs sums over trained tokens. Every loss looks at one pair alone: micro-batches and packing cannot
change it.

A new loss is one decorated function (see `entry`); the tests ask for one oracle row.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid, relu, softplus

from lite_align.losses.entry import FlipRate, LossEntry, NotNegative, Options, Positive, add, entry
from lite_align.losses.pairs import PairLogps

CERTAIN = -1e-6  # a mean log-prob nearer to 0 counts as this one: the odds of a certain answer are infinite

LOSSES: dict[str, LossEntry] = {}


def preference(
    name: str,
    *,
    source: str,
    needs_reference: bool = True,
    per_token: bool = False,
    at_zero: Callable[[Options], float] | None = None,
    known_as: str = "",
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Enter a loss `(pairs, *, options…) -> (B,)` into the table; two losses of one name are refused."""

    def enter(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        row = entry(
            function,
            name,
            "pairs",
            source=source,
            needs_reference=needs_reference,
            per_token=per_token,
            at_zero=at_zero,
            known_as=known_as,
        )
        add(LOSSES, row)
        return function

    return enter


def log_two(_: Options) -> float:
    """The value ln 2 of a logistic loss at zero gap."""
    return math.log(2)


@preference(
    "sigmoid",
    source="arXiv 2305.18290 eq. 7; smoothing: cDPO, ericmitchell.ai/cdpo.pdf eq. 3",
    at_zero=log_two,
)
def sigmoid(pairs: PairLogps, *, beta: Positive = 0.1, label_smoothing: FlipRate = 0.0) -> Tensor:
    """DPO; with label smoothing ε it is cDPO, least at the finite gap log((1−ε)/ε)/β.

    −(1−ε) log σ(β gap) − ε log σ(−β gap)
    """
    logits = beta * pairs.gap()
    return -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)


@preference(
    "ipo", source="arXiv 2310.12036 eq. 17", per_token=True, at_zero=lambda o: 1 / (4 * o["beta"] ** 2)
)
def ipo(pairs: PairLogps, *, beta: Positive = 0.1) -> Tensor:
    """IPO: a square around a finite gap; log-ratios are means per token, as the authors and TRL compute them.

    (r_w/|w| − r_l/|l| − 1/(2β))²
    """
    return (pairs.per_token().gap() - 1 / (2 * beta)) ** 2


@preference("hinge", source="arXiv 2309.06657 (RSO), after 2305.10425 (SLiC)", at_zero=lambda o: o["margin"])
def hinge(pairs: PairLogps, *, beta: Positive = 0.1, margin: Positive = 1.0) -> Tensor:
    """Hinge on the normalised likelihood: zero once the scaled gap exceeds `margin`.

    max(0, margin − β gap)
    """
    return relu(margin - beta * pairs.gap())


@preference("robust", source="arXiv 2403.00409", at_zero=log_two)
def robust(pairs: PairLogps, *, beta: Positive = 0.1, flip_rate: FlipRate = 0.1) -> Tensor:
    """Robust DPO: in the mean over labels flipped at rate ε it equals DPO on clean ones; has no lower bound.

    (−(1−ε) log σ(β gap) + ε log σ(−β gap)) / (1 − 2ε)
    """
    logits = beta * pairs.gap()
    noisy = -(1 - flip_rate) * logsigmoid(logits) + flip_rate * logsigmoid(-logits)
    return noisy / (1 - 2 * flip_rate)


@preference("simpo", source="arXiv 2405.14734 eq. 6", needs_reference=False, per_token=True)
def simpo(pairs: PairLogps, *, beta: Positive = 2.0, gamma: NotNegative = 1.0) -> Tensor:
    """SimPO: no reference; mean log-probs per token must differ by a target margin γ/β.

    −log σ(β log π(w)/|w| − β log π(l)/|l| − γ)
    """
    means = pairs.per_token()
    return -logsigmoid(beta * (means.chosen - means.rejected) - gamma)


@preference("orpo", source="arXiv 2403.07691 eq. 6 and 7", needs_reference=False, per_token=True)
def orpo(pairs: PairLogps, *, beta: Positive = 0.1) -> Tensor:
    """ORPO: no reference; supervised loss on the chosen answer plus a log odds ratio (β is λ in the paper).

    −log π(w)/|w| − β log σ(log odds(w) − log odds(l)),  odds = p/(1−p),  p = exp(log π(y)/|y|)
    """
    means = pairs.per_token()
    ratio = log_odds(means.chosen) - log_odds(means.rejected)
    return pairs.chosen_nll() - beta * logsigmoid(ratio)


def log_odds(mean_logp: Tensor) -> Tensor:
    """log(p/(1−p)) for p = exp(mean_logp), (B,), finite also where p is 1 or rounds to 0."""
    mean_logp = mean_logp.clamp(max=CERTAIN)
    return mean_logp - torch.log(-torch.expm1(mean_logp))


@preference("dpop", source="arXiv 2402.13228 eq. 3", at_zero=log_two)
def dpop(pairs: PairLogps, *, beta: Positive = 0.1, penalty: NotNegative = 50.0) -> Tensor:
    """DPO-positive (Smaug): a chosen log-prob below the reference costs; for pairs that differ in few tokens.

    −log σ(β (gap − penalty · max(0, −r_w)))
    """
    fall = relu(-pairs.chosen_ratio())
    return -logsigmoid(beta * (pairs.gap() - penalty * fall))


@preference(
    "sppo",
    source="arXiv 2405.00675 eq. 4.7 with hard labels",
    at_zero=lambda o: 1 / (2 * o["beta"] ** 2),
    known_as="sppo_hard",
)
def sppo(pairs: PairLogps, *, beta: Positive = 0.1) -> Tensor:
    """SPPO with win probabilities 1 and 0: each log-ratio has its own target, so the chosen one must rise.

    (r_w − 1/(2β))² + (r_l + 1/(2β))²
    """
    target = 1 / (2 * beta)
    return (pairs.chosen_ratio() - target) ** 2 + (pairs.rejected_ratio() + target) ** 2


@preference("apo_zero", source="arXiv 2408.06266 eq. 7, plus 1", at_zero=lambda _: 1.0)
def apo_zero(pairs: PairLogps, *, beta: Positive = 0.1) -> Tensor:
    """APO-zero: chosen up, rejected down, each alone; for chosen answers better than the model's own.

    1 − σ(β r_w) + σ(β r_l)
    """
    return torch.sigmoid(-beta * pairs.chosen_ratio()) + torch.sigmoid(beta * pairs.rejected_ratio())


@preference("apo_down", source="arXiv 2408.06266 eq. 8, plus 1", at_zero=lambda _: 1.0)
def apo_down(pairs: PairLogps, *, beta: Positive = 0.1) -> Tensor:
    """APO-down: both down, the rejected one more; for chosen answers worse than the model's own.

    σ(β r_w) + 1 − σ(β gap)
    """
    return torch.sigmoid(beta * pairs.chosen_ratio()) + torch.sigmoid(-beta * pairs.gap())


def exo_at_zero(options: Options) -> float:
    """KL of (½, ½) from (1−ε, ε): −ln 2 − ½ ln(ε (1−ε))."""
    epsilon = options["epsilon"]
    return -math.log(2) - 0.5 * math.log(epsilon * (1 - epsilon))


@preference("exo", source="arXiv 2402.00856 eq. 16", at_zero=exo_at_zero, known_as="exo_pair")
def exo(
    pairs: PairLogps, *, beta: Positive = 0.1, epsilon: Annotated[float, Field(gt=0, lt=0.5)] = 1e-3
) -> Tensor:
    """EXO: reverse KL from the policy's choice q to labels of (1−ε, ε); least at the gap log((1−ε)/ε)/β.

    q log(q/(1−ε)) + (1−q) log((1−q)/ε),  q = σ(β gap)
    """
    logits = beta * pairs.gap()
    chosen = torch.sigmoid(logits) * (logsigmoid(logits) - math.log1p(-epsilon))
    rejected = torch.sigmoid(-logits) * (logsigmoid(-logits) - math.log(epsilon))
    return chosen + rejected


@preference("nca", source="arXiv 2402.05369", at_zero=lambda _: 2 * math.log(2), known_as="nca_pair")
def nca(pairs: PairLogps, *, beta: Positive = 0.1) -> Tensor:
    """NCA for pairs: rewards themselves are classified, so the chosen log-prob is kept from falling.

    −log σ(β r_w) − ½ log σ(−β r_w) − ½ log σ(−β r_l)
    """
    chosen, rejected = beta * pairs.chosen_ratio(), beta * pairs.rejected_ratio()
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def bco_at_zero(options: Options) -> float:
    """log(1 + e^δ) + log(1 + e^−δ)."""
    return math.log1p(math.exp(options["delta"])) + math.log1p(math.exp(-options["delta"]))


@preference("bco_pair", source="arXiv 2404.04656", at_zero=bco_at_zero)
def bco_pair(
    pairs: PairLogps, *, beta: Positive = 0.1, delta: Annotated[float, Field(ge=-100, le=100)] = 0.0
) -> Tensor:
    """BCO for pairs: a binary classifier with the log-ratio as logit and a constant reward shift δ.

    −log σ(β r_w − δ) − log σ(−(β r_l − δ))

    The paper moves δ with a running mean of rewards. Here it is an option: a mean over a batch would make the
    loss of a pair depend on its neighbours, and a running one on the order and on the resume.
    """
    return softplus(delta - beta * pairs.chosen_ratio()) + softplus(beta * pairs.rejected_ratio() - delta)


@preference("discopop", source="arXiv 2406.08414 eq. 5", at_zero=lambda _: 0.5 * math.log(2) + 0.5)
def discopop(
    pairs: PairLogps, *, beta: Positive = 0.1, tau: Annotated[float, Field(gt=0, le=1)] = 0.05
) -> Tensor:
    """DiscoPOP: logistic and exponential loss blended by the gap itself, found by search; not convex.

    (1−m) (−log σ(β gap)) + m exp(−β gap),  m = σ(β gap/τ)
    """
    logits = beta * pairs.gap()
    logistic = torch.sigmoid(-logits / tau) * -logsigmoid(logits)
    # exp(log m − β gap): the factors alone overflow and vanish where the product is small
    return logistic + torch.exp(logsigmoid(logits / tau) - logits)


@dataclass(frozen=True)
class LossParts:
    """The loss of B pairs: `total` = `preference` + `sft`, each (B,)."""

    total: Tensor
    preference: Tensor
    sft: Tensor


def total(
    pairs: PairLogps,
    loss: LossEntry,
    options: Options,
    *,
    sft_weight: float = 0.0,
    length_normalized: bool = False,
) -> LossParts:
    """Any preference loss with the two additions that fit all of them, (B,) each.

    `sft_weight` adds sft_weight · NLL(w)/|w| (arXiv 2404.19733), always per token. `length_normalized` turns
    sums of log-probs into means per token first (arXiv 2411.15124): the gap, now nats per token, then wants a
    larger beta, about 5.
    """
    preference_part = loss.function(pairs.per_token() if length_normalized else pairs, **options)
    sft_part = sft_weight * pairs.chosen_nll()
    return LossParts(preference_part + sft_part, preference_part, sft_part)


def metrics(pairs: PairLogps, beta: float, *, length_normalized: bool = False) -> dict[str, Tensor]:
    """What is logged of B pairs, (B,) each, without gradients.

    Rewards are β times log-ratios; without a reference, β times mean log-probs per token. Equal rewards count
    as half a hit, so that a policy that equals its reference has accuracy 0.5.
    """
    scored = pairs.per_token() if length_normalized or pairs.reference_chosen is None else pairs
    with_reference = scored.reference_chosen is not None
    chosen = beta * (scored.chosen_ratio() if with_reference else scored.chosen).detach()
    rejected = beta * (scored.rejected_ratio() if with_reference else scored.rejected).detach()
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/accuracies": (torch.sign(chosen - rejected) + 1) / 2,
        "rewards/margins": chosen - rejected,
        "logps/chosen": pairs.chosen.detach(),
        "logps/rejected": pairs.rejected.detach(),
        "lengths/chosen": pairs.chosen_lengths.to(chosen.dtype),
        "lengths/rejected": pairs.rejected_lengths.to(chosen.dtype),
    }
