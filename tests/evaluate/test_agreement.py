"""Coefficients against published worked examples; figures of votes by hand. No torch."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lite_align.data.types import Message
from lite_align.data.votes import Choice, Comparison, Vote
from lite_align.evaluate.agreement import (
    FEWEST,
    Bias,
    Figure,
    TooFew,
    against,
    agreement,
    cohen,
    counted,
    disagreements,
    fleiss,
    items_of,
    krippendorff_alpha,
    length_bias,
    measured,
    most,
    position_bias,
)
from lite_align.evaluate.statistics import Interval, wilson

# Coefficients


def test_cohens_kappa_by_hand() -> None:
    # 20 both yes, 5 and 10 differ, 15 both no: p_o = 35/50; p_e = 0.5·0.6 + 0.5·0.4 = 0.5; (0.7 − 0.5)/0.5 = 0.4
    pairs = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    assert cohen(*zip(*pairs)) == pytest.approx(0.4)
    assert cohen("abab", "abab") == pytest.approx(1)
    assert cohen("abab", "baba") == pytest.approx(-1)
    assert cohen("aaaa", "aaaa") is None
    assert cohen("", "") is None
    assert cohen("aaaa", "bbbb") == 0


PSYCHIATRISTS = [  # 14 raters, 10 patients, 5 diagnoses: the example with which the coefficient is usually worked
    (0, 0, 0, 0, 14),
    (0, 2, 6, 4, 2),
    (0, 0, 3, 5, 6),
    (0, 3, 9, 2, 0),
    (2, 2, 8, 1, 1),
    (7, 7, 0, 0, 0),
    (3, 2, 6, 3, 0),
    (2, 5, 3, 2, 2),
    (6, 5, 2, 1, 0),
    (0, 2, 2, 3, 7),
]


def test_fleiss_kappa_of_the_worked_example() -> None:
    # P̄ = 0.378 and P̄_e = 0.213 give (0.378 − 0.213)/(1 − 0.213) = 0.210
    assert fleiss(PSYCHIATRISTS) == pytest.approx(0.210, abs=5e-4)
    # An item with one rater says nothing.
    assert fleiss([*PSYCHIATRISTS, (1, 0, 0, 0, 0)]) == fleiss(PSYCHIATRISTS)
    assert fleiss([(3, 0), (2, 0)]) is None
    assert fleiss([]) is None


def test_krippendorffs_alpha_of_his_example_with_missing_labels() -> None:
    """Four observers, twelve units, values 1 to 5: Computing Krippendorff's Alpha-Reliability (2011), section C."""
    raters = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
    counts = [[[rater[unit] for rater in raters].count(value) for value in "12345"] for unit in range(12)]
    assert krippendorff_alpha(counts) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha([(2, 0), (3, 0)]) is None
    assert krippendorff_alpha([(1, 0), (0, 1)]) is None


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=2, max_size=30))
def test_two_raters_without_gaps_tie_the_coefficients_together(pairs: list[tuple[str, str]]) -> None:
    """Fleiss of two raters is Scott's pi, and alpha is 1 − (1 − 1/(2N))·(1 − pi): Krippendorff 2011, note on pi."""
    counts = [[pair.count(label) for label in "abc"] for pair in pairs]
    pi, alpha = fleiss(counts), krippendorff_alpha(counts)
    assert (pi is None) == (alpha is None)
    if pi is not None and alpha is not None:
        assert alpha == pytest.approx(1 - (1 - 1 / (2 * len(pairs))) * (1 - pi))


def test_a_figure_of_few_items_is_not_computed_and_one_of_many_has_an_interval() -> None:
    alike: list[tuple[int, int]] = [(2, 0), (0, 2)] * 5
    assert measured(alike[: FEWEST - 1], fleiss) == TooFew(FEWEST - 1)
    assert TooFew(3).why == "too few (3)"
    same = measured([(2, 0)] * 20, fleiss)
    assert same == TooFew(20)
    assert isinstance(same, TooFew)
    assert same.why == "all alike (20)"
    whole = measured(alike, fleiss)
    assert isinstance(whole, Interval)
    assert (whole.value, whole.low, whole.high, whole.count) == (1, 1, 1, 10)
    mixed = measured([*alike * 3, (1, 1), (1, 1), (1, 1)], fleiss)
    assert isinstance(mixed, Interval)
    assert 0.4 < mixed.low < mixed.value < mixed.high <= 1
    assert mixed == measured([*alike * 3, (1, 1), (1, 1), (1, 1)], fleiss)


# Votes


def vote(
    number: int,
    choice: Choice,
    annotator: str = "ann",
    *,
    answers: tuple[str, str] = ("long answer", "short"),
    first: str | None = None,
    expected: Choice | None = None,
    category: str | None = "fact",
    kind: str = "human",
) -> Vote:
    comparison = Comparison(
        prompt=(Message("user", f"Question {number}?"),),
        a=answers[0],
        b=answers[1],
        category=category,
        expected=expected,
    )
    return Vote(comparison=comparison, choice=choice, annotator=annotator, first=first, kind=kind)  # pyright: ignore


def one(figure: Figure) -> Interval:
    assert isinstance(figure, Interval)
    return figure


def test_an_answer_is_the_same_on_whichever_side_it_stands() -> None:
    votes = [vote(1, "a"), vote(1, "b", "ben", answers=("short", "long answer")), vote(1, "tie", "cem")]
    (labels,) = items_of(votes).values()
    assert labels["ann"] == labels["ben"] != labels["cem"] == "tie"
    assert counted(items_of(votes)) == [[2, 0, 1, 0]]


def test_who_skips_or_takes_back_has_said_nothing() -> None:
    votes = [vote(1, "a"), vote(1, "skip", "ben"), vote(2, "b"), vote(2, "none")]
    assert [list(labels) for labels in items_of(votes).values()] == [["ann"]]
    assert counted(items_of(votes)) == []


def test_each_annotator_stands_against_what_most_others_say() -> None:
    assert (most("aab"), most("ab"), most(""), most("a")) == ("a", None, None, "a")
    items = {
        "1": {"ann": "one", "ben": "other", "cem": "other"},
        "2": {"ann": "one", "ben": "one", "cem": "tie"},  # the others differ
        "3": {"ann": "bad", "ben": "bad"},
        "4": {"ben": "one", "cem": "one"},  # ann did not label it
    }
    assert against(items, "ann") == [("one", "other"), ("bad", "bad")]


def test_agreement_of_two_annotators_by_category() -> None:
    facts = [vote(n, "a" if n % 2 else "b", name) for n in range(20) for name in ("ann", "ben")]
    differ = [
        vote(n, choice, name, category="howto")  # they agree on every second one: no more than chance
        for n in range(100, 120)
        for name, choice in (("ann", "ab"[n % 2]), ("ben", "ab"[n // 2 % 2]))
    ]
    few = [vote(n, "a", name, category="unsafe") for n in range(200, 203) for name in ("ann", "ben")]
    found = agreement([*facts, *differ, *few, vote(300, "a")])
    assert (found.comparisons, found.several) == (44, 43)
    assert one(found.categories["fact"]).value == 1
    assert one(found.categories["howto"]).value == pytest.approx(0.025)  # 1 − (39/40)·(1 − 0)
    assert found.categories["unsafe"] == TooFew(3)
    assert 0.3 < one(found.alpha).value < 0.7
    assert one(found.alpha).count == 43
    kappa = one(found.pairs["ann", "ben"])
    assert kappa == one(found.annotators["ann"].kappa) == one(found.annotators["ben"].kappa)
    assert found.kinds == {}
    assert (found.annotators["ann"].votes, found.annotators["ben"].votes) == (44, 43)
    assert len(found.discuss) == 10


def test_people_and_models_are_told_apart() -> None:
    people = [vote(n, "a" if n % 2 else "b", name) for n in range(12) for name in ("ann", "ben")]
    judge = [vote(n, "b" if n % 2 else "a", "judge", kind="ai") for n in range(12)]
    found = agreement([*people, *judge])
    assert one(found.kinds["human"]).value == 1
    assert list(found.kinds) == ["human"]
    assert one(found.alpha).value < 0.3
    assert found.annotators["judge"].kind == "ai"
    assert one(found.annotators["judge"].kappa).value == pytest.approx(-1)


def test_agreement_that_falls_over_time_is_found() -> None:
    """ann follows ben for 20 items, then says the opposite for 20; a third is 13."""
    ben = [vote(n, "a" if n % 2 else "b", "ben") for n in range(40)]
    ann = [vote(n, "a" if (n % 2) == (n < 20) else "b") for n in range(40)]
    drift = agreement([*ben, *ann]).annotators["ann"].drift
    assert (one(drift.first).value, one(drift.last).value) == pytest.approx((1, -1), abs=0.02)
    assert drift.p == pytest.approx(2 / 10_400_600)  # two tables as extreme among 26 over 13
    few = agreement([*ben[:29], *ann[:29]]).annotators["ann"].drift
    assert (few.first, few.p) == (TooFew(9), None)


def test_calibration_and_repetitions() -> None:
    known = [vote(n, "a", expected="a" if n < 9 else "b") for n in range(12)]
    ann = agreement([*known, vote(50, "skip", expected="a")]).annotators["ann"]
    assert one(ann.calibration) == wilson(9, 12)
    assert (ann.votes, ann.skipped) == (12, 1)
    assert ann.consistency == TooFew(0)
    again = [vote(n, "a" if n < 8 else "tie") for n in range(12)]
    assert one(agreement([*known, *again]).annotators["ann"].consistency) == wilson(8, 12)
    # A vote that was taken back was no repetition.
    undone = [vote(0, "none"), vote(0, "b"), *known[1:]]
    assert agreement([*known, *undone]).annotators["ann"].consistency == wilson(11, 11)


def test_position_bias_by_hand() -> None:
    votes = [vote(n, "a", first="a" if n < 8 else "b") for n in range(10)]
    votes += [
        vote(20, "tie", first="a"),
        vote(21, "a", first="both"),
        vote(22, "a"),
        vote(23, "skip", first="a"),
    ]
    found = position_bias(votes)
    assert isinstance(found, Bias)
    assert found.share == wilson(8, 10)
    assert found.p == pytest.approx(2 * (45 + 10 + 1) / 1024)
    assert position_bias(votes[:9]) == TooFew(9)


def test_length_bias_by_hand() -> None:
    votes = [vote(n, "a") for n in range(9)] + [vote(9, "a", answers=("x", "longer")), vote(10, "b")]
    votes += [vote(11, "a", answers=("same", "size")), vote(12, "bad")]
    found = length_bias(votes)
    assert isinstance(found, Bias)
    assert found.share == wilson(9, 11)


def test_what_is_to_be_discussed_begins_with_the_most_opposed() -> None:
    votes = [
        *(vote(1, choice, name) for name, choice in (("ann", "a"), ("ben", "tie"))),
        *(
            vote(2, choice, name)
            for name, choice in (("ann", "a"), ("ben", "b"), ("cem", "a"), ("dora", "b"))
        ),
        *(vote(3, choice, name) for name, choice in (("ann", "a"), ("ben", "b"), ("cem", "a"))),
        *(vote(4, "a", name) for name in ("ann", "ben")),
        *(vote(5, choice, name) for name, choice in (("ann", "a"), ("ben", "skip"))),
    ]
    found = disagreements(votes)
    assert [(item.opposed, len(item.votes)) for item in found] == [(2, 4), (1, 3), (0, 2)]
    assert found[0].comparison.prompt[0].content == "Question 2?"
