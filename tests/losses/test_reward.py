"""Reward losses against arithmetic by hand, limits of the papers and brute force."""

import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lite_align.losses.reward import Comparisons, bradley_terry, centering, metrics, total

SCORES = st.integers(-500, 500).map(lambda tenths: tenths / 10)


def compared(chosen: list[float], rejected: list[float], margin: list[float] | None = None) -> Comparisons:
    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, requires_grad=True)

    return Comparisons(column(chosen), column(rejected), None if margin is None else column(margin))


def test_bradley_terry_by_hand():
    """σ(ln 3) = 3/4, so a gap of ln 3 costs −ln 3/4 the right way round and −ln 1/4 the wrong way."""
    found = bradley_terry(compared([math.log(3), 0.0, 2.0], [0.0, math.log(3), 2.0]))
    assert found.tolist() == pytest.approx([0.287682, 1.386294, math.log(2)], abs=1e-6)


def test_a_margin_moves_the_gap_that_costs_ln_2():
    """Llama 2, eq. 2: a gap that equals the margin is as surprising as no gap without one."""
    found = bradley_terry(compared([1.5, 1.5, 1.5], [0.0, 0.0, 0.0], [1.5, 0.0, 3.0]))
    assert found.tolist() == pytest.approx([math.log(2), 0.201413, 1.701413], abs=1e-6)


def test_a_negative_margin_asks_for_less():
    lenient, plain = bradley_terry(compared([0.0, 0.0], [0.0, 0.0], [-1.0, 0.0])).tolist()
    assert lenient == pytest.approx(0.313262, abs=1e-6)
    assert lenient < plain


def test_centering_by_hand():
    """(2 + 1)² and (1 − 1)²; the gradient is 2 (r_w + r_l) for both sides."""
    pairs = compared([2.0, 1.0], [1.0, -1.0])
    found = centering(pairs)
    assert found.tolist() == [9.0, 0.0]
    chosen, rejected = torch.autograd.grad(found.sum(), (pairs.chosen, pairs.rejected))
    assert chosen.tolist() == rejected.tolist() == [6.0, 0.0]


def test_the_total_is_the_sum_of_its_parts():
    parts = total(compared([2.0], [1.0]), 0.01)
    assert parts.ranking.item() == pytest.approx(0.313262, abs=1e-6)
    assert parts.centering.item() == 9.0
    assert parts.total.item() == pytest.approx(0.313262 + 0.09, abs=1e-6)
    assert total(compared([2.0], [1.0]), 0.0).total.item() == pytest.approx(0.313262, abs=1e-6)


def test_metrics_by_hand_with_a_tie_as_one_half():
    found = {name: v.tolist() for name, v in metrics(compared([3.0, 1.0, 2.0], [1.0, 4.0, 2.0])).items()}
    assert found == {
        "rewards/chosen": [3.0, 1.0, 2.0],
        "rewards/rejected": [1.0, 4.0, 2.0],
        "rewards/margins": [2.0, -3.0, 0.0],
        "rewards/accuracies": [1.0, 0.0, 0.5],
    }


def test_scores_far_apart_stay_finite():
    """−log σ(x) → −x for x → −∞ and → 0 for x → ∞, in fp32 too."""
    pairs = Comparisons(torch.tensor([-1e4, 1e4]), torch.tensor([1e4, -1e4]))
    assert bradley_terry(pairs).tolist() == [2e4, 0.0]


@given(SCORES, SCORES, st.integers(-5, 5))
def test_a_constant_in_all_scores_says_nothing(chosen: float, rejected: float, shift: float):
    here = bradley_terry(compared([chosen], [rejected])).item()
    there = bradley_terry(compared([chosen + shift], [rejected + shift])).item()
    assert here == pytest.approx(there, rel=1e-9, abs=1e-12)


@given(SCORES, SCORES)
def test_both_choices_together_are_certain(first: float, second: float):
    """P(a over b) + P(b over a) = 1."""
    both = bradley_terry(compared([first, second], [second, first])).exp().reciprocal()
    assert both.sum().item() == pytest.approx(1.0, abs=1e-12)


def test_gradients_are_those_of_finite_differences():
    pairs = compared([0.3, -1.2], [0.5, 0.7], [0.4, 0.0])
    assert pairs.margin is not None

    def of(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        return total(Comparisons(chosen, rejected, pairs.margin), 0.3).total

    assert torch.autograd.gradcheck(of, (pairs.chosen, pairs.rejected))


@pytest.mark.trl
def test_trl_computes_the_same():
    """RewardTrainer's own loss (TRL 1.16), given a model that answers with these scores."""
    from trl import RewardTrainer

    chosen, rejected, margin = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).unbind()
    scores = torch.cat([chosen, rejected])[:, None]
    accelerator = SimpleNamespace(gather=lambda value: value, gather_for_metrics=lambda value: value)
    logged: dict[str, list[float]] = defaultdict(list)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(center_rewards_coefficient=0.01),
        accelerator=accelerator,
        _metrics={"eval": logged},
        _total_train_tokens=0,
    )
    inputs = {"margin": margin}
    expected = RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=scores), inputs)
    pairs = Comparisons(chosen, rejected, margin)
    assert total(pairs, 0.01).total.mean().item() == pytest.approx(expected.item(), abs=1e-6)
    means = {name: values.mean().item() for name, values in metrics(pairs).items()}
    assert means["rewards/accuracies"] == pytest.approx(logged["accuracy"][0], abs=1e-6)
    assert means["rewards/margins"] == pytest.approx(logged["margin"][0], abs=1e-6)
