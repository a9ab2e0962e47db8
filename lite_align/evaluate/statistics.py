"""Intervals and tests for held-out figures: pure functions; scipy is imported where it is used (0.6 s)."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
_BATCH = 2**20  # numbers that are drawn at once


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its interval, of 95 % unless told otherwise, from `count` observations."""

    value: float
    low: float
    high: float
    count: int


def percent(share: float, places: int = 0) -> str:
    """A share for reading: 0.784 is "78 %"."""
    return f"{100 * share:z.{places}f} %".replace("-", "−")


def bracket(interval: Interval) -> str:
    """The ends of an interval of shares: "[66 %, 87 %]"."""
    return f"[{percent(interval.low)}, {percent(interval.high)}]"


def signed(change: Interval) -> str:
    """A change with its interval: "−0.52 [−0.61, −0.43]"; a single row has no interval."""
    ends = f" [{change.low:+.2f}, {change.high:+.2f}]" if math.isfinite(change.low) else ""
    return f"{change.value:+.2f}{ends}".replace("-", "−")


def wilson(hits: int, count: int) -> Interval:
    """Share of hits with the Wilson score interval (Wilson 1927), good for small counts too.

    Without observations the share is one half and the interval all of [0, 1].
    """
    if count == 0:
        return Interval(0.5, 0.0, 1.0, 0)
    from scipy.stats import binomtest

    ends = binomtest(hits, count).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(hits / count, float(ends.low), float(ends.high), count)


def wilson_share(shares: Sequence[float]) -> Interval:
    """Mean of values in [0, 1] with the Wilson score interval, as if each were one yes or no.

    A mean of several answers to one prompt varies less than one answer does, so the interval is wide enough for it too.
    """
    count = len(shares)
    if count == 0:
        return wilson(0, 0)
    value = statistics.fmean(shares)
    z = statistics.NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    centre = (value + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(value * (1 - value) / count + z**2 / (4 * count**2))
    return Interval(value, max(0.0, centre - half), min(1.0, centre + half), count)


def share_above_zero(values: Sequence[float]) -> Interval:
    """Share of values above zero; zeros decide nothing and are left out, as in the sign test."""
    return wilson(sum(v > 0 for v in values), sum(v != 0 for v in values))


def accuracy(margins: Sequence[float]) -> Interval:
    """Share of pairs with a margin above zero, ties counted half; the interval is that of decided pairs."""
    if not margins:
        return wilson(0, 0)
    decided = share_above_zero(margins)
    value = (sum(m > 0 for m in margins) + 0.5 * sum(m == 0 for m in margins)) / len(margins)
    return Interval(value, decided.low, decided.high, len(margins))


def mean(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Mean with the t interval of a confidence; of fewer than two values the interval is everything."""
    if len(values) < 2:
        return Interval(values[0] if values else 0.0, -math.inf, math.inf, len(values))
    from scipy.stats import t

    centre = statistics.fmean(values)
    error = statistics.stdev(values) / math.sqrt(len(values))
    half = float(t.ppf(0.5 + confidence / 2, len(values) - 1)) * error
    return Interval(centre, centre - half, centre + half, len(values))


def ratio(values: Sequence[float], sizes: Sequence[float]) -> Interval:
    """Sum of the values over the sum of the sizes: a mean over tokens, of which a row has several.

    The interval is that of the ratio estimator, linearised: rows are drawn, not tokens (Cochran, Sampling Techniques,
    3rd edition, eq. 6.13). Of fewer than two rows it is everything.
    """
    estimate = math.fsum(values) / math.fsum(sizes)
    residuals = [value - estimate * size for value, size in zip(values, sizes, strict=True)]
    spread = mean([residual / statistics.fmean(sizes) for residual in residuals])
    return Interval(estimate, estimate + spread.low, estimate + spread.high, len(values))


def sign_test(values: Sequence[float]) -> float:
    """Two-sided p of the sign test: could these be as often above zero as below? 1 if none decides."""
    decided = [v for v in values if v != 0]
    if not decided:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(sum(v > 0 for v in decided), len(decided)).pvalue)


def permutation_test(values: Sequence[float], seed: int = 0) -> float:
    """Two-sided p of the paired permutation test: could the mean of these differences be 0, their signs chance?

    Exact up to 13 differences, else from 9,999 draws (Fisher 1935; Phipson and Smyth 2010 for p of draws). 1 if there
    is none, or all are 0.
    """
    if not any(values):
        return 1.0
    import numpy as np
    from scipy.stats import permutation_test as permuted

    found = permuted(
        (np.asarray(values, dtype=float),),
        np.mean,
        permutation_type="samples",
        n_resamples=9999,
        batch=max(1, _BATCH // len(values)),
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def bootstrap_mean(values: Sequence[float], seed: int = 0) -> Interval:
    """Mean with the bias-corrected and accelerated bootstrap interval (Efron 1987), for skewed values.

    Of fewer than two values the interval is everything; equal values have none beyond their mean.
    """
    if len(values) < 2:
        return mean(values)
    import numpy as np
    from scipy.stats import bootstrap

    if min(values) == max(values):
        return Interval(values[0], values[0], values[0], len(values))
    found = bootstrap(
        (np.asarray(values, dtype=float),),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=4999,
        batch=max(1, _BATCH // len(values)),
        method="BCa",
        rng=np.random.default_rng(seed),
    )
    ends = found.confidence_interval
    return Interval(statistics.fmean(values), float(ends.low), float(ends.high), len(values))


ENOUGH = 30
"""Values from which the bootstrap covers what it promises; of fewer its intervals are too narrow."""


def mean_of(values: Sequence[float]) -> Interval:
    """Mean of values that may be skewed: with the bootstrap interval, of fewer than `ENOUGH` with the t interval."""
    return bootstrap_mean(values) if len(values) >= ENOUGH else mean(values)


def holm(p_values: Sequence[float]) -> list[float]:
    """Values p after Holm's correction for having tested as many, in their order (Holm 1979).

    The k-th smallest of m is multiplied by m − k + 1; a larger one never ends below a smaller one.
    """
    corrected = [1.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = largest
    return corrected


@dataclass(frozen=True)
class Bin:
    """Choices whose confidence lies in [low, high): how many, their mean confidence, and the share that was right."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def reliability(log_odds: Sequence[float], bins: int = 5) -> list[Bin]:
    """Confidence against accuracy of choices between two, in equal bins from 0.5 to 1; empty ones are left out.

    A log-odds x chooses the first of two with confidence σ(|x|); positive ones are right, negative wrong, and zero
    is half of each.
    """
    found: dict[int, list[tuple[float, float]]] = {}
    for x in log_odds:
        confidence = 1 / (1 + math.exp(-min(abs(x), 700.0)))
        right = 0.5 if x == 0 else float(x > 0)
        found.setdefault(min(int((confidence - 0.5) * 2 * bins), bins - 1), []).append((confidence, right))
    return [
        Bin(
            0.5 + number / (2 * bins),
            0.5 + (number + 1) / (2 * bins),
            len(choices),
            statistics.fmean(confidence for confidence, _ in choices),
            statistics.fmean(right for _, right in choices),
        )
        for number, choices in sorted(found.items())
    ]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error: mean distance of confidence and accuracy, each bin by its count; 0 without any.

    Source: arXiv 1706.04599, eq. 3.
    """
    count = sum(b.count for b in bins)
    return sum(b.count * abs(b.confidence - b.accuracy) for b in bins) / count if count else 0.0


@dataclass(frozen=True)
class Correlation:
    """Pearson's and Spearman's coefficient of `count` pairs of values."""

    pearson: float
    spearman: float
    count: int


def correlation(first: Sequence[float], second: Sequence[float]) -> Correlation | None:
    """How two columns go together; None for fewer than three rows, or a column without differences."""
    if len(first) < 3 or len(set(first)) < 2 or len(set(second)) < 2:
        return None
    from scipy.stats import pearsonr, spearmanr

    pearson, spearman = pearsonr(first, second), spearmanr(first, second)
    return Correlation(float(pearson.statistic), float(spearman.statistic), len(first))  # pyright: ignore
