"""Intervals against published and hand-made figures."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lite_align.evaluate.statistics import (
    Bin,
    accuracy,
    bootstrap_mean,
    bracket,
    calibration_error,
    correlation,
    holm,
    mean,
    mean_of,
    percent,
    permutation_test,
    ratio,
    reliability,
    share_above_zero,
    sign_test,
    wilson,
    wilson_share,
)


def test_wilson_by_hand() -> None:
    # p = 0.6, n = 40, z = 1.96: centre (0.6 + 3.8416/80)/(1 + 3.8416/40) = 0.64802/1.09604 = 0.59124;
    # half 1.96·√(0.24/40 + 3.8416/6400)/1.09604 = 1.96·0.081244/1.09604 = 0.14529
    found = wilson(24, 40)
    assert (found.value, found.low, found.high) == pytest.approx((0.6, 0.44595, 0.73653), abs=2e-4)
    # All hits: low = n/(n + z²) = 10/13.8415
    assert wilson(10, 10).low == pytest.approx(0.72246, abs=1e-4)
    assert wilson(10, 10).high == 1.0
    assert wilson(0, 0).low == 0.0


@given(st.integers(0, 60), st.integers(0, 60))
def test_wilson_mirrors_and_holds_its_estimate(hits: int, misses: int) -> None:
    one, other = wilson(hits, hits + misses), wilson(misses, hits + misses)
    assert 0 <= one.low <= one.value + 1e-12
    assert one.value <= one.high + 1e-12 <= 1 + 2e-12
    assert one.low == pytest.approx(1 - other.high, abs=1e-9)


def test_ties_count_half_and_decide_nothing() -> None:
    found = accuracy([1.0, 0.0, -1.0, 2.0])
    assert (found.value, found.count) == (0.625, 4)
    assert found.low == wilson(2, 3).low
    assert (accuracy([0.0] * 9).value, accuracy([0.0] * 9).low) == (0.5, 0.0)
    assert accuracy([]).value == 0.5
    assert (share_above_zero([0.0, 1.0, -1.0]).value, share_above_zero([0.0, 1.0, -1.0]).count) == (0.5, 2)


def test_mean_with_the_t_interval() -> None:
    # mean 2, sd 1, n 3: half = 4.3027·1/√3 = 2.4842 (t with 2 degrees of freedom)
    found = mean([1.0, 2.0, 3.0])
    assert (found.value, found.low, found.high) == pytest.approx((2.0, -0.48414, 4.48414), abs=1e-4)
    # 99 %: 9.9248/√3 = 5.7301
    assert mean([1.0, 2.0, 3.0], 0.99).high == pytest.approx(7.7301, abs=1e-4)
    assert (mean([7.0]).value, mean([7.0]).high, mean([]).value) == (7.0, math.inf, 0.0)


def test_sign_test_is_the_binomial_tail() -> None:
    assert sign_test([1.0] * 5) == pytest.approx(2 / 32)
    assert sign_test([1.0, -1.0, 0.0]) == pytest.approx(1.0)
    # 1 of 6 below: 2·(1 + 6)/64
    assert sign_test([1.0] * 5 + [-1.0]) == pytest.approx(14 / 64)
    assert sign_test([0.0]) == 1.0


def test_permutation_test_counts_the_signs() -> None:
    # Of the 32 signs of five positive differences only all + and all − are as far from 0; of 1, 2, −4 (mean −1/3) the
    # sums over the 8 signs are ±1, ±3, ±5 and ±7, each once: all are as far.
    assert permutation_test([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 32)
    assert permutation_test([1.0, 2.0, -4.0]) == pytest.approx(1.0)
    assert permutation_test([1.0] * 40) == pytest.approx(
        2 / 10_000
    )  # drawn: (0 + 1)/(9,999 + 1) on each side
    assert permutation_test([0.0, 0.0]) == permutation_test([]) == 1.0


def test_bootstrap_mean_follows_the_skew() -> None:
    values = [0.0] * 15 + [1.0] * 4 + [9.0]
    found = bootstrap_mean(values)
    assert found == bootstrap_mean(values)
    assert found.value == pytest.approx(0.65)
    assert found.high - found.value > 1.5 * (found.value - found.low) > 0
    # As with the t interval where there is no skew: 1.96/2.09 of its width with n = 20, times √(19/20).
    even = [float(n) for n in range(20)]
    assert bootstrap_mean(even).low == pytest.approx(9.5 - 0.915 * (9.5 - mean(even).low), abs=0.15)
    assert (bootstrap_mean([2.0] * 5).low, bootstrap_mean([2.0] * 5).high) == (2.0, 2.0)
    assert bootstrap_mean([2.0]) == mean([2.0])


def test_holm_by_hand() -> None:
    # 0.005·4, 0.01·3, then 0.03·2 = 0.06, and 0.04·1, which may not fall below 0.06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert (holm([0.6, 0.9]), holm([])) == ([1.0, 1.0], [])


def test_shares_for_reading() -> None:
    assert (percent(0.784), percent(0.9984, 1)) == ("78 %", "99.8 %")
    assert (percent(-0.004), percent(-0.016), percent(-0.0004, 1)) == ("0 %", "−2 %", "0.0 %")
    assert bracket(wilson(24, 40)) == "[45 %, 74 %]"


LN = math.log


def test_reliability_by_hand() -> None:
    """Log-odds ln 3 is a confidence of 0.75, ln 9 one of 0.9; bins are 0.1 wide."""
    choices = [LN(3), -LN(3), LN(3), 0.0, LN(9), LN(9)]
    first, middle, last = reliability(choices)
    assert (first.low, first.high, first.count) == (0.5, 0.6, 1)
    assert (first.confidence, first.accuracy) == (0.5, 0.5)
    assert (middle.low, middle.high, middle.count) == pytest.approx((0.7, 0.8, 3))
    assert (middle.confidence, middle.accuracy) == pytest.approx((0.75, 2 / 3))
    assert (last.count, last.confidence, last.accuracy) == pytest.approx((2, 0.9, 1.0))
    # (1·0 + 3·(0.75 − 2/3) + 2·(1 − 0.9)) / 6
    assert calibration_error([first, middle, last]) == pytest.approx(0.45 / 6)


def test_certain_choices_fill_the_last_bin() -> None:
    assert reliability([1e4, -1e4]) == [Bin(0.9, 1.0, 2, 1.0, 0.5)]
    assert calibration_error(reliability([1e4, -1e4])) == 0.5
    assert (reliability([]), calibration_error([])) == ([], 0.0)


@given(st.lists(st.integers(-60, 60).map(lambda tenths: tenths / 10), min_size=1, max_size=30))
def test_every_choice_is_in_one_bin(choices: list[float]) -> None:
    bins = reliability(choices)
    assert sum(b.count for b in bins) == len(choices)
    for b in bins:
        assert b.low - 1e-12 <= b.confidence <= b.high + 1e-12
    assert 0 <= calibration_error(bins) <= 1


def test_correlation_by_hand() -> None:
    """Deviations −1, 0, 1 and −2, −1, 3: 5 / √(2 · 14); the ranks go together exactly."""
    found = correlation([1.0, 2.0, 3.0], [1.0, 2.0, 6.0])
    assert found is not None
    assert (found.pearson, found.spearman, found.count) == pytest.approx((5 / math.sqrt(28), 1.0, 3))


def test_without_differences_there_is_no_correlation() -> None:
    assert correlation([1.0, 2.0, 3.0], [5.0, 5.0, 5.0]) is None
    assert correlation([1.0, 2.0], [1.0, 2.0]) is None


def test_a_ratio_weighs_rows_by_their_size_and_has_the_interval_of_rows() -> None:
    # Values 2, 6 on sizes 2, 2: ratio 2, residuals -2, 2 over the mean size 2: -1, 1. Their t interval of two has
    # the half width 12.7062 * sqrt(2) / sqrt(2).
    found = ratio([2.0, 6.0], [2.0, 2.0])
    assert (found.value, found.high) == pytest.approx((2.0, 2.0 + 12.7062), abs=1e-3)
    assert found.low == pytest.approx(2.0 - 12.7062, abs=1e-3)
    # Equal sizes: that of the mean. A common factor of all rows is no spread at all.
    values = [1.0, 2.0, 4.0, 3.0]
    assert ratio(values, [1.0] * 4) == mean(values)
    same = ratio([3.0, 30.0, 9.0], [1.0, 10.0, 3.0])
    assert (same.value, same.low, same.high) == pytest.approx((3.0, 3.0, 3.0))
    assert ratio([1.0], [2.0]).low == -math.inf


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_wilson_of_shares_is_wilson_of_a_count(hits: list[bool]) -> None:
    expected, found = wilson(sum(hits), len(hits)), wilson_share([float(hit) for hit in hits])
    assert (found.value, found.low, found.high) == pytest.approx(
        (expected.value, expected.low, expected.high), abs=1e-9
    )


@given(st.lists(st.floats(0, 1, allow_subnormal=False), max_size=20))
def test_wilson_of_shares_stays_within_0_and_1(shares: list[float]) -> None:
    found = wilson_share(shares)
    assert 0 <= found.low <= found.value + 1e-12
    assert found.value <= found.high + 1e-12 <= 1 + 1e-9


def test_wilson_of_fractions_depends_on_their_mean_and_their_number() -> None:
    # Two of four, however they are spread over the prompts.
    for shares in ([0.5] * 4, [1.0, 1.0, 0.0, 0.0], [0.25, 0.75, 0.9, 0.1]):
        found, expected = wilson_share(shares), wilson(2, 4)
        assert (found.value, found.low, found.high) == pytest.approx((0.5, expected.low, expected.high))
        assert found.count == 4
    assert wilson_share([]) == wilson(0, 0)


def test_means_get_the_bootstrap_where_there_are_enough_values() -> None:
    skewed = [0.0] * 20 + [1.0] * 8 + [9.0]
    assert mean_of(skewed) == mean(skewed)
    assert mean_of([*skewed, 9.0]) == bootstrap_mean([*skewed, 9.0]) != mean([*skewed, 9.0])
