"""Win rates against published intervals, brute force and simulation; rankings against closed forms. No torch."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from lite_align.data.types import Message
from lite_align.data.votes import Choice, Comparison, Vote
from lite_align.evaluate.statistics import wilson
from lite_align.evaluate.winrate import (
    Game,
    Outcome,
    bradley_terry,
    by_category,
    length_controlled,
    outcomes,
    prompts_test,
    score_interval,
    win_rate,
)

Z2 = 1.959964**2
COMPARISONS = 200


def promised(hits: int, trials: int = COMPARISONS, *, at_least: bool = False) -> bool:
    """Whether intervals held so often that 95 % is believable (99.9 % of the binomial distribution)."""
    low, high = binom.ppf([0.0005, 0.9995], trials, 0.95)
    return low <= hits and (at_least or hits <= high)


def test_the_interval_of_a_published_paired_table() -> None:
    """Airway hyper-responsiveness before and after a transplantation, 21 children, 1 against 7 changed.

    Bentur et al. 2009 as worked in Fagerland, Lydersen and Laake, Statistics in Medicine 33 (2014): −0.517 to −0.026.
    """
    assert score_interval(1 / 21, 7 / 21, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


def test_the_interval_against_brute_force() -> None:
    """The most likely shares of losses are looked for on a grid, not solved for."""
    wins, losses, count = 12, 5, 30
    grid = np.linspace(1e-6, 0.5, 200_001)

    def distance(supposed: float) -> float:
        lost = grid[(grid + supposed > 0) & (2 * grid + supposed < 1)]
        ties = count - wins - losses
        likelihood = (
            wins * np.log(lost + supposed) + losses * np.log(lost) + ties * np.log(1 - 2 * lost - supposed)
        )
        best = lost[likelihood.argmax()]
        return (wins - losses - count * supposed) ** 2 / (count * (2 * best + supposed - supposed**2))

    for end in score_interval(wins / count, losses / count, count):
        assert distance(end) == pytest.approx(Z2, rel=1e-3)


@given(st.integers(0, 40), st.integers(0, 40))
def test_without_ties_it_is_wilsons_interval(wins: int, losses: int) -> None:
    found, expected = win_rate([1.0] * wins + [0.0] * losses), wilson(wins, wins + losses)
    assert (found.value, found.count) == (expected.value, expected.count)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_only_ties_leave_room_for_either_side() -> None:
    # No win and no loss in n: the difference d solves (n d)² = z² n d (1 − d), so d = z²/(n + z²).
    found = win_rate([0.5] * 10)
    assert (found.value, found.count) == (0.5, 10)
    assert (found.low, found.high) == pytest.approx(
        (0.5 - Z2 / (10 + Z2) / 2, 0.5 + Z2 / (10 + Z2) / 2), abs=1e-6
    )


@settings(max_examples=50)
@given(st.lists(st.sampled_from((0.0, 0.5, 1.0)), min_size=1, max_size=25))
def test_the_other_side_has_the_mirrored_interval(values: list[float]) -> None:
    one, other = win_rate(values), win_rate([1 - value for value in values])
    assert (one.low, one.value, one.high) == pytest.approx(
        (1 - other.high, 1 - other.value, 1 - other.low), abs=1e-6
    )
    assert 0 <= one.low <= one.value + 1e-9
    assert one.value <= one.high + 1e-9 <= 1 + 2e-9


def test_nothing_is_known_without_outcomes_and_other_numbers_are_refused() -> None:
    assert (win_rate([]).low, win_rate([]).value, win_rate([]).high) == (0.0, 0.5, 1.0)
    with pytest.raises(ValueError, match="0.5"):
        win_rate([0.7])


def test_outcomes_of_one_prompt_are_not_more_evidence() -> None:
    once = [1.0, 1.0, 0.5, 0.0, 1.0]
    thrice, alone = win_rate(once * 3, list(range(5)) * 3), win_rate(once)
    assert (thrice.low, thrice.value, thrice.high) == pytest.approx((alone.low, alone.value, alone.high))
    assert thrice.count == 5
    assert win_rate([1.0] * 9, list("aaabbbccc")) == win_rate([1.0] * 3)
    # Each prompt counts once, however often it was asked: (1 + 0)/2, not 3/4.
    assert win_rate([1.0, 1.0, 1.0, 0.0], list("aaab")).value == 0.5
    # Two orders that contradict each other everywhere are no certainty of a tie.
    both = win_rate([1.0, 0.0] * 10, [number // 2 for number in range(20)])
    assert (both.low, both.high) == pytest.approx((wilson(10, 20).low, wilson(10, 20).high), abs=1e-6)


# Promised rates, by simulation


def drawn(seed: int, wins: float, ties: float, size: tuple[int, int]) -> np.ndarray:
    chances = [1 - wins - ties, ties, wins]
    return np.random.default_rng(seed).choice([0.0, 0.5, 1.0], size, p=chances)


@pytest.mark.parametrize(("wins", "ties"), [(0.5, 0.0), (0.35, 0.3), (0.6, 0.2), (0.2, 0.7)])
def test_intervals_hold_the_truth_at_the_promised_rate(wins: float, ties: float) -> None:
    rates = [win_rate(row.tolist()) for row in drawn(1, wins, ties, (COMPARISONS, 60))]
    assert promised(sum(rate.low <= wins + ties / 2 <= rate.high for rate in rates))


def test_a_side_against_itself_is_a_tie_at_the_promised_rate() -> None:
    """200 comparisons of A with A, 80 prompts each, 30 % ties: interval, sign test and length-controlled rate.

    The sign test and the latter's small samples may be cautious; none may find more than it promises.
    """
    draw = np.random.default_rng(2)
    held, signs, controlled = 0, 0, 0
    for row in drawn(3, 0.35, 0.3, (COMPARISONS, 80)):
        values = row.tolist()
        rate, fair = win_rate(values), length_controlled(values, draw.normal(0, 50, 80).tolist())
        held += rate.low <= 0.5 <= rate.high
        controlled += fair.low <= 0.5 <= fair.high
        signs += prompts_test(values) >= 0.05
    assert promised(held)
    assert promised(controlled)
    assert promised(signs, at_least=True)


def test_intervals_hold_where_a_prompt_is_asked_twice() -> None:
    """Four fifths of the second outcomes repeat the first; counted as independent they would hold too rarely."""
    first, other = drawn(4, 0.4, 0.2, (2, COMPARISONS * 60)).reshape(2, COMPARISONS, 60)
    second = np.where(np.random.default_rng(5).random(first.shape) < 0.8, first, other)
    prompts = list(range(60)) * 2
    rates = [win_rate([*a.tolist(), *b.tolist()], prompts) for a, b in zip(first, second)]
    assert promised(sum(rate.low <= 0.5 <= rate.high for rate in rates))


# Length


def test_the_length_controlled_rate_takes_the_weight_of_length_away() -> None:
    """Wins follow σ(0.4 + 1.5 tanh(d / spread)), and side b is longer: its rate is inflated, 0.6 is left."""
    draw = np.random.default_rng(6)
    longer = draw.normal(60, 100, 4000)
    push = 0.4 + 1.5 * np.tanh(longer / np.sqrt((longer**2).mean()))
    values = (draw.random(4000) < 1 / (1 + np.exp(-push))).astype(float).tolist()
    found = length_controlled(values, longer.tolist())
    assert found.low < 1 / (1 + math.exp(-0.4)) < found.high
    assert found.high < win_rate(values).low


@pytest.mark.parametrize(
    ("four", "information"),
    [((1.0, 1.0, 1.0, 0.0), 1.5), ((1.0, 0.5, 1.0, 0.5), 4.5)],
    ids=["no ties", "ties"],
)
def test_length_that_says_nothing_changes_nothing_by_hand(
    four: tuple[float, ...], information: float
) -> None:
    """Half of the answers are longer by 10, half shorter, and of each half 3/4 is won: no slope, so the rate is 3/4.

    The information about the intercept is n p (1 − p) = 8 · 3/16 = 1.5, and the interval logit ± 1.96 / √1.5. The
    variance of the outcomes with ties is 1/16, a third of the 3/16 of outcomes without: three times the information.
    """
    found = length_controlled(four * 2, [10.0] * 4 + [-10.0] * 4)
    middle, half = math.log(3), 1.959964 / math.sqrt(information)
    assert found.value == pytest.approx(0.75, abs=1e-5)
    assert found.low == pytest.approx(1 / (1 + math.exp(half - middle)), abs=1e-4)
    assert found.high == pytest.approx(1 / (1 + math.exp(-half - middle)), abs=1e-4)


def test_where_length_explains_everything_nothing_is_known() -> None:
    always = length_controlled([1.0, 0.0] * 10, [100.0, -100.0] * 10)
    assert always.value == pytest.approx(0.5)
    assert always.high - always.low > 0.6
    # Side b is always longer by as much: whether it is better cannot be told from that.
    constant = length_controlled([1.0] * 15 + [0.0] * 5, [100.0] * 20)
    assert constant.low < 0.5 < constant.high
    assert length_controlled([1.0, 0.0], [0.0, 0.0]) == win_rate([1.0, 0.0])
    assert length_controlled([1.0, 1.0], [5.0, 9.0]) == win_rate([1.0, 1.0])
    assert length_controlled([], []) == win_rate([])


# Categories


def test_a_category_with_a_significant_loss_is_found_and_chance_is_not() -> None:
    bad = [Outcome(0.0, ("unsafe", n), "unsafe") for n in range(12)]
    mixed = [Outcome(n % 2, ("fact", n), "fact") for n in range(12)]
    slight = [Outcome(0.0, ("howto", n), "howto") for n in range(6)]
    found = by_category([*bad, *mixed, *slight, Outcome(1.0, "none")])
    assert list(found) == ["fact", "howto", "unsafe"]
    # p of 0 in 12 is 2/2¹², times 3 categories; of 0 in 6 it is 2/2⁶ = 0.031, times the 2 that are left: 0.0625.
    assert found["unsafe"].corrected == pytest.approx(3 * 2 / 4096)
    assert found["unsafe"].significant_loss
    assert (found["howto"].p, found["howto"].corrected) == pytest.approx((2 / 64, 4 / 64))
    assert not found["howto"].significant_loss
    assert not found["fact"].significant_loss
    assert by_category([]) == {}


def test_a_significant_gain_is_no_loss() -> None:
    assert not by_category([Outcome(1.0, n, "fact") for n in range(12)])["fact"].significant_loss


# Votes


def vote(
    choice: Choice, *, a: str = "old", b: str = "new", answers: tuple[str, str] = ("ab", "abcd")
) -> Vote:
    comparison = Comparison(
        prompt=(Message("user", f"{a} {b} {choice}"),),
        a=answers[0],
        b=answers[1],
        model_a=a,
        model_b=b,
        category="fact",
    )
    return Vote(comparison=comparison, choice=choice, annotator="ann")


def test_outcomes_of_votes() -> None:
    votes = [vote(choice) for choice in ("b", "a", "tie", "bad", "skip", "none")]
    found = outcomes(votes)
    assert [outcome.value for outcome in found] == [1.0, 0.0, 0.5, 0.5]
    assert {outcome.length_difference for outcome in found} == {2.0}
    assert {outcome.category for outcome in found} == {"fact"}


def test_outcomes_of_a_side_whichever_answer_is_its_own() -> None:
    votes = [
        vote("b"),
        vote("a", a="new", b="old"),
        vote("b", a="new", b="new"),
        vote("a", a="old", b="other"),
    ]
    found = outcomes(votes, "new")
    assert [outcome.value for outcome in found] == [1.0, 1.0]
    assert [outcome.length_difference for outcome in found] == [2.0, -2.0]


# Rankings


def games(a: str, b: str, values: list[float]) -> list[Game]:
    return [Game(a, b, value, (a, b, number)) for number, value in enumerate(values)]


def test_two_sides_have_the_log_odds_of_their_wins() -> None:
    # 7 wins, 2 losses, a tie, and the imaginary tie: 8 against 3.
    found = bradley_terry(games("old", "new", [1.0] * 7 + [0.0] * 2 + [0.5]))
    assert list(found) == ["new", "old"]
    assert found["new"].value - found["old"].value == pytest.approx(math.log(8 / 3), abs=1e-3)
    assert found["new"].value + found["old"].value == pytest.approx(0, abs=1e-3)
    assert found["new"].count == 10
    assert found["new"].low < found["new"].value < found["new"].high


def test_a_side_that_never_lost_has_an_interval_and_sides_join_over_a_third() -> None:
    played = games("a", "b", [1.0] * 30) + games("b", "c", [1.0, 0.0] * 15)
    found = bradley_terry(played, seed=1)
    assert bradley_terry(played, seed=1) == found
    assert found["b"].value - found["a"].value == pytest.approx(math.log(30.5 / 0.5), abs=0.05)
    assert found["c"].value == pytest.approx(found["b"].value, abs=0.05)
    assert found["a"].high < found["b"].low
    assert found["a"].high - found["a"].low > 1
