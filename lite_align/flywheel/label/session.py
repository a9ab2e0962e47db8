"""A session of labelling, whatever shows it: the next question, votes and their taking back, progress, agreement."""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median
from typing import Literal, cast, get_args

from lite_align.data.votes import Choice, Comparison, Vote
from lite_align.errors import UserError
from lite_align.evaluate.agreement import FEWEST, cohen, label
from lite_align.flywheel.items import Items
from lite_align.flywheel.label import order
from lite_align.flywheel.label.ballot import Ballot, Tally
from lite_align.flywheel.label.setup import Setup, rubric_hash

HIDDEN_VOTES = 10
"""Votes of one's own before one sees how much one agrees with others."""

RECENT = 20
"""Votes from which the time left is estimated."""

LONGEST_NAME, LONGEST_NOTE = 60, 10_000

Said = Literal["first", "second", "tie", "bad", "skip"]
"""What an annotator says, who sees a first and a second answer and not which is a and which is b."""

SAID: tuple[str, ...] = get_args(Said)

KNOWN_ANSWERS, YOURSELF = "\0known answers", "\0yourself"
"""With whom an annotator is compared besides others: the calibration items, and earlier votes of their own. No
annotator can have such a name."""


class NotAsked(Exception):
    """A vote on something that is not the next question: it was answered in another window, or before a restart."""


@dataclass(frozen=True)
class Question:
    """What an annotator is asked now.

    Attributes:
        slot: which comparison, and whether once more.
        comparison: the prompt and its answers.
        first: the answer that is shown first.
        note: what the annotator wrote when this was answered and taken back.
    """

    slot: order.Slot
    comparison: Comparison
    first: order.Side
    note: str

    @property
    def ticket(self) -> str:
        """Names the question in a vote; says nothing about the order of the answers."""
        return f"{self.slot.comparison}.{self.slot.turn}"

    @property
    def answers(self) -> tuple[str, str]:
        """The answers as they are shown."""
        a, b = self.comparison.a, self.comparison.b
        return (a, b) if self.first == "a" else (b, a)

    def choice(self, said: Said) -> Choice:
        """What was said, in terms of the comparison."""
        second: order.Side = "b" if self.first == "a" else "a"
        shown: dict[str, Choice] = {"first": self.first, "second": second}
        return shown.get(said) or cast(Choice, said)


@dataclass(frozen=True)
class Progress:
    """How far an annotator is; `seconds_left` is None before anything was timed.

    `categories` gives answered and all questions of each category, in the order of the file.
    """

    done: int
    total: int
    seconds_left: float | None
    categories: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Shared:
    """How often an annotator said the same as somebody else; `whom` is another annotator or one of the two below."""

    whom: str
    equal: int
    count: int
    kappa: float | None = None

    @classmethod
    def of(cls, whom: str, both: Sequence[tuple[Hashable, Hashable]]) -> "Shared":
        """Of pairs of labels; Cohen's kappa where there are at least ten."""
        kappa = cohen(*zip(*both)) if len(both) >= FEWEST else None
        return cls(whom, sum(own == theirs for own, theirs in both), len(both), kappa)


class Session:
    """Labelling of the items of a file by any number of annotators.

    Args:
        items: what is asked.
        ballot: where votes go.
        setup: seed, repeats and rubrics.
        rubric: text that is shown.
        disagreements: ask first what others differ on.
        now: the time of a vote.
    """

    def __init__(
        self,
        items: Items,
        ballot: Ballot,
        setup: Setup,
        rubric: str,
        *,
        disagreements: bool = False,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.ballot, self.setup, self.rubric = ballot, setup, rubric
        self.comparisons = {comparison.id: comparison for comparison in items.comparisons}
        self._earlier = Tally(items.votes)
        self._disagreements = disagreements
        self._now = now
        self._plans: dict[str, list[order.Slot]] = {}

    def question(self, annotator: str) -> Question | None:
        """The next question, or None when all were answered."""
        tally = self.ballot.tally
        taken_back = {given.comparison: given.vote.note or "" for given in tally.taken_back(annotator)}
        disputed = self._disputed() if self._disagreements else ()
        slot = order.upcoming(self._open(annotator), taken_back=list(taken_back), disputed=disputed)
        if slot is None:
            return None
        note = taken_back.get(slot.comparison, "")
        side = order.first(slot, seed=self.setup.seed, annotator=annotator)
        return Question(slot, self.comparisons[slot.comparison], side, note)

    def vote(
        self, annotator: str, ticket: str, said: Said, *, seconds: float | None = None, note: str = ""
    ) -> Vote:
        """Write what an annotator said of the question with this ticket.

        Raises:
            NotAsked: it is not the annotator's next question; nothing was written.
            DiskFull, UserError: it could not be written.
        """
        question = self.question(annotator)
        if question is None or question.ticket != ticket:
            raise NotAsked(ticket)
        vote = Vote(
            comparison=question.comparison,
            choice=question.choice(said),
            annotator=annotator,
            first=question.first,
            seconds=None if seconds is None else round(seconds, 2),
            rubric=rubric_hash(self.rubric),
            note=note.strip() or None,
            time=self._time(),
        )
        self.ballot.append(vote)
        return vote

    def undo(self, annotator: str) -> Vote | None:
        """Take back the annotator's last vote that stands, and return it; it is the next question.

        Votes on comparisons that are not in the file stay as they are.
        """
        standing = self.ballot.tally.standing(annotator)
        last = next(
            (given.vote for given in reversed(standing) if given.comparison in self.comparisons), None
        )
        if last is not None:
            taken = Vote(
                comparison=last.comparison,
                choice="none",
                annotator=annotator,
                note=last.note,
                time=self._time(),
            )
            self.ballot.append(taken)
        return last

    def progress(self, annotator: str) -> Progress:
        """How far an annotator is, and how long the rest will take at the pace of the last 20 votes."""
        slots, still_open = self._plan(annotator), self._open(annotator)
        timed = [given.vote.seconds for given in self.ballot.tally.standing(annotator)]
        recent = [seconds for seconds in timed if seconds is not None][-RECENT:]
        total, rest = (
            Counter(self.comparisons[slot.comparison].category for slot in some)
            for some in (slots, still_open)
        )
        return Progress(
            done=len(slots) - len(still_open),
            total=len(slots),
            seconds_left=median(recent) * len(still_open) if recent else None,
            categories={
                category: (total[category] - rest[category], total[category])
                for category in dict.fromkeys(one.category for one in self.comparisons.values())
                if category is not None
            },
        )

    def agreement(self, annotator: str) -> list[Shared] | None:
        """Equal votes with each other annotator, with the calibration items and with oneself; None below ten votes.

        Votes that cannot say are left out.
        """
        standing = self.ballot.tally.standing(annotator)
        if len(standing) < HIDDEN_VOTES:
            return None
        pairs: dict[str, list[tuple[str | None, str | None]]] = {}
        for name, comparison in self.comparisons.items():
            said = {who: label(vote.comparison, vote.choice) for who, vote in self._counting(name).items()}
            if (own := said.pop(annotator, None)) is None:
                continue
            for other, theirs in said.items():
                pairs.setdefault(other, []).append((own, theirs))
            if comparison.expected is not None:
                pairs.setdefault(KNOWN_ANSWERS, []).append((own, label(comparison, comparison.expected)))
        before: dict[str, str | None] = {}
        for name, vote in standing:
            said_now = label(vote.comparison, vote.choice)
            if name in before:
                pairs.setdefault(YOURSELF, []).append((before[name], said_now))
            before[name] = said_now
        told = {whom: [pair for pair in both if None not in pair] for whom, both in pairs.items()}
        return [Shared.of(whom, both) for whom, both in told.items() if both]

    def _plan(self, annotator: str) -> list[order.Slot]:
        if annotator not in self._plans:
            seed, repeats = self.setup.seed, self.setup.repeats
            self._plans[annotator] = order.plan(
                list(self.comparisons), seed=seed, annotator=annotator, repeats=repeats
            )
        return self._plans[annotator]

    def _open(self, annotator: str) -> list[order.Slot]:
        answered = (given.comparison for given in self.ballot.tally.standing(annotator))
        return order.still_open(self._plan(annotator), answered)

    def _counting(self, comparison: str) -> dict[str, Vote]:
        """The votes on a comparison that count, by annotator: of the file that is labelled and of the file of votes."""
        earlier, own = self._earlier.counting, self.ballot.tally.counting
        return {**earlier.get(comparison, {}), **own.get(comparison, {})}

    def _disputed(self) -> set[str]:
        """Comparisons on which two annotators said different things; one that cannot say does not differ."""
        found: set[str] = set()
        for name in self.comparisons:
            votes = self._counting(name).values()
            if len({label(vote.comparison, vote.choice) for vote in votes} - {None}) > 1:
                found.add(name)
        return found

    def _time(self) -> str:
        return self._now().isoformat(timespec="milliseconds")


def annotator_name(text: str) -> str:
    """The name of an annotator as it is stored.

    Raises:
        UserError: it is empty, longer than 60 characters, or has characters that do not show.
    """
    name = " ".join(text.split())
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise UserError(
            f"The name of an annotator has 1 to {LONGEST_NAME} characters that show.",
            remedy="Give another name.",
        )
    return name
