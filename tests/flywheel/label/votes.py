"""Comparisons and votes for the tests of labelling."""

from lite_align.data.types import Message
from lite_align.data.votes import Choice, Comparison, Vote
from lite_align.flywheel.items import Items


def comparison(number: int, **known) -> Comparison:
    """The answers are `a-N` and `b-N`."""
    prompt = (Message("user", f"Question {number}?"),)
    return Comparison(
        prompt=prompt, a=f"a-{number}", b=f"b-{number}", category=f"group-{number % 2}", **known
    )


def vote(number: int, choice: Choice, annotator: str = "ann", **known) -> Vote:
    return Vote(comparison=comparison(number), choice=choice, annotator=annotator, **known)


def items(count: int, votes: tuple[Vote, ...] = ()) -> Items:
    return Items(tuple(map(comparison, range(count))), votes, (), "0" * 64)
