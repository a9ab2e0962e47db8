"""What votes on a comparison come to: the answer that most prefer and what that weighs, or why there is none."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from lite_align.data.votes import Comparison, Vote, latest

_SILENT = ("skip", "none")


@dataclass(frozen=True, slots=True)
class Decision:
    """What all votes on a comparison come to.

    Attributes:
        comparison: as the first of the votes has it; the others may have its answers the other way round.
        votes: that count, those that were skipped left out.
        better: the answer that has more votes than the other one, than tie and than bad; None if there is none.
        weight: what a pair of the better answer and the other one weighs, see `weight`; 0 without a better one.
        why: why there is no better one, in words.
    """

    comparison: Comparison
    votes: tuple[Vote, ...]
    better: str | None
    weight: float
    why: str = ""

    @property
    def worse(self) -> str:
        """The answer that is not the better one."""
        return self.comparison.b if self.better == self.comparison.a else self.comparison.a


def weight(better: int, worse: int, votes: int) -> float:
    """Weight of a pair: 2 p − 1 for the smoothed share p that prefers the better answer.

    p = (better + neither / 2 + 1) / (votes + 2), Laplace's rule of succession (1812), with a vote for neither as half a
    vote for each; so the weight is (better − worse) / (votes + 2). With a soft label of p the loss is
    −p log σ(h) − (1 − p) log σ(−h) (cDPO), whose gradient at h = 0 is that of the plain loss times 2 p − 1. Only ratios
    matter: of pairs with one vote each, all weigh 1/3. One vote to none weighs 1/3, five to none 5/7, two to one 1/5.
    """
    return (better - worse) / (votes + 2)


def decide(votes: Iterable[Vote]) -> list[Decision]:
    """Decisions on all comparisons that somebody voted on, in the order in which they appear.

    The last vote of an annotator counts, and every annotator counts alike.
    """
    given = list(votes)
    comparisons = {vote.comparison.id: vote.comparison for vote in reversed(given)}
    counting: dict[str, list[Vote]] = {vote.comparison.id: [] for vote in given}
    skipped = Counter[str]()
    for vote in latest(given):
        if vote.choice in _SILENT:
            skipped[vote.comparison.id] += 1
        else:
            counting[vote.comparison.id].append(vote)
    return [_decision(comparisons[name], found, skipped[name]) for name, found in counting.items()]


def _decision(comparison: Comparison, votes: list[Vote], skipped: int) -> Decision:
    said = Counter(meant(vote, comparison) for vote in votes)
    if not said:
        why = f"skipped by {skipped:,}" if skipped else "every vote was taken back"
        return Decision(comparison, (), None, 0.0, why)
    (most, count), *rest = said.most_common(2)
    if rest and rest[0][1] == count:
        listed = ", ".join(f"{number:,} {choice}" for choice, number in sorted(said.items()))
        return Decision(comparison, tuple(votes), None, 0.0, f"annotators differ: {listed}")
    if most not in ("a", "b"):
        what = "both answers are bad" if most == "bad" else "a tie"
        return Decision(comparison, tuple(votes), None, 0.0, f"{what}, say {count:,} of {len(votes):,}")
    other = said["b" if most == "a" else "a"]
    better = comparison.a if most == "a" else comparison.b
    return Decision(comparison, tuple(votes), better, weight(count, other, len(votes)))


def meant(vote: Vote, comparison: Comparison) -> str:
    """The choice of a vote in terms of a comparison whose answers may stand the other way round."""
    if vote.choice not in ("a", "b") or vote.comparison.a == comparison.a:
        return vote.choice
    return "b" if vote.choice == "a" else "a"
