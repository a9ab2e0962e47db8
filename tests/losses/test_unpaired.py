"""KTO and its kin against hand arithmetic, the paper's limits and TRL."""

import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lite_align.losses.catalogue import find, options_for
from lite_align.losses.pairs import PairLogps
from lite_align.losses.unpaired import (
    LOSSES,
    ThumbLogps,
    at_zero,
    balanced_weights,
    reference_point,
    total,
)

# One answer for all oracles: log π −12, log ref −14, 4 tokens: r = 2, per token 0.5; z = 1
# σ(0.1) = 0.5249791875, σ(0.2) = 0.5498339973, σ(−x) = 1 − σ(x)
ORACLES: list[tuple[str, dict[str, float], bool, float]] = [
    # 1 − σ(0.1·(2 − 1)), and 1 − σ(0.1·(1 − 2)) = σ(0.1)
    ("kto", {}, True, 0.4750208125),
    ("kto", {}, False, 0.5249791875),
    ("kto", {"desirable_weight": 3.0, "undesirable_weight": 2.0}, True, 1.4250624376),
    ("kto", {"desirable_weight": 3.0, "undesirable_weight": 2.0}, False, 1.0499583749),
    # measured from 0: 1 − σ(0.2) and σ(0.2)
    ("apo_zero_unpaired", {}, True, 0.4501660027),
    ("apo_zero_unpaired", {}, False, 0.5498339973),
    ("apo_zero_unpaired", {"undesirable_weight": 2.0}, False, 1.0996679946),
]


def thumbs(
    ratios: list[float], up: list[bool], zero: float = 0.0, lengths: list[int] | None = None
) -> ThumbLogps:
    ratio = torch.tensor(ratios, dtype=torch.float64)
    return ThumbLogps(
        ratio - 14,
        torch.full_like(ratio, -14),
        torch.tensor(lengths or [4] * len(up)),
        torch.tensor(up),
        torch.tensor(zero, dtype=torch.float64),
    )


@pytest.mark.parametrize(("name", "options", "up", "expected"), ORACLES)
def test_value_is_what_hand_arithmetic_gives(name, options, up, expected) -> None:
    value = LOSSES[name].function(thumbs([2.0], [up], 1.0), **options_for(name, options)).item()
    assert value == pytest.approx(expected, abs=1e-9)


def test_every_loss_has_an_oracle_for_both_thumbs() -> None:
    assert {(name, up) for name, _, up, _ in ORACLES} == {(n, up) for n in LOSSES for up in (True, False)}


def test_apo_zero_of_a_pair_is_the_sum_of_its_two_thumbs() -> None:
    pair = PairLogps(*(torch.tensor([v]) for v in (-12.0, -20.0, 4.0, 5.0, -14.0, -17.0)))
    halves = LOSSES["apo_zero_unpaired"].function(thumbs([2.0, -3.0], [True, False]), beta=0.1)
    assert halves.sum().item() == pytest.approx(find("apo_zero").function(pair, beta=0.1).item())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("means", [False, True])
def test_start_value_is_half_of_the_weight(name, means) -> None:
    options = {"beta": 0.7, "desirable_weight": 1.5, "undesirable_weight": 4.0}
    start = total(thumbs([0.0, 0.0], [True, False]), LOSSES[name], options, length_normalized=means)
    assert start.preference.tolist() == pytest.approx([0.75, 2.0])
    assert [at_zero(options, up) for up in (True, False)] == [0.75, 2.0]


@pytest.mark.parametrize("name", LOSSES)
@settings(deadline=None, max_examples=30)
@given(
    rows=st.lists(
        st.tuples(st.floats(-900, 900, allow_subnormal=False), st.booleans()), min_size=1, max_size=6
    ),
    zero=st.floats(0, 50, allow_subnormal=False),
    shuffle=st.randoms(use_true_random=False),
)
def test_answers_know_each_other_through_the_reference_point_alone(name, rows, zero, shuffle) -> None:
    """Permuting answers permutes losses and splitting a batch changes nothing, so packing may do both."""

    def losses(some) -> list[float]:
        ratios, up = map(list, zip(*some))
        return total(
            thumbs(ratios, up, zero), LOSSES[name], LOSSES[name].defaults, sft_weight=0.2
        ).total.tolist()

    together = losses(rows)
    order = list(range(len(rows)))
    shuffle.shuffle(order)
    assert losses([rows[i] for i in order]) == pytest.approx([together[i] for i in order], rel=1e-12)
    assert [losses([row])[0] for row in rows] == pytest.approx(together, rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
@settings(deadline=None, max_examples=30)
@given(
    ratio=st.floats(-1e4, 1e4, allow_subnormal=False),
    zero=st.floats(0, 1e4, allow_subnormal=False),
    up=st.booleans(),
)
def test_values_and_gradients_stay_finite_and_bounded_in_single_precision(name, ratio, zero, up) -> None:
    policy = torch.tensor([ratio - 1e4], requires_grad=True)
    some = ThumbLogps(policy, torch.tensor([-1e4]), torch.tensor([7]), torch.tensor([up]), torch.tensor(zero))
    value = LOSSES[name].function(some, **LOSSES[name].defaults)
    (gradient,) = torch.autograd.grad(value.sum(), policy)
    assert 0 <= value.item() <= 1
    assert abs(gradient.item()) <= 0.1 / 4 + 1e-7  # β σ'(0)
    assert gradient.item() * (1 if up else -1) <= 0  # up is pushed up, down is pushed down


def test_gradient_is_the_derivative_and_none_reaches_the_reference_point() -> None:
    base = torch.tensor([-3.0, -9.0, -4.0], dtype=torch.float64, requires_grad=True)
    other = torch.tensor([-5.0, -6.0], dtype=torch.float64, requires_grad=True)
    options = {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 1.0}

    def value(policy: torch.Tensor) -> torch.Tensor:
        some = ThumbLogps(
            policy,
            torch.full_like(policy, -5.0),
            torch.tensor([2, 3, 9]),
            torch.tensor([True, False, True]),
            torch.tensor(0.4, dtype=torch.float64),
        )
        return total(some, LOSSES["kto"], options, sft_weight=0.2).total

    assert torch.autograd.gradcheck(value, base)
    assert not reference_point(other, torch.tensor([-6.0, -6.0])).requires_grad


def test_reference_point_is_the_mean_ratio_and_never_negative() -> None:
    reference = torch.tensor([-5.0, -9.0, -7.0])
    ratios = torch.tensor([4.0, -2.0, 1.0])
    assert reference_point(reference + ratios, reference).item() == pytest.approx(1.0)  # 3/3
    assert reference_point(reference - ratios, reference).item() == 0.0
    # 4/2 − 2/4 + 1/1 = 2.5
    lengths = torch.tensor([2, 4, 1])
    assert reference_point(reference + ratios, reference, lengths).item() == pytest.approx(2.5 / 3)
    assert reference_point(torch.empty(0), torch.empty(0)).item() == 0.0


@given(up=st.integers(1, 10_000), down=st.integers(1, 10_000))
def test_balanced_weights_raise_the_rarer_thumb_just_into_the_interval(up, down) -> None:
    weights = balanced_weights(up, down)
    desirable, undesirable = weights["desirable_weight"], weights["undesirable_weight"]
    assert 1 - 1e-9 <= desirable * up / (undesirable * down) <= 4 / 3 + 1e-9
    assert min(desirable, undesirable) == 1.0
    if down <= up <= 4 / 3 * down:
        assert weights == {"desirable_weight": 1.0, "undesirable_weight": 1.0}


def test_balanced_weights_by_hand() -> None:
    assert balanced_weights(100, 400) == {"desirable_weight": 4.0, "undesirable_weight": 1.0}
    # 400·1/(100·3) = 4/3
    assert balanced_weights(400, 100) == {"desirable_weight": 1.0, "undesirable_weight": pytest.approx(3.0)}


def test_sft_term_is_the_mean_nll_of_thumbs_up_alone() -> None:
    parts = total(thumbs([2.0, 2.0], [True, False]), LOSSES["kto"], LOSSES["kto"].defaults, sft_weight=0.2)
    assert parts.sft.tolist() == pytest.approx([0.2 * 12 / 4, 0.0])
    assert parts.total.tolist() == pytest.approx((parts.preference + parts.sft).tolist())


def test_length_normalisation_divides_by_the_own_length() -> None:
    # 2/4 − 0.1 = 0.4; β 5: 1 − σ(2) = 0.1192029
    parts = total(
        thumbs([2.0], [True], 0.1),
        LOSSES["kto"],
        {**LOSSES["kto"].defaults, "beta": 5.0},
        length_normalized=True,
    )
    assert parts.preference.item() == pytest.approx(1 / (1 + math.exp(2)))


def trl_loss(
    name: str,
    options: dict[str, float],
    policy: torch.Tensor,
    reference: torch.Tensor,
    other: torch.Tensor,
    other_reference: torch.Tensor,
    up: torch.Tensor,
) -> tuple[float, float]:
    """Loss and KL of TRL's KTOTrainer where a model gives these log-probs to answers of one token."""
    trl = pytest.importorskip("trl", reason="trl is in the dev extra")

    def model(input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
        logps = other if input_ids[0, 0] else policy
        return SimpleNamespace(log_probs=logps[:, None], entropy=logps[:, None], mean_logits=logps[:, None])

    class Trainer(SimpleNamespace):
        _compute_kl_logps = trl.KTOTrainer._compute_kl_logps

    trainer = Trainer(
        model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(device="cpu", gather_for_metrics=lambda value: value),
        beta=options["beta"],
        desirable_weight=options["desirable_weight"],
        undesirable_weight=options["undesirable_weight"],
        loss_type=name,
        calculate_KL=LOSSES[name].needs_zero,
        precompute_ref_logps=True,
        aux_loss_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
    )
    ids = torch.zeros(len(up), 2, dtype=torch.int64)
    inputs = {"input_ids": ids, "attention_mask": ids + 1, "completion_mask": ids + 1}
    inputs |= {f"KL_{key}": torch.ones_like(ids) for key in list(inputs)}
    inputs |= {"label": up, "ref_logps": reference, "ref_KL_logps": other_reference}
    loss = trl.KTOTrainer._compute_loss(trainer, model, inputs, return_outputs=False)
    return loss.item(), trainer._metrics["eval"]["kl"][0]


@pytest.mark.trl
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LOSSES)
def test_losses_agree_with_trl(name: str) -> None:
    """TRL's KTOTrainer computes losses inside its step: given log-probs stand in for the two models."""
    torch.manual_seed(0)
    policy, reference, other_reference = (-60 * torch.rand(8) for _ in range(3))
    other = other_reference + 3 * torch.rand(8) - 1
    up = torch.tensor([True, False, True, True, False, True, False, False])
    options = {"beta": 0.1, "desirable_weight": 1.3, "undesirable_weight": 0.9}
    needs_zero = LOSSES[name].needs_zero
    zero = reference_point(other, other_reference) if needs_zero else torch.tensor(0.0)
    ours = total(ThumbLogps(policy, reference, torch.ones(8), up, zero), LOSSES[name], options)
    theirs, kl = trl_loss(name, options, policy, reference, other, other_reference, up)
    if needs_zero:
        assert kl == pytest.approx(zero.item(), abs=1e-6)
        assert kl > 0.1  # or the reference point would not matter here
    assert ours.preference.mean().item() == pytest.approx(theirs, abs=1e-5)
