"""Votes of annotators, as `lite-align label` and `judge` write them: a row a vote, together the pairs they come to."""

from collections.abc import Sequence
from dataclasses import dataclass

from lite_align.data.formats.conversation import BadRow
from lite_align.data.formats.registry import Fields, Together, data_format
from lite_align.data.majority import Decision, decide
from lite_align.data.types import Message, Pair, Row, Source, Unused
from lite_align.data.votes import Vote

UNDECIDED = "LA310"


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteRow(Row):
    """A vote and where it stands."""

    vote: Vote


def put_together(rows: Sequence[Row]) -> Together:
    """One pair for each comparison that most prefer an answer of, weighted; the others with the reason."""
    votes = [row for row in rows if isinstance(row, VoteRow)]
    places: dict[str, Source] = {}
    for row in votes:
        places.setdefault(row.vote.comparison.id, row.source)
    decisions = decide(row.vote for row in votes)
    found: list[Row] = []
    for decision in decisions:
        one = decision.comparison
        source = places[one.id]
        if decision.better is None:
            found.append(Unused(source, one.category, one.id, rule=UNDECIDED, reason=decision.why))
            continue
        chosen, rejected = ((Message("assistant", text),) for text in (decision.better, decision.worse))
        pair = Pair(
            source,
            one.category,
            one.id,
            prompt=one.prompt,
            chosen=chosen,
            rejected=rejected,
            weight=decision.weight,
        )
        found.append(pair)
    return Together(found, _note(votes, decisions))


def _note(votes: Sequence[VoteRow], decisions: Sequence[Decision]) -> str:
    """How many votes of how many people there are, and how many of them do not count."""
    annotators, comparisons = len({row.vote.annotator for row in votes}), len(decisions)
    rest = len(votes) - sum(len(one.votes) for one in decisions)
    return (
        f"{len(votes):,} votes of {annotators:,} annotator{'s' * (annotators != 1)} "
        f"on {comparisons:,} comparison{'s' * (comparisons != 1)}"
        + f"; {rest:,} did not count: replaced, taken back or skipped"
        * (rest > 0)
    )


@data_format(
    "votes",
    "pair",
    "prompt as messages, a and b as text, with a choice and an annotator",
    {"prompt": "turns", "a": "text", "b": "text", "choice": "text", "annotator": "text"},
    together=put_together,
    note="the majority decides; a pair weighs (votes for − votes against) / (votes + 2)",
)
def votes(row: Fields) -> VoteRow:
    """Take the vote as it stands."""
    try:
        vote = Vote.read(row.row)
    except ValueError as error:
        raise BadRow(str(error)) from None
    row.prompt(vote.comparison.prompt)
    return VoteRow(row.source, vote.comparison.category, vote.comparison.id, vote=vote)
