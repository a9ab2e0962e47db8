"""Is one side better than the other? Win rates from votes or plain outcomes, with their intervals and tests.

An outcome is 1 where side b wins against side a, 0.5 for a tie and 0 where it loses. Several outcomes of one prompt are
not independent: their mean is taken first, and every interval is over prompts. Pure functions; scipy and choix are
imported where they are used.
"""

import math
import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from lite_align.data.votes import Vote, played
from lite_align.evaluate.statistics import CONFIDENCE, Interval, holm, sign_test

SIGNIFICANT = 1 - CONFIDENCE
_VALUES = {"a": 0.0, "b": 1.0, "tie": 0.5, "bad": 0.5}
_SLOPE_DEVIATION = 2.5
_REGULARISATION = 1e-4  # for samples in which not all sides are connected
_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Outcome:
    """How side b fared against side a in one judgement.

    Attributes:
        value: 1 for a win, 0.5 for a tie, 0 for a loss.
        prompt: what outcomes belong together by.
        category: of the prompt.
        length_difference: characters that the answer of side b is longer.
    """

    value: float
    prompt: Hashable
    category: str | None = None
    length_difference: float = 0.0


def outcomes(votes: Iterable[Vote], side: str | None = None) -> list[Outcome]:
    """Outcomes of the votes that count (see `data.votes.played`), those that were skipped left out.

    Args:
        votes: in the order in which they were written.
        side: name of the model that takes the place of side b, whichever answer is its own; comparisons without it, or
            with it on both sides, are left out. None: answer b against answer a.
    """
    found: list[Outcome] = []
    for vote in played(votes):
        comparison = vote.comparison
        sides = (comparison.model_a, comparison.model_b)
        if vote.choice not in _VALUES or (side is not None and sides.count(side) != 1):
            continue
        swapped = side is not None and sides[0] == side
        value, longer = _VALUES[vote.choice], float(len(comparison.b) - len(comparison.a))
        found.append(
            Outcome(
                1 - value if swapped else value,
                comparison.prompt,
                comparison.category,
                -longer if swapped else longer,
            )
        )
    return found


def win_rate(values: Sequence[float], prompts: Sequence[Hashable] | None = None) -> Interval:
    """Share of outcomes that side b wins, ties half, each prompt counted once; the interval is over prompts.

    The interval is the score interval of Tango (Statistics in Medicine 17, 1998, 891–908) for P(win) − P(loss), mapped
    to (1 + difference) / 2: the distance that would be significant is measured with the variance at the hypothesis, as
    in Wilson's interval, which it is without ties, and it does not shrink to nothing where everything was a tie. Where
    prompts have several outcomes, their number is replaced by the effective one, as many independent outcomes as would
    give the variance between prompts (Kish 1965; Korn and Graubard 1998 for intervals), at least the number of prompts.

    Args:
        values: (N,) each 0, 0.5 or 1.
        prompts: (N,) what each outcome is of; None: all of different prompts.

    Returns:
        the rate; `count` is the number of prompts. Without any it is one half, and the interval all of [0, 1].

    Raises:
        ValueError: an outcome is something else.
    """
    if any(value not in (0, 0.5, 1) for value in values):
        raise ValueError("an outcome is 1 (win), 0.5 (tie) or 0 (loss)")
    groups = list(_by_prompt(values, prompts).values())
    if not groups:
        return Interval(0.5, 0.0, 1.0, 0)
    count = len(groups)
    wins, losses = (sum(group.count(side) / len(group) for group in groups) / count for side in (1, 0))
    means = [statistics.fmean(group) for group in groups]
    between, alone = statistics.pvariance(means), (wins + losses - (wins - losses) ** 2) / 4
    # Repetitions that always agree say nothing more; those that only average out count as independent at best.
    gain = alone / between if between else len(values) / count if alone else 1.0
    low, high = score_interval(wins, losses, min(float(len(values)), max(1.0, gain) * count))
    return Interval(statistics.fmean(means), (1 + low) / 2, (1 + high) / 2, count)


def score_interval(wins: float, losses: float, count: float) -> tuple[float, float]:
    """Tango's score interval of P(win) − P(loss) from shares of wins and losses (the rest ties) of `count` outcomes."""
    from scipy.optimize import root_scalar
    from scipy.stats import norm

    difference, z = wins - losses, float(norm.ppf(0.5 + CONFIDENCE / 2))

    def excess(supposed: float) -> float:
        """Squared distance of the observed difference from a supposed one, less what is significant."""
        # The most likely share of losses if the difference is the supposed one: the greater root of
        # 2 x² − (wins + losses − (2 − difference) supposed) x − losses supposed (1 − supposed) = 0.
        linear = wins + losses - (2 - difference) * supposed
        product = losses * supposed * (1 - supposed)
        lost = (linear + math.sqrt(max(0.0, linear**2 + 8 * product))) / 4
        variance = (2 * lost + supposed - supposed**2) / count
        return (difference - supposed) ** 2 - z**2 * max(0.0, variance)

    def end(extreme: float) -> float:
        if excess(extreme) <= 0:
            return extreme
        beside = difference + 1e-9 * (
            extreme - difference
        )  # at the difference itself the excess may be 0 too
        return float(root_scalar(excess, bracket=(beside, extreme), xtol=1e-10).root)

    return end(-1.0), end(1.0)


def length_controlled(
    values: Sequence[float], length_differences: Sequence[float], prompts: Sequence[Hashable] | None = None
) -> Interval:
    """Win rate that would be expected of answers of equal length, after arXiv 2404.04475.

    A logistic regression of the outcome on tanh(length difference / spread), read at a difference of 0. Simpler than
    the paper: there is no term for the difficulty of a prompt, which takes many models to know; and the spread is the
    root mean square, not the standard deviation, so that a side that is always longer by as much keeps a difference,
    and gets a wide interval. As there, the weight of length is regularised (here by a normal prior of deviation 2.5),
    so that perfect separation by length has an answer. Ties are halves (fractional logit: Papke and Wooldridge 1996);
    the variance is scaled by that of the outcomes over that of outcomes without ties.

    Args:
        values: (N,) each 0, 0.5 or 1.
        length_differences: (N,) how much longer the answer of side b is, in any unit.
        prompts: (N,) what each outcome is of; None: all of different prompts.

    Returns:
        the rate; that of `win_rate` where outcomes or lengths do not differ.
    """
    import numpy as np
    from scipy.optimize import minimize
    from scipy.special import expit
    from scipy.stats import norm

    plain = win_rate(values, prompts)
    outcome = np.array([statistics.fmean(group) for group in _by_prompt(values, prompts).values()])
    longer = np.array([statistics.fmean(group) for group in _by_prompt(length_differences, prompts).values()])
    if not len(outcome) or not outcome.var() or not longer.any():
        return plain
    design = np.stack([np.ones_like(longer), np.tanh(longer / np.sqrt(np.mean(longer**2)))], 1)
    prior = np.diag([0.0, _SLOPE_DEVIATION**-2])

    def loss(weights: "np.ndarray") -> "tuple[float, np.ndarray]":
        logits = design @ weights
        value = np.logaddexp(0, logits).sum() - outcome @ logits + weights @ prior @ weights / 2
        return float(value), design.T @ (expit(logits) - outcome) + prior @ weights

    weights = minimize(loss, np.zeros(2), jac=True, method="BFGS").x
    chance = expit(design @ weights)
    information = design.T @ (design * (chance * (1 - chance))[:, None]) + prior
    dispersion = outcome.var() / (outcome.mean() * (1 - outcome.mean()))
    error = math.sqrt(dispersion * np.linalg.inv(information)[0, 0])
    half = float(norm.ppf(0.5 + CONFIDENCE / 2)) * error
    value, low, high = (float(expit(weights[0] + step)) for step in (0.0, -half, half))
    return Interval(value, low, high, plain.count)


@dataclass(frozen=True, slots=True)
class CategoryRate:
    """Win rate of a category.

    Attributes:
        rate: over its prompts.
        p: of the sign test over its prompts, two-sided.
        corrected: p after Holm's correction for all categories.
    """

    rate: Interval
    p: float
    corrected: float

    @property
    def significant_loss(self) -> bool:
        """Whether side b is worse here, beyond what so many categories would show by chance."""
        return self.rate.value < 0.5 and self.corrected < SIGNIFICANT


def by_category(found: Iterable[Outcome]) -> dict[str, CategoryRate]:
    """Win rate of each category, by name; outcomes without one are left out. See `CategoryRate`."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in found:
        if outcome.category is not None:
            groups.setdefault(outcome.category, []).append(outcome)
    names = sorted(groups)
    columns = {name: ([o.value for o in groups[name]], [o.prompt for o in groups[name]]) for name in names}
    chances = [prompts_test(*columns[name]) for name in names]
    corrected = holm(chances)
    return {
        name: CategoryRate(win_rate(*columns[name]), p, after)
        for name, p, after in zip(names, chances, corrected, strict=True)
    }


def prompts_test(values: Sequence[float], prompts: Sequence[Hashable] | None = None) -> float:
    """Two-sided p of the sign test over prompts: are as many won as lost?"""
    return sign_test([statistics.fmean(group) - 0.5 for group in _by_prompt(values, prompts).values()])


@dataclass(frozen=True, slots=True)
class Game:
    """A judgement between two of several sides: `value` is 1 where `b` wins, 0.5 for a tie, 0 where `a` wins."""

    a: str
    b: str
    value: float
    prompt: Hashable


def bradley_terry(games: Sequence[Game], seed: int = 0) -> dict[str, Interval]:
    """Strength of each side, the best first: σ(s_i − s_j) is the chance that i wins against j (Bradley and Terry 1952).

    Fitted by choix (Maystre and Grossglauser, NIPS 2015). A tie is half a win for each, and one imaginary prompt, on
    which all that ever met tie, is drawn with the others (Haldane 1956 and Anscombe 1956 add that half): so a side that
    never lost has a strength, and an interval. Strengths have mean 0; `count` is the number of prompts of a side.

    Args:
        games: at least one; a prompt's games are drawn together.
        seed: of the bootstrap over prompts, whose percentiles are the interval.
    """
    import choix
    import numpy as np

    names = sorted({name for game in games for name in (game.a, game.b)})
    number = {name: index for index, name in enumerate(names)}
    rows = {prompt: index for index, prompt in enumerate(dict.fromkeys(game.prompt for game in games))}
    wins = np.zeros((len(rows) + 1, len(names), len(names)))
    for game in games:
        a, b, row = number[game.a], number[game.b], rows[game.prompt]
        wins[row, b, a] += game.value
        wins[row, a, b] += 1 - game.value
        wins[-1, a, b] = wins[-1, b, a] = 0.5

    def strengths(weights: "np.ndarray") -> "np.ndarray":
        counted = np.tensordot(weights, wins, 1)
        return choix.ilsr_pairwise_dense(counted, alpha=_REGULARISATION, max_iter=1000)

    draw = np.random.default_rng(seed)
    resampled = draw.multinomial(len(wins), np.full(len(wins), 1 / len(wins)), size=_RESAMPLES)
    values = strengths(np.ones(len(wins)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(
        [strengths(weights) for weights in resampled.astype(float)], [tail, 1 - tail], axis=0
    )
    counts = [len({game.prompt for game in games if name in (game.a, game.b)}) for name in names]
    ranked = sorted(range(len(names)), key=lambda index: -values[index])
    return {names[i]: Interval(float(values[i]), float(low[i]), float(high[i]), counts[i]) for i in ranked}


def _by_prompt(values: Sequence[float], prompts: Sequence[Hashable] | None) -> Mapping[Hashable, list[float]]:
    """Values of each prompt, in the order in which prompts appear."""
    groups: dict[Hashable, list[float]] = {}
    for prompt, value in zip(range(len(values)) if prompts is None else prompts, values, strict=True):
        groups.setdefault(prompt, []).append(value)
    return groups
