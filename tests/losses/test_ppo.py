"""PPO's mathematics against fractions worked by hand, limits of the papers and brute force.

The first answer of the examples by hand has three tokens, the second six; the third takes no part.
"""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lite_align.losses import ppo

MASK = [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]]
PADDING = 77.0
"""What stands where no answer is; it must never be seen."""

INTEGERS = st.integers(-8, 8)
LENGTHS = st.lists(st.integers(0, 5), min_size=1, max_size=4)


def exact(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def mask_of(lengths: list[int], width: int) -> Tensor:
    return exact([[float(t < length) for t in range(width)] for length in lengths])


def fractions(values: Tensor) -> list[list[Fraction]]:
    return [[Fraction(value) for value in row] for row in values.tolist()]


# KL estimators and the weight of the KL.


def test_kl_of_a_token_by_hand():
    """P = 1/2 and q = 1/4: k1 = ln 2, k3 = 1/2 − 1 + ln 2. P = 1/4 and q = 1/2: k1 = −ln 2, k3 = 2 − 1 − ln 2."""
    p, q = exact([0.5, 0.25, 0.125]).log(), exact([0.25, 0.5, 0.125]).log()
    assert ppo.k1(p, q).tolist() == pytest.approx([math.log(2), -math.log(2), 0.0])
    assert ppo.k3(p, q).tolist() == pytest.approx([math.log(2) - 0.5, 1 - math.log(2), 0.0])


@given(st.integers(0, 999))
def test_both_estimators_are_unbiased(seed: int):
    """Over all tokens of a vocabulary, each as likely as p has it, both are KL(p, q) = Σ p log(p/q)."""
    p, q = torch.randn(2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).softmax(1)
    kl = sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist()))
    for estimator in (ppo.k1, ppo.k3):
        assert float((p * estimator(p.log(), q.log())).sum()) == pytest.approx(kl, abs=1e-12)
    assert bool((ppo.k3(p.log(), q.log()) >= 0).all())


def test_a_token_that_the_reference_never_says_keeps_k3_finite():
    found = ppo.k3(torch.tensor([-100.0, 0.0]), torch.tensor([0.0, -100.0]))
    assert found.tolist() == pytest.approx([math.exp(20) - 21, math.exp(-20) + 19])


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.0, 0.05),  # at the target
        (6.6, 0.05 * (1 + 0.1 * 64 / 1600)),  # a tenth above
        (5.4, 0.05 * (1 - 0.1 * 64 / 1600)),
        (7.2, 0.05 * 1.008),  # 0.2 × 64 / 1600 = 0.008, the most
        (600.0, 0.05 * 1.008),
        (0.0, 0.05 * 0.992),
        (-5.0, 0.05 * 0.992),
    ],
)
def test_the_weight_of_the_kl_is_drawn_towards_the_target(kl: float, expected: float):
    assert ppo.next_kl_weight(0.05, kl, 6.0, 64, 1600) == pytest.approx(expected, rel=1e-12)


# Rewards.


def test_rewards_of_tokens_by_hand():
    """Weight 1/2. The score stands on the last token, a KL of 30 counts as 10, and the third answer has nothing."""
    kl = [[1, -2, 0, *[PADDING] * 3], [0, 4, 30, -40, 2, 0], [PADDING] * 6]
    found = ppo.token_rewards(exact([2, -1, 5]), exact(kl), 0.5, exact(MASK))
    assert found.tolist() == [[-0.5, 1, 2, 0, 0, 0], [0, -2, -5, 5, -1, -1], [0] * 6]
    assert ppo.last_tokens(exact(MASK)).tolist() == [[0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1], [0] * 6]


def test_an_answer_of_one_token_has_its_score_there():
    found = ppo.token_rewards(exact([3, 3]), exact([[2], [2]]), 0.25, exact([[1], [0]]))
    assert found.tolist() == [[2.5], [0.0]]


@given(LENGTHS, st.data())
def test_rewards_of_an_answer_sum_up_to_its_score_less_its_kl(lengths: list[int], data: st.DataObject):
    """LA603: Σ rewards = score − weight × Σ KL, all of it on the answer's own tokens."""
    row = st.lists(INTEGERS, min_size=6, max_size=6)
    kl = exact([data.draw(row) for _ in lengths])
    scores = exact([data.draw(INTEGERS) for _ in lengths])
    found = ppo.token_rewards(scores, kl, 0.25, mask_of(lengths, 6))
    for n, length in enumerate(lengths):
        rest = float(scores[n]) - 0.25 * sum(kl[n, :length].tolist()) if length else 0.0
        assert float(found[n].sum()) == rest
        assert not found[n, length:].any()


# Advantages of tokens.

REWARDS = [[0, 0, 4, *[PADDING] * 3], [-1, 0, 0, 0, -1, 3], [PADDING] * 6]
VALUES = [[1, 2, 2, *[-PADDING] * 3], [0, 2, 2, -2, 4, 1], [-PADDING] * 6]
"""Errors r + V' − V: (0 + 2 − 1, 0 + 2 − 2, 4 − 2) = (1, 0, 2) and (1, 0, −4, 6, −4, 2), from left to right."""


@pytest.mark.parametrize(
    ("decay", "first", "second"),
    [
        (0.0, (1, 0, 2), (1, 0, -4, 6, -4, 2)),  # one step's error
        # A = error + A' / 2, from the right: 2, 0 + 1, 1 + 1/2; 2, −4 + 1, 6 − 3/2, −4 + 9/4, −7/8, 1 − 7/16.
        (0.5, (1.5, 1, 2), (0.5625, -0.875, -1.75, 4.5, -3, 2)),
        # What is still to come less the value: (4, 4, 4) − (1, 2, 2); (1, 2, 2, 2, 2, 3) − (0, 2, 2, −2, 4, 1).
        (1.0, (3, 2, 2), (1, 0, 0, 4, -2, 2)),
    ],
)
def test_generalised_advantages_by_hand(decay: float, first: tuple[float, ...], second: tuple[float, ...]):
    found = ppo.generalised_advantages(exact(REWARDS), exact(VALUES), exact(MASK), decay=decay)
    assert found.tolist() == [[*first, 0, 0, 0], [*second], [0] * 6]


@settings(deadline=None)
@given(LENGTHS, st.integers(0, 999))
def test_generalised_advantages_are_the_double_sum(lengths: list[int], seed: int):
    """GAE, eq. 16: A_t = Σ_l (γλ)^l (r + γ V' − V) at t + l, with V = 0 behind the answer; γ = 3/4, λ = 1/2."""
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randint(-8, 9, (2, len(lengths), 5), generator=generator).double()
    mask = mask_of(lengths, 5)
    found = ppo.generalised_advantages(rewards, values, mask, discount=0.75, decay=0.5)
    discount, decay = Fraction(3, 4), Fraction(1, 2)
    for n, length in enumerate(lengths):
        r, v = fractions(rewards)[n][:length], [*fractions(values)[n][:length], Fraction(0)]
        errors = [r[t] + discount * v[t + 1] - v[t] for t in range(length)]
        sums = [
            sum((discount * decay) ** (later - t) * errors[later] for later in range(t, length))
            for t in range(length)
        ]
        assert found[n].tolist() == pytest.approx([float(x) for x in sums] + [0.0] * (5 - length), abs=1e-12)


@settings(deadline=None)
@given(LENGTHS, st.integers(0, 3), st.integers(0, 999))
def test_padding_and_other_answers_change_nothing(lengths: list[int], more: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, len(lengths), 5, generator=generator)
    mask = mask_of(lengths, 5).float()
    expected = ppo.generalised_advantages(rewards, values, mask)

    def padded(tensor: Tensor, value: float) -> Tensor:
        return torch.nn.functional.pad(tensor.masked_fill(mask == 0, value), (0, more), value=value)

    wide = mask_of(lengths, 5 + more).float()
    found = ppo.generalised_advantages(padded(rewards, PADDING), padded(values, -PADDING), wide)
    assert torch.equal(found, torch.nn.functional.pad(expected, (0, more)))
    for n in range(len(lengths)):
        row = slice(n, n + 1)
        alone = ppo.generalised_advantages(rewards[row], values[row], mask[row])
        assert torch.equal(alone, expected[row])


# Advantages of answers.

RETURNS = exact([1, 2, 3, 7, 4, 1000, 9])
GROUPS = torch.tensor([0, 1, 0, 2, 1, 0, 1])
VALID = exact([1, 1, 1, 1, 1, 0, 1])
"""Prompt 0 has the returns 1 and 3, and one that does not count; prompt 1 has 2, 4 and 9; prompt 2 has 7 alone."""


def test_leave_one_out_by_hand():
    """1 − 3, 3 − 1; 2 − 13/2, 4 − 11/2, 9 − 6/2; nothing to compare 7 with."""
    found = ppo.leave_one_out_advantages(RETURNS, GROUPS, VALID)
    assert found.tolist() == [-2, -4.5, 2, 0, -1.5, 0, 6]


def test_group_relative_by_hand():
    """Means 2 and 5; sums of squares over n − 1: (1 + 1) / 1 = 2 and (9 + 1 + 16) / 2 = 13."""
    two, three = math.sqrt(2) + 1e-4, math.sqrt(13) + 1e-4
    found = ppo.group_relative_advantages(RETURNS, GROUPS, VALID)
    assert found.tolist() == pytest.approx([-1 / two, -3 / three, 1 / two, 0, -1 / three, 0, 4 / three])
    equal = ppo.group_relative_advantages(exact([5, 5, 5]), torch.zeros(3, dtype=torch.int64), exact([1] * 3))
    assert equal.tolist() == [0, 0, 0]


@pytest.mark.parametrize("advantages", [ppo.leave_one_out_advantages, ppo.group_relative_advantages])
@pytest.mark.parametrize("valid", [[0, 0, 0], [0, 1, 0]])
def test_a_prompt_with_one_answer_left_or_none_says_nothing(advantages, valid: list[int]):
    found = advantages(exact([3, 4, 5]), torch.zeros(3, dtype=torch.int64), exact(valid))
    assert found.tolist() == [0, 0, 0]


@settings(deadline=None)
@given(st.lists(st.tuples(INTEGERS, st.integers(0, 3), st.booleans()), min_size=1, max_size=9), INTEGERS)
def test_advantages_of_answers_depend_on_their_own_prompt_alone(rows: list, shift: int):
    """Each prompt alone gives the same; a constant in all returns of a prompt says nothing; they sum up to 0."""
    returns, valid = exact([r for r, _, _ in rows]), exact([float(v) for _, _, v in rows])
    _, groups = torch.unique(torch.tensor([g for _, g, _ in rows]), return_inverse=True)
    for advantages in (ppo.leave_one_out_advantages, ppo.group_relative_advantages):
        found = advantages(returns, groups, valid)
        assert torch.allclose(advantages(returns + shift * groups, groups, valid), found, atol=1e-9)
        for group in set(groups.tolist()):
            own = groups == group
            alone = advantages(returns[own], torch.zeros_like(groups[own]), valid[own])
            assert torch.allclose(found[own], alone, atol=1e-12)
            assert float(found[own].sum()) == pytest.approx(0.0, abs=1e-9)


# Masked statistics.


def test_whitening_by_hand():
    """1, 3 and 5, 7 have the mean 4 and the variance (9 + 1 + 1 + 9) / 4 = 5."""
    values = exact([[1, 3, PADDING], [5, 7, PADDING], [PADDING] * 3])
    mask = exact([[1, 1, 0], [1, 1, 0], [0, 0, 0]])
    root = math.sqrt(5)
    expected = [-3 / root, -1 / root, 0, 1 / root, 3 / root, 0, 0, 0, 0]
    assert ppo.masked_mean(values, mask).item() == 4.0
    assert ppo.whitened(values, mask).flatten().tolist() == pytest.approx(expected, abs=1e-7)


@given(LENGTHS.filter(lambda lengths: sum(lengths) > 1), st.integers(0, 999))
def test_whitened_values_have_mean_0_and_deviation_1(lengths: list[int], seed: int):
    values = torch.randn(len(lengths), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    mask = mask_of(lengths, 5)
    kept = ppo.whitened(3 * values + 100, mask)[mask.bool()]
    assert float(kept.mean()) == pytest.approx(0.0, abs=1e-9)
    assert float(kept.std(correction=0)) == pytest.approx(1.0, abs=1e-6)


def test_what_cannot_be_whitened_is_0():
    one_token, none = exact([[0, 0], [1, 0]]), torch.zeros(2, 2, dtype=torch.float64)
    for mask in (one_token, none):
        assert ppo.whitened(exact([[5, 6], [7, 8]]), mask).tolist() == [[0, 0], [0, 0]]
    assert ppo.whitened(exact([[3, 3], [3, 9]]), exact([[1, 1], [1, 0]])).tolist() == [[0, 0], [0, 0]]
    assert ppo.masked_mean(exact([[5, 6], [7, 8]]), none).item() == 0.0


def test_explained_variance_by_hand():
    """Returns 0, 2, 4 have the variance 8/3; the values 4, 2, 0 leave errors −4, 0, 4 with 32/3: 1 − 4."""
    mask, returns = exact([[1, 1, 1, 0]]), exact([[0, 2, 4, PADDING]])
    for values, expected in [
        ([0, 2, 4], 1.0),
        ([5, 7, 9], 1.0),  # a constant error is no variance
        ([9, 9, 9], 0.0),
        ([0, 1, 2], 0.75),
        ([4, 2, 0], -3.0),
    ]:
        found = ppo.explained_variance(exact([[*values, -PADDING]]), returns, mask)
        assert found.item() == pytest.approx(expected, abs=1e-12)


# Losses.


def policy(ratio: list[float], advantages: list[float]) -> tuple[Tensor, Tensor]:
    """Losses with a clip of 1/5, and their gradients."""
    logps = (exact(ratio).log() - 2).requires_grad_()
    found = ppo.policy_loss(logps, exact([-2.0] * len(ratio)), exact(advantages), 0.2)
    (gradient,) = torch.autograd.grad(found.sum(), logps)
    return found, gradient


def test_policy_loss_by_hand():
    """−A × ratio, unless the ratio is past 6/5 or 4/5 on the side where going on would pay: there is no gradient."""
    loss, gradient = policy([1.5, 1.5, 0.5, 0.5, 1.1, 0.9, 1.0], [2, -2, 2, -2, 2, -2, 0])
    assert loss.tolist() == pytest.approx([-2.4, 3.0, -1.0, 1.6, -2.2, 1.8, 0.0])
    assert gradient.tolist() == pytest.approx([0.0, 3.0, -1.0, 0.0, -2.2, 1.8, 0.0])


def test_the_first_update_of_a_round_is_the_policy_gradient():
    """At ratio 1 the gradient is −A, whatever the clip."""
    advantages = [3.0, -2.0, 0.5]
    loss, gradient = policy([1.0] * 3, advantages)
    assert loss.tolist() == gradient.tolist() == pytest.approx([-3.0, 2.0, -0.5])


def test_a_ratio_out_of_all_bounds_stays_finite():
    logps, old = torch.tensor([0.0, -1e4], requires_grad=True), torch.tensor([-1e4, 0.0])
    assert ppo.log_ratio(logps, old).tolist() == [20.0, -20.0]
    loss = ppo.policy_loss(logps, old, torch.tensor([-1.0, 1.0]), 0.2)
    assert loss.tolist() == pytest.approx([math.exp(20), -math.exp(-20)])
    (gradient,) = torch.autograd.grad(loss.sum(), logps)
    assert gradient.tolist() == [0.0, 0.0]


def test_value_loss_by_hand():
    """The value was 1 and may move to 4/5 .. 6/5: the larger of both squares counts, halved."""
    values = exact([1.5, 1.5, 0.5, 0.5, 1.1, 1.0]).requires_grad_()
    returns = exact([2.0, 0.0, 0.0, 2.0, 2.0, 3.0])
    found = ppo.value_loss(values, torch.ones_like(returns), returns, 0.2)
    # (6/5 − 2)² = 0.64 > 0.25; 2.25 > 1.44; (4/5)² = 0.64 > 0.25; 2.25 > 1.44; 0.81; 4.
    assert found.tolist() == pytest.approx([0.32, 1.125, 0.32, 1.125, 0.405, 2.0])
    (gradient,) = torch.autograd.grad(found.sum(), values)
    assert gradient.tolist() == pytest.approx([0.0, 1.5, 0.0, -1.5, -0.9, -2.0])


def test_gradients_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(5)
    ours, old, third = torch.randn(3, 4, 6, dtype=torch.float64, generator=generator)
    mask = mask_of([3, 6, 0, 1], 6)
    ours.requires_grad_()
    for of in (
        lambda x: ppo.policy_loss(x, old, third, 0.2),
        lambda x: ppo.value_loss(x, old, third, 0.2),
        lambda x: ppo.k3(x, old),
        lambda x: ppo.masked_mean(ppo.policy_loss(x, old, third, 0.2), mask),
        lambda x: ppo.generalised_advantages(third, x, mask),
    ):
        assert torch.autograd.gradcheck(of, (ours,))
