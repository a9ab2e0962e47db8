"""What a judge is, what it says of two answers in either order, and how that becomes votes. No torch.

Judges like the answer that stands first (arXiv 2306.05685, section 3.3). So all but those that cannot see an order are
asked twice, and an answer is chosen only if it was chosen in both orders.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from statistics import fmean
from typing import Literal, Protocol

from lite_align.data.votes import Comparison, Source, Vote
from lite_align.evaluate.statistics import Interval, mean
from lite_align.flywheel.judges import aimed

Verdict = Literal["a", "b", "tie"]

_OTHER: Mapping[Verdict, Verdict] = {"a": "b", "b": "a", "tie": "tie"}

MARGIN = 0.02
"""A probability no further than this from one half is a tie."""

Advance = Callable[[int], None]
"""Is told how many more comparisons are judged."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a judge said of two answers, of which the first one shown is called `a`.

    Attributes:
        verdict: None where it said nothing that counts.
        preference: probability that `a` is better, of a judge that gives one.
        note: its reason.
        problem: why there is no verdict: the kind, and after a colon what happened.
    """

    verdict: Verdict | None
    preference: float | None = None
    note: str = ""
    problem: str | None = None

    @classmethod
    def likely(cls, preference: float) -> "Reply":
        """The reply of a judge that gives a probability."""
        return cls(decided(preference), preference)

    @classmethod
    def failed(cls, kind: str, message: str = "") -> "Reply":
        """No verdict, and why."""
        return cls(None, problem=f"{kind}: {message}" if message else kind)

    def turned(self) -> "Reply":
        """The same with `a` and `b` exchanged."""
        verdict = None if self.verdict is None else _OTHER[self.verdict]
        return replace(
            self, verdict=verdict, preference=None if self.preference is None else 1 - self.preference
        )


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge says of a comparison.

    Attributes:
        choice: the better answer; a tie too where the orders differ, or where there is a problem.
        preference: probability that `a` is better, the mean of both orders; None where there is none.
        said: the verdicts with `a` shown first and with `b` shown first, None where there was none; nothing of a judge
            that sees no order.
        note: the reason that it gave, of the first order.
        problem: why something is missing: a refusal, an answer against the schema, a timeout.
        flagged: what in the answers is aimed at a judge (see `aimed`).
    """

    choice: Verdict
    preference: float | None = None
    said: tuple[Verdict | None, Verdict | None] | None = None
    note: str = ""
    problem: str | None = None
    flagged: tuple[str, ...] = ()


class Judge(Protocol):
    """Says which of two answers is better."""

    @property
    def name(self) -> str:
        """The annotator of its votes: what it is, and of what contents, so that another judge has another name."""
        ...

    @property
    def kind(self) -> Source:
        """Of its votes."""
        ...

    @property
    def rubric(self) -> str | None:
        """Hash of what it judges by, if it is told."""
        ...

    def judge(self, comparisons: Sequence[Comparison], advance: Advance = ...) -> list[Judgement]:
        """A judgement of every comparison; what fails is a tie with a problem."""
        ...

    def tell(self) -> list[str]:
        """What it took so far, for people."""
        ...

    def close(self) -> None:
        """End what it holds; a second call does nothing."""
        ...


def decided(preference: float) -> Verdict:
    """The verdict of a probability that `a` is better."""
    if abs(preference - 0.5) <= MARGIN:
        return "tie"
    return "a" if preference > 0.5 else "b"


def orderless(comparison: Comparison, reply: Reply) -> Judgement:
    """The judgement of a judge that sees no order."""
    flagged = aimed.flags(comparison)
    return Judgement(
        reply.verdict or "tie", reply.preference, problem=reply.problem, note=reply.note, flagged=flagged
    )


def in_both_orders(comparison: Comparison, first: Reply, second: Reply) -> Judgement:
    """The judgement of what was said with `a` shown first, and with `b` shown first.

    `second` is as it was said: its `a` is the answer that was shown first, which is our `b`.
    """
    second = second.turned()
    said = first.verdict, second.verdict
    known = [reply.preference for reply in (first, second) if reply.preference is not None]
    return Judgement(
        choice=first.verdict if first.verdict and first.verdict == second.verdict else "tie",
        preference=fmean(known) if len(known) == 2 else None,
        said=said,
        note=first.note,
        problem=first.problem or second.problem,
        flagged=aimed.flags(comparison),
    )


def swapped(comparison: Comparison) -> Comparison:
    """The same comparison with its answers, and all that is known of them, exchanged."""
    known = comparison.expected
    return replace(
        comparison,
        a=comparison.b,
        b=comparison.a,
        model_a=comparison.model_b,
        model_b=comparison.model_a,
        expected=_OTHER[known] if known in ("a", "b") else known,
    )


def votes(judge: Judge, comparisons: Sequence[Comparison], judgements: Sequence[Judgement]) -> list[Vote]:
    """Judgements as rows of votes; the note says what is behind a choice: problem, flags, the reason given."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return [
        Vote(
            comparison=comparison,
            choice=judgement.choice,
            annotator=judge.name,
            kind=judge.kind,
            first="both" if judgement.said else None,
            rubric=judge.rubric,
            note=noted(judgement) or None,
            time=now,
            preference=judgement.preference,
        )
        for comparison, judgement in zip(comparisons, judgements, strict=True)
    ]


PROBLEM = "no verdict: "
"""How the note of a vote begins whose choice is a tie for want of a verdict."""


def noted(judgement: Judgement) -> str:
    """The note of a vote."""
    parts = [
        PROBLEM + judgement.problem if judgement.problem else "",
        f"flagged: {', '.join(judgement.flagged)}" if judgement.flagged else "",
        judgement.note,
    ]
    return " · ".join(part for part in parts if part)


def position_bias(judgements: Iterable[Judgement]) -> Interval | None:
    """How often the answer that was shown first is chosen, 0.5 is none: mean of comparisons, each asked in both orders.

    A tie counts half. None where no comparison has a verdict in both orders.
    """
    shares = [
        fmean((_share(first, "a"), _share(second, "b")))
        for first, second in (judgement.said for judgement in judgements if judgement.said)
        if first and second
    ]
    return mean(shares) if shares else None


def _share(verdict: Verdict, shown_first: Verdict) -> float:
    return 0.5 if verdict == "tie" else float(verdict == shown_first)


def problems(judgements: Iterable[Judgement]) -> Counter[str]:
    """Comparisons without a verdict in some order, by the kind of problem."""
    return Counter(one.problem.partition(":")[0] for one in judgements if one.problem)


def summary(judgements: Sequence[Judgement]) -> list[str]:
    """What people should know of some judgements: choices, position, problems, flags."""
    choices = Counter(judgement.choice for judgement in judgements)
    lines = [f"{len(judgements):,} judged: a {choices['a']:,} · b {choices['b']:,} · tie {choices['tie']:,}"]
    opposed = sum(one.said is not None and set(one.said) == {"a", "b"} for one in judgements)
    if bias := position_bias(judgements):
        lines.append(
            f"the answer shown first was chosen in {100 * bias.value:.0f} %; {opposed:,} of {bias.count:,} were "
            "chosen otherwise in the other order, and are ties"
        )
    if found := problems(judgements):
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in found.most_common())
        lines.append(f"{found.total():,} without a verdict, and ties: {kinds}")
    flagged = Counter(name for judgement in judgements for name in judgement.flagged)
    if flagged:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in flagged.most_common())
        lines.append(f"{sum(bool(one.flagged) for one in judgements):,} hold text aimed at a judge: {kinds}")
    return lines
