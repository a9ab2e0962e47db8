"""Does a judge agree with people? What its labels are worth is measured before they are used."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lite_align.data.votes import Vote
from lite_align.evaluate.agreement import WEAK, Figure, TooFew, items_of, kappa, most
from lite_align.evaluate.statistics import Interval
from lite_align.flywheel.agreement import figure_record, shown

FEWEST_COMMON = 20
"""Comparisons that people labelled too, without which a kappa is not computed."""


@dataclass(frozen=True)
class HumanAgreement:
    """Cohen's kappa of a judge with what most people say, over all comparisons and by category.

    Attributes:
        kappa: with the interval of a bootstrap; `count` comparisons in common.
        categories: of those that have enough comparisons in common, and `TooFew` of the others.
    """

    kappa: Figure
    categories: Mapping[str, Figure]

    @property
    def proved(self) -> bool:
        """Whether labels of the judge may be used."""
        return isinstance(self.kappa, Interval) and self.kappa.value >= WEAK

    @property
    def verdict(self) -> str:
        """One sentence for people."""
        if isinstance(self.kappa, TooFew):
            return (
                f"Whether the judge agrees with people is not known: comparisons in common: {self.kappa.why}."
            )
        return (
            f"The judge {_HOW[self.proved]}: kappa {shown(self.kappa)} over {self.kappa.count:,} comparisons."
        )

    def lines(self) -> list[str]:
        """The figures for people: one line for all, one for all categories."""
        categories = [
            f"{name} {shown(figure)}"
            for name, figure in self.categories.items()
            if isinstance(figure, Interval)
        ]
        few = sum(isinstance(figure, TooFew) for figure in self.categories.values())
        rest = [f"{few:,} categories with too few comparisons"] if few else []
        return [self.verdict, *([" · ".join([*categories, *rest])] if self.categories else [])]

    def record(self) -> dict[str, Any]:
        """As JSON: the figure of all comparisons, `kappa/CATEGORY` beside it, and whether labels may be used."""
        figures = {"kappa": self.kappa, **{f"kappa/{name}": one for name, one in self.categories.items()}}
        return {"proved": self.proved, "figures": {name: figure_record(one) for name, one in figures.items()}}


_HOW = {True: "agrees with people", False: f"does not agree with people enough (below {WEAK})"}


def against_humans(judged: Iterable[Vote], given: Iterable[Vote]) -> HumanAgreement:
    """How a judge's votes agree with those of people.

    Args:
        judged: votes of one judge.
        given: votes of whomever; those of people count, and of several of them what most say. "Both bad" is a tie
            here: a judge has no word for it.
    """
    votes = list(given)
    people = items_of(vote for vote in votes if vote.kind == "human")
    categories = {vote.comparison.id: vote.comparison.category for vote in votes}
    pairs: list[tuple[str | None, tuple[str, str]]] = []
    for name, labels in items_of(judged).items():
        theirs = most(map(_tied, people.get(name, {}).values()))
        if theirs is not None:
            (own,) = labels.values()
            pairs.append((categories[name], (_tied(own), theirs)))
    named = sorted({category for category, _ in pairs if category is not None})
    return HumanAgreement(
        kappa([both for _, both in pairs], fewest=FEWEST_COMMON),
        {
            name: kappa([both for category, both in pairs if category == name], fewest=FEWEST_COMMON)
            for name in named
        },
    )


def _tied(label: str) -> str:
    return "tie" if label == "bad" else label
