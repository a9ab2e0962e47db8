"""What can be compared in a file: comparisons, votes, candidates, or pairs of any format that is read. No torch."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple, TypeVar

from lite_align.data import formats, sources
from lite_align.data.types import Conversation, Pair
from lite_align.data.votes import Comparison, Vote
from lite_align.errors import DataError

T = TypeVar("T")


@dataclass(frozen=True)
class Items:
    """The comparisons of a file, each once, and the votes that it holds already.

    Attributes:
        comparisons: in the order of the file.
        votes: where the rows are votes.
        notes: what the rows were, what was left out and how often.
        sha256: of the file.
    """

    comparisons: tuple[Comparison, ...]
    votes: tuple[Vote, ...]
    notes: tuple[str, ...]
    sha256: str


class _Found(NamedTuple):
    """What one row gives; `left_out` says why a row gives fewer comparisons than it might."""

    comparisons: tuple[Comparison, ...] = ()
    vote: Vote | None = None
    left_out: str = ""


def read(path: str, *, pairs: int = 1) -> Items:
    """Read a file of comparisons, of votes, of candidates as `sample` writes them, or of preference pairs.

    Of candidates come up to `pairs` pairs of different answers a prompt, the first two different answers first. Of a
    preference pair `a` is the chosen answer; whoever is asked does not see that.

    Raises:
        DataError: rows cannot be read (all of them are listed), or nothing is left to compare.
    """
    table = sources.read(path)
    found, what = _found(table, pairs)
    comparisons = [comparison for row in found for comparison in row.comparisons]
    unique: dict[str, Comparison] = {}
    for comparison in comparisons:
        unique.setdefault(comparison.id, comparison)
    left_out = Counter(row.left_out for row in found if row.left_out)
    votes = tuple(row.vote for row in found if row.vote)
    notes = [
        f"{len(table.rows):,} rows: {what}",
        *table.notes,
        *(f"left out: {count:,} {why}" for why, count in left_out.items()),
    ]
    if (again := len(comparisons) - len(unique)) and not votes:
        notes.append(f"{again:,} comparisons stand in the file more than once and count once")
    if not unique:
        raise DataError(
            f"{path} holds nothing to compare",
            details=notes,
            remedy="Give prompts with two different answers each.",
        )
    return Items(tuple(unique.values()), votes, tuple(notes), table.sha256)


def _found(table: sources.RawTable, pairs: int) -> tuple[list[_Found], str]:
    first = table.rows[0][1]
    if {"a", "b", "prompt"} <= first.keys():
        what, one = ("votes", _vote) if "choice" in first else ("comparisons", _comparison)
        return each(table, one, what), what
    if is_candidates(first):
        return each(table, lambda row: _candidates(row, pairs), "candidates"), "candidates"
    detection = formats.detect(table, wanted="pair")
    converted = formats.convert(table, detection)
    rows = [_pair(row) for row in converted if isinstance(row, Pair)]
    return rows, f"{detection.description} ({detection.name})"


def each(table: sources.RawTable, one: Callable[[Mapping[str, Any]], T], what: str) -> list[T]:
    """What every row gives.

    Args:
        table: rows.
        one: of a row; ValueError where it is not what it should be.
        what: it should be, for messages.

    Raises:
        DataError: rows are not; all of them are listed.
    """
    found: list[T] = []
    problems: list[str] = []
    for source, row in table.rows:
        try:
            found.append(one(row))
        except ValueError as error:
            problems.append(f"{source} {error}")
    if problems:
        raise DataError(
            f"{len(problems):,} of {len(table.rows):,} rows in {table.name} are no {what}, as the first row is",
            details=problems,
            remedy="Mend those rows, or put rows of another kind into a file of their own.",
        )
    return found


def _comparison(row: Mapping[str, Any]) -> _Found:
    return _different([Comparison.read(row)])


def _vote(row: Mapping[str, Any]) -> _Found:
    vote = Vote.read(row)
    return _different([vote.comparison])._replace(vote=vote)


def _different(comparisons: Sequence[Comparison]) -> _Found:
    kept = tuple(one for one in comparisons if one.a != one.b)
    return _Found(kept, left_out="" if kept else "with two equal answers")


def is_candidates(row: Mapping[str, Any]) -> bool:
    """Whether a row holds answers to a prompt, as `sample` writes them."""
    answers = row.get("answers")
    return isinstance(answers, list) and any(isinstance(one, Mapping) and "text" in one for one in answers)


def _candidates(row: Mapping[str, Any], pairs: int) -> _Found:
    """Pairs of different answers: 1 and 2, then 3 with each of them, then 4, and so on."""
    different = {one["text"]: one.get("model") for one in reversed(answers_of(row))}
    ordered = list(reversed(different.items()))
    comparisons = [
        Comparison.read(
            {"prompt": row.get("prompt"), "category": row.get("category")}
            | {"a": a, "model_a": model_a, "b": b, "model_b": model_b}
        )
        for (a, model_a), (b, model_b) in _earliest_first(ordered)
    ]
    left_out = "" if comparisons else "prompts without two different answers"
    return _Found(tuple(comparisons[:pairs]), left_out=left_out)


def answers_of(row: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The answers of a row of candidates.

    Raises:
        ValueError: it is none.
    """
    answers = row.get("answers")
    if not is_candidates(row) or not all(_is_answer(one) for one in answers or ()):
        raise ValueError('"answers" must be a list of objects with "text"')
    return answers or ()


def _earliest_first(answers: Sequence[tuple[str, Any]]) -> Iterator[tuple[tuple[str, Any], tuple[str, Any]]]:
    numbers = sorted(combinations(range(len(answers)), 2), key=lambda pair: pair[::-1])
    return ((answers[a], answers[b]) for a, b in numbers)


def _is_answer(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("text"), str)


def _pair(row: Pair) -> _Found:
    a, b = _only_text(row.chosen), _only_text(row.rejected)
    if a is None or b is None:
        return _Found(left_out="pairs whose answers have several turns")
    return _different([Comparison(prompt=row.prompt, a=a, b=b, category=row.category)])


def _only_text(answer: Conversation) -> str | None:
    return answer[0].content if len(answer) == 1 else None
