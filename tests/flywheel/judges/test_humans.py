"""Agreement with people: kappa worked by hand, what is common, when labels may be used."""

import pytest

from lite_align.data.types import Message
from lite_align.data.votes import Comparison, Vote
from lite_align.evaluate.agreement import TooFew
from lite_align.evaluate.statistics import Interval
from lite_align.flywheel.judges.humans import FEWEST_COMMON, against_humans


def comparison(number, category=None):
    return Comparison(prompt=(Message("user", f"{number}?"),), a="1", b="2", category=category)


def vote(number, choice, annotator="judge", kind="ai", category=None):
    return Vote(comparison=comparison(number, category), choice=choice, annotator=annotator, kind=kind)


def person(number, choice, annotator="ann", category=None):
    return vote(number, choice, annotator, "human", category)


def test_kappa_by_hand():
    # 20 comparisons: both say a in 8, both b in 7, judge a and person b in 3, judge b and person a in 2.
    # observed 15/20 = 0.75; chance 11/20 · 10/20 + 9/20 · 10/20 = 0.5; kappa (0.75 − 0.5) / 0.5 = 0.5
    said = ["aa"] * 8 + ["bb"] * 7 + ["ab"] * 3 + ["ba"] * 2
    found = against_humans(
        [vote(n, own) for n, (own, _) in enumerate(said)],
        [person(n, other) for n, (_, other) in enumerate(said)],
    )
    assert isinstance(found.kappa, Interval)
    assert found.kappa.value == pytest.approx(0.5)
    assert found.kappa.count == 20
    assert found.kappa.low < 0.5 < found.kappa.high
    assert found.proved
    assert "agrees with people: kappa 0.50 [" in found.verdict
    record = found.record()
    assert record["proved"] is True
    assert record["figures"]["kappa"]["value"] == pytest.approx(0.5)


def test_fewer_than_twenty_in_common_are_too_few():
    both = [(vote(n, "ab"[n % 2]), person(n, "ab"[n % 2])) for n in range(FEWEST_COMMON - 1)]
    found = against_humans([own for own, _ in both], [other for _, other in both])
    assert found.kappa == TooFew(19, FEWEST_COMMON)
    assert not found.proved
    assert found.verdict.endswith("too few (19).")
    assert against_humans([vote(1, "a")], []).verdict.endswith("too few (0).")


def test_below_the_limit_labels_may_not_be_used():
    said = [("a", "ab"[n % 2]) for n in range(20)] + [("b", "a")] * 2
    found = against_humans(
        [vote(n, own) for n, (own, _) in enumerate(said)],
        [person(n, other) for n, (_, other) in enumerate(said)],
    )
    assert not found.proved
    assert "does not agree with people enough (below 0.4)" in found.verdict


def test_most_people_count_and_bad_is_a_tie():
    judged = [vote(n, "ab"[n % 2]) for n in range(18)] + [vote(18, "tie"), vote(19, "tie"), vote(20, "b")]
    given = [person(n, "ab"[n % 2], name) for n in range(18) for name in ("ann", "ben", "cleo")]
    given += [person(3, "a", "dora"), person(18, "bad"), person(19, "tie")]
    given += [person(20, "a"), person(20, "b", "ben")]  # nobody knows
    given += [vote(21, "a", "other judge"), person(22, "skip")]
    found = against_humans([*judged, vote(21, "a"), vote(22, "a")], given)
    assert isinstance(found.kappa, Interval)
    assert (found.kappa.value, found.kappa.count) == (1.0, 20)


def test_categories_have_figures_of_their_own():
    names = ["fact"] * 20 + ["unsafe"] * 3
    judged = [vote(n, "ab"[n % 2], category=name) for n, name in enumerate(names)]
    given = [person(n, "ab"[n % 2], category=name) for n, name in enumerate(names)]
    found = against_humans(judged, given)
    assert found.categories["fact"] == Interval(1.0, 1.0, 1.0, 20)
    assert found.categories["unsafe"] == TooFew(3, FEWEST_COMMON)
    first, second = found.lines()
    assert first == found.verdict
    assert second == "fact 1.00 [1.00, 1.00] · 1 categories with too few comparisons"
    assert found.record()["figures"]["kappa/unsafe"] == {"value": None, "low": None, "high": None, "count": 3}
