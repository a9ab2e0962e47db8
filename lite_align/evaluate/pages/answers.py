"""Answers side by side with the words marked that only one of them has."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from lite_align.evaluate.folder import Record
from lite_align.evaluate.pages.texts import clean, text_of

MOST_WORDS = 1500  # comparing answers costs the square of their length
LEAST_COMMON = 0.25  # share of common words, below which marks cover nearly everything


@dataclass(frozen=True)
class Span:
    """A piece of an answer; `mark` is "", "del" (only before) or "ins" (only after)."""

    text: str
    mark: str


@dataclass(frozen=True)
class Side:
    """One answer of several to a prompt.

    Attributes:
        title: whose it is.
        note: what else is known of it: "27 tokens".
        spans: its text in pieces.
        colour: number of its run, where several are shown; 0: none.
        best: it was preferred.
    """

    title: str
    note: str
    spans: list[Span]
    colour: int = 0
    best: bool = False


@dataclass(frozen=True)
class Shown:
    """A prompt with answers to it; `group` numbers its category.

    `outcome` says what was judged of them, and `result` numbers it.
    """

    prompt: str
    category: str
    group: int
    sides: list[Side]
    outcome: str = ""
    result: int = 0


def before_and_after(rows: Sequence[Record]) -> list[Shown]:
    """Rows of answers.jsonl, their differences marked."""
    numbers = group_numbers(rows)
    return [
        Shown(text_of(row.get("prompt")), category_of(row), numbers[category_of(row)], _sides(row))
        for row in rows
    ]


def _sides(row: Record) -> list[Side]:
    """Both answers, or the one if nothing has changed."""
    texts = [text_of(row.get(name)) for name in ("before", "after")]
    notes = [tokens_note(row.get(f"{name}_tokens")) for name in ("before", "after")]
    if texts[0] == texts[1]:
        return [Side("Before and after", notes[1], [Span(texts[1], "")])]
    before, after = differences(*texts)
    return [Side("Before", notes[0], before), Side("After", notes[1], after)]


def category_of(row: Record) -> str:
    """The category of a row; "" without one."""
    return clean(row.get("category") or "")


def group_numbers(rows: Sequence[Record]) -> dict[str, int]:
    """A number for each category, in the order of their names."""
    return {name: number for number, name in enumerate(sorted({category_of(row) for row in rows}))}


def groups(shown: Sequence[Shown]) -> list[tuple[int, str]]:
    """Numbers and names of the categories that are shown."""
    return sorted({(one.group, one.category) for one in shown})


def tokens_note(tokens: object) -> str:
    """A number of tokens; "" where it is not known."""
    return f"{tokens:,} tokens" if isinstance(tokens, int) and not isinstance(tokens, bool) else ""


def differences(before: str, after: str) -> tuple[list[Span], list[Span]]:
    """Two texts in spans of words that both have and words that only one has.

    "a b" and "a b c" give [a b] and [a b], ins [c]. A single common word between two changes counts as changed,
    and texts with almost nothing in common, or too long to compare, stay unmarked: marks would hide them.
    """
    old, new = (re.findall(r"\S+\s*|\s+", text) for text in (before, after))
    if max(len(old), len(new)) > MOST_WORDS:
        return [Span(before, "")], [Span(after, "")]
    matcher = difflib.SequenceMatcher(
        None, [w.strip() for w in old], [w.strip() for w in new], autojunk=False
    )
    if matcher.ratio() < LEAST_COMMON:
        return [Span(before, "")], [Span(after, "")]
    left: list[Span] = []
    right: list[Span] = []
    changes = matcher.get_opcodes()
    for number, (kind, a, b, c, d) in enumerate(changes):
        same = kind == "equal" and (b - a > 1 or number in (0, len(changes) - 1))
        _extend(left, "".join(old[a:b]), "" if same else "del")
        _extend(right, "".join(new[c:d]), "" if same else "ins")
    return left, right


def _extend(spans: list[Span], text: str, mark: str) -> None:
    if text and spans and spans[-1].mark == mark:
        spans[-1] = Span(spans[-1].text + text, mark)
    elif text:
        spans.append(Span(text, mark))
