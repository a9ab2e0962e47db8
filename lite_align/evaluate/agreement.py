"""Do annotators agree, with each other and with themselves? Figures of votes. Pure functions; imports are late.

What is counted is a choice for one of the two answers, tie or bad; who skips has said nothing. The two answers of a
comparison are told apart by their texts, so the side on which an answer stood in a row does not matter.
"""

import random
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from lite_align.data.votes import Comparison, Vote, latest, standing
from lite_align.evaluate.statistics import CONFIDENCE, Interval, wilson

FEWEST = 10
"""Items without which a figure says nothing and is not computed."""

LABELS = ("one", "other", "tie", "bad")
"""What can be said of a comparison; which answer is `one` is decided by their texts alone."""

WEAK = 0.4
"""Krippendorff's alpha below which labels are no base for a decision."""

_RESAMPLES = 500
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TooFew:
    """A figure that was not computed: there are `count` items, or, with `fewest` of them or more, all say the same."""

    count: int
    fewest: int = FEWEST

    @property
    def why(self) -> str:
        """In words."""
        return f"too few ({self.count})" if self.count < self.fewest else f"all alike ({self.count})"


Figure = Interval | TooFew
Items = Mapping[str, Mapping[str, str]]
"""Label of each annotator, by comparison."""


# Coefficients


def cohen(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """Cohen's kappa of two raters: (p_o − p_e) / (1 − p_e), chance from each rater's own shares (Cohen 1960).

    Args:
        first, second: (N,) labels of the same items.

    Returns:
        None without items, or where both gave one and the same label to all: chance explains everything then.
    """
    count = len(first)
    shares = Counter(first), Counter(second)
    if not count or (len(shares[0]) == 1 and shares[0].keys() == shares[1].keys()):
        return None
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / count
    expected = sum(shares[0][label] * shares[1][label] for label in shares[0]) / count**2
    return (observed - expected) / (1 - expected)


def fleiss(counts: Sequence[Sequence[int]]) -> float | None:
    """Fleiss' kappa of several raters, who need not be the same for all items (Fleiss 1971).

    Each item is taken with its own number of raters; those with fewer than two are left out.

    Args:
        counts: (N, K) how many raters gave item n label k.

    Returns:
        None without items, or where all gave one label.
    """
    rated = [row for row in counts if sum(row) > 1]
    totals = [sum(column) for column in zip(*rated)]
    if sum(total > 0 for total in totals) < 2:
        return None
    agreed = sum(sum(n * (n - 1) for n in row) / (sum(row) * (sum(row) - 1)) for row in rated) / len(rated)
    expected = sum((total / sum(totals)) ** 2 for total in totals)
    return (agreed - expected) / (1 - expected)


def krippendorff_alpha(counts: Sequence[Sequence[int]]) -> float | None:
    """Krippendorff's alpha for nominal labels and any raters missing, by the package `krippendorff`.

    Args:
        counts: (N, K) how many raters gave item n label k; items with fewer than two say nothing.

    Returns:
        None without such items, or where all gave one label.
    """
    rated = [row for row in counts if sum(row) > 1]
    if sum(any(column) for column in zip(*rated)) < 2:
        return None
    import krippendorff
    import numpy as np

    return float(krippendorff.alpha(value_counts=np.asarray(rated), level_of_measurement="nominal"))


def measured(
    items: Sequence[T],
    statistic: Callable[[Sequence[T]], float | None],
    seed: int = 0,
    *,
    fewest: int = FEWEST,
) -> Figure:
    """A statistic of items with the percentile interval of a bootstrap over them (Efron and Tibshirani 1993).

    Samples in which all are alike count as full agreement: that is what makes a coefficient undefined in them.
    """
    value = statistic(items) if len(items) >= fewest else None
    if value is None:
        return TooFew(len(items), fewest)
    draw = random.Random(seed)
    found = sorted(
        1.0 if (again := statistic(draw.choices(items, k=len(items)))) is None else again
        for _ in range(_RESAMPLES)
    )
    tail = round((1 - CONFIDENCE) / 2 * _RESAMPLES)
    return Interval(value, found[tail], found[-1 - tail], len(items))


# Items


def label(comparison: Comparison, choice: str) -> str | None:
    """A choice in terms of `LABELS`; None for what says nothing."""
    if choice not in ("a", "b"):
        return choice if choice in LABELS else None
    return LABELS[(choice == "a") != (comparison.a <= comparison.b)]


def items_of(votes: Iterable[Vote]) -> dict[str, dict[str, str]]:
    """The labels that count, by comparison and annotator."""
    items: dict[str, dict[str, str]] = {}
    for vote in latest(votes):
        said = label(vote.comparison, vote.choice)
        if said is not None:
            items.setdefault(vote.comparison.id, {})[vote.annotator] = said
    return items


def counted(items: Items) -> list[list[int]]:
    """(N, K) how often each of `LABELS` was given to the items that at least two annotators labelled."""
    several = [Counter(labels.values()) for labels in items.values() if len(labels) > 1]
    return [[count[name] for name in LABELS] for count in several]


def against(items: Items, annotator: str) -> list[tuple[str, str]]:
    """Labels of an annotator beside those that most of the others gave, where there is one such."""
    return [(own, others) for _, own, others in _against(items, annotator)]


def _against(items: Items, annotator: str) -> Iterator[tuple[str, str, str]]:
    for name, labels in items.items():
        others = most(label for rater, label in labels.items() if rater != annotator)
        if annotator in labels and others is not None:
            yield name, labels[annotator], others


def most(labels: Iterable[str]) -> str | None:
    """The label that is given more often than any other; None where there is none."""
    ranked = Counter(labels).most_common(2)
    return ranked[0][0] if ranked and (len(ranked) == 1 or ranked[0][1] > ranked[1][1]) else None


# What is reported


@dataclass(frozen=True, slots=True)
class Bias:
    """How often choices between the two answers fall on one kind of answer; 0.5 is none.

    Attributes:
        share: with Wilson's interval; `count` choices.
        p: two-sided, of the binomial test against 0.5.
    """

    share: Interval
    p: float


@dataclass(frozen=True, slots=True)
class Drift:
    """Agreement with the others early and late: kappa in the first and in the last third of an annotator's items.

    Attributes:
        first, last: kappa against the others.
        p: of Fisher's exact test for equal shares of agreement; None where there are too few.
    """

    first: Figure
    last: Figure
    p: float | None


@dataclass(frozen=True, slots=True)
class Annotator:
    """One annotator's figures.

    Attributes:
        kind: person, language model, program or reward model.
        votes: that count, without those that say nothing.
        skipped: comparisons of which nothing was said.
        kappa: Cohen's, against what most of the others say.
        drift: of kappa.
        calibration: share of items with a known answer that were right.
        consistency: share of repeated comparisons that were answered alike.
        first: choices for the answer that was shown first.
        longer: choices for the longer answer.
    """

    kind: str
    votes: int
    skipped: int
    kappa: Figure
    drift: Drift
    calibration: Figure
    consistency: Figure
    first: Bias | TooFew
    longer: Bias | TooFew


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A comparison on which annotators differ, with what each of them said last."""

    comparison: Comparison
    votes: tuple[Vote, ...]

    @property
    def opposed(self) -> int:
        """The lesser of the numbers of votes for one answer and for the other."""
        said = Counter(label(vote.comparison, vote.choice) for vote in self.votes)
        return min(said["one"], said["other"])


@dataclass(frozen=True, slots=True)
class Agreement:
    """All figures of some votes.

    Attributes:
        comparisons: that at least one annotator labelled, and of these `several` that more than one did.
        alpha, fleiss: of everybody.
        kinds: alpha of people alone, of models alone and so on, where there are several of one kind beside others.
        categories: alpha, by category.
        annotators: by name.
        pairs: Cohen's kappa of every two annotators.
        discuss: comparisons on which annotators differ, the most opposed first.
    """

    comparisons: int
    several: int
    alpha: Figure
    fleiss: Figure
    kinds: Mapping[str, Figure]
    categories: Mapping[str, Figure]
    annotators: Mapping[str, Annotator]
    pairs: Mapping[tuple[str, str], Figure]
    discuss: Sequence[Disagreement]


def agreement(votes: Sequence[Vote]) -> Agreement:
    """Everything that votes say of agreement, in the order in which they were written."""
    items, last = items_of(votes), latest(votes)
    names = sorted({vote.annotator for vote in last})
    kinds = {vote.annotator: vote.kind for vote in last}
    of_kind = Counter(kinds.values())
    several_kinds = sorted(kind for kind, count in of_kind.items() if count > 1) if len(of_kind) > 1 else []
    categories = {vote.comparison.id: vote.comparison.category for vote in last}
    counts = counted(items)
    return Agreement(
        comparisons=len(items),
        several=len(counts),
        alpha=measured(counts, krippendorff_alpha),
        fleiss=measured(counts, fleiss),
        kinds={
            kind: _alpha(_only(items, {name for name in names if kinds[name] == kind}))
            for kind in several_kinds
        },
        categories={
            category: _alpha({name: labels for name, labels in items.items() if categories[name] == category})
            for category in sorted({category for category in categories.values() if category is not None})
        },
        annotators={name: _annotator(votes, items, name, kinds[name]) for name in names},
        pairs={
            (one, other): kappa(
                [(said[one], said[other]) for said in items.values() if {one, other} <= said.keys()]
            )
            for number, one in enumerate(names)
            for other in names[number + 1 :]
        },
        discuss=disagreements(last),
    )


def disagreements(votes: Iterable[Vote]) -> list[Disagreement]:
    """Comparisons on which the votes that count differ; those with votes for either answer stand before the others."""
    said: dict[str, list[Vote]] = {}
    for vote in latest(votes):
        if label(vote.comparison, vote.choice) is not None:
            said.setdefault(vote.comparison.id, []).append(vote)
    found = [
        Disagreement(given[0].comparison, tuple(given))
        for given in said.values()
        if len({label(vote.comparison, vote.choice) for vote in given}) > 1
    ]
    return sorted(found, key=lambda item: (-item.opposed, -len(item.votes)))


def position_bias(votes: Iterable[Vote]) -> Bias | TooFew:
    """How often the answer that was shown first is chosen; ties, and judges asked in both orders, say nothing."""
    return _bias(
        [
            vote.choice == vote.first
            for vote in votes
            if vote.choice in ("a", "b") and vote.first in ("a", "b")
        ]
    )


def length_bias(votes: Iterable[Vote]) -> Bias | TooFew:
    """How often the longer answer is chosen; ties and answers of equal length say nothing."""
    return _bias(
        [
            (len(vote.comparison.a) > len(vote.comparison.b)) == (vote.choice == "a")
            for vote in votes
            if vote.choice in ("a", "b") and len(vote.comparison.a) != len(vote.comparison.b)
        ]
    )


def _annotator(votes: Sequence[Vote], items: Items, name: str, kind: str) -> Annotator:
    own = [vote for vote in standing(votes) if vote.annotator == name]
    last = latest(own)
    right = [
        label(vote.comparison, vote.choice) == label(vote.comparison, vote.comparison.expected)
        for vote in last
        if vote.comparison.expected is not None and vote.choice != "skip"
    ]
    return Annotator(
        kind=kind,
        votes=sum(vote.choice != "skip" for vote in last),
        skipped=sum(vote.choice == "skip" for vote in last),
        kappa=kappa(against(items, name)),
        drift=drift(items, name, [vote.comparison.id for vote in last]),
        calibration=_share(right),
        consistency=_share(_repeated_alike(own)),
        first=position_bias(own),
        longer=length_bias(own),
    )


def drift(items: Items, annotator: str, order: Sequence[str]) -> Drift:
    """Agreement of an annotator with the others early and late; `order`: comparisons as they were answered."""
    place = {name: number for number, name in enumerate(order)}
    ordered = sorted(_against(items, annotator), key=lambda found: place.get(found[0], 0))
    third = len(ordered) // 3
    thirds = [
        [(own, others) for _, own, others in part]
        for part in (ordered[:third], ordered[len(ordered) - third :])
    ]
    if third < FEWEST:
        return Drift(TooFew(third), TooFew(third), None)
    from scipy.stats import fisher_exact

    agreed = [sum(own == others for own, others in part) for part in thirds]
    p = fisher_exact([[hits, third - hits] for hits in agreed]).pvalue  # pyright: ignore
    return Drift(kappa(thirds[0]), kappa(thirds[1]), float(p))


def _repeated_alike(votes: Sequence[Vote]) -> list[bool]:
    """Of each time that a comparison was asked again: was the answer the same as the last time?"""
    before: dict[str, str] = {}
    alike: list[bool] = []
    for vote in votes:
        said = label(vote.comparison, vote.choice)
        if said is None:
            continue
        if vote.comparison.id in before:
            alike.append(before[vote.comparison.id] == said)
        before[vote.comparison.id] = said
    return alike


def _alpha(items: Items) -> Figure:
    return measured(counted(items), krippendorff_alpha)


def kappa(pairs: Sequence[tuple[str, str]], *, fewest: int = FEWEST) -> Figure:
    """Cohen's kappa of the labels that two raters gave to the same items, with its interval."""
    return measured(pairs, lambda drawn: cohen(*zip(*drawn)), fewest=fewest)


def _only(items: Items, annotators: set[str]) -> Items:
    return {
        name: {rater: said for rater, said in labels.items() if rater in annotators}
        for name, labels in items.items()
    }


def _share(hits: Sequence[bool]) -> Figure:
    return wilson(sum(hits), len(hits)) if len(hits) >= FEWEST else TooFew(len(hits))


def _bias(hits: Sequence[bool]) -> Bias | TooFew:
    share = _share(hits)
    if isinstance(share, TooFew):
        return share
    from scipy.stats import binomtest

    return Bias(share, float(binomtest(sum(hits), len(hits)).pvalue))
