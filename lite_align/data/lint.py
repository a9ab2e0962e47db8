"""What rows can be wrong about without being malformed: found, counted, left out, named by row."""

import json
import os
import tempfile
import unicodedata
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from lite_align.data.sources import RawTable
from lite_align.data.types import Chat, Conversation, Pair, Prompt, Rated, Row, Source, Unused
from lite_align.errors import DataError, UserError

RULES = {
    "LA101": "unreadable",
    "LA106": "prompt or scores contradict the columns",
    "LA205": "no answer, or turns that the chat template cannot write",
    "LA206": "control tokens in text",
    "LA207": "rewritten by the chat template",
    "LA208": "too long",
    "LA209": "identical after truncation",
    "LA301": "identical",
    "LA302": "duplicate or contradicting",
    "LA303": "empty",
    "LA305": "length bias",
    "LA306": "one source dominates",
    "LA308": "tied",
    "LA309": "one thumb only",
    "LA310": "no preference",
}
EXPECTED = frozenset({"LA310"})
"""Rules that name no fault of a file: what is left out by them does not count against `data.max_dropped`."""

_ENOUGH = 20  # pairs; a share of fewer says nothing
_BALANCED = (0.4, 0.6)
_DOMINANT = 0.8


@dataclass(frozen=True)
class Dropped:
    """A row that is left out, and why."""

    source: Source
    reason: str

    def __str__(self) -> str:
        return f"{self.source} {self.reason}"


@dataclass(frozen=True)
class Finding:
    """Something that holds for the file as a whole and that a reader should know."""

    rule: str
    text: str


RowT = TypeVar("RowT", bound=Row)


@dataclass(frozen=True)
class Lint(Generic[RowT]):
    """The rows to train on, those left out by rule, and warnings."""

    kept: list[RowT]
    dropped: dict[str, list[Dropped]]
    warnings: list[Finding]

    @property
    def counts(self) -> dict[str, int]:
        """Number of rows left out by each rule."""
        return {rule: len(rows) for rule, rows in self.dropped.items()}


def lint_pairs(pairs: Sequence[Pair]) -> Lint[Pair]:
    """Leave out pairs that teach nothing or contradict each other, and warn of biases in the rest.

    Left out: LA301 identical answers, LA303 empty answers, LA308 equal scores, LA310 a weight of 0, LA302 repetitions
    (the first stays) and contradictions (A over B and B over A: none stays). Warnings: LA106, LA305, LA306.
    """
    dropped: dict[str, list[Dropped]] = {}
    meaningful: list[tuple[Pair, _Key]] = []
    for pair in pairs:
        key = (_turns_key(pair.prompt), _turns_key(pair.chosen), _turns_key(pair.rejected))
        fault = _fault(pair, key)
        if fault is None:
            meaningful.append((pair, key))
        else:
            dropped.setdefault(fault[0], []).append(Dropped(pair.source, fault[1]))
    kept = _without_repetitions(meaningful, dropped)
    return Lint(kept, dict(sorted(dropped.items())), _warnings(kept))


def lint_chats(chats: Sequence[Chat]) -> Lint[Chat]:
    """Leave out conversations that teach nothing, and warn of what is odd about the rest.

    Left out: LA205 no answer, LA303 empty answers, LA302 repetitions (the first stays; other answers to the same
    prompt stay too). Warnings: LA205 turns of the assistant before the first question, LA306.
    """
    dropped: dict[str, list[Dropped]] = {}
    kept: list[Chat] = []
    first: dict[tuple[bool, _Turns], Source] = {}
    for chat in chats:
        key = (chat.raw, _turns_key(chat.messages))
        fault = _chat_fault(chat)
        if fault is None and key in first:
            fault = "LA302", f"repeats {first[key]}"
        if fault is not None:
            dropped.setdefault(fault[0], []).append(Dropped(chat.source, fault[1]))
            continue
        first[key] = chat.source
        kept.append(chat)
    found = [_openings(kept), _dominance(kept, "conversations")]
    return Lint(kept, dict(sorted(dropped.items())), [finding for finding in found if finding is not None])


def lint_prompts(prompts: Sequence[Prompt]) -> Lint[Prompt]:
    """Leave out prompts that were there before (LA302): what is sampled to them would count twice."""
    dropped: dict[str, list[Dropped]] = {}
    first: dict[_Turns, Source] = {}
    kept: list[Prompt] = []
    for prompt in prompts:
        earlier = first.setdefault(_turns_key(prompt.messages), prompt.source)
        if earlier is prompt.source:
            kept.append(prompt)
        else:
            dropped.setdefault("LA302", []).append(Dropped(prompt.source, f"repeats {earlier}"))
    return Lint(kept, dropped, [])


def lint_rated(rated: Sequence[Rated]) -> Lint[Rated]:
    """Leave out answers with a thumb that teach nothing or contradict each other, and warn of biases in the rest.

    Left out: LA303 empty answers, LA310 a weight of 0, LA302 repetitions (the first stays) and answers with both thumbs
    (none stays). Warnings: LA106, LA305, LA306.

    Raises:
        DataError: all thumbs are up, or all are down (LA309).
    """
    dropped: dict[str, list[Dropped]] = {}
    kept: list[Rated] = []
    answered = [((_turns_key(row.prompt), _turns_key(row.answer)), row) for row in rated]
    first: dict[tuple[tuple[_Turns, _Turns], bool], Source] = {}
    for key, row in answered:
        first.setdefault((key, row.label), row.source)
    seen: set[tuple[tuple[_Turns, _Turns], bool]] = set()
    for key, row in answered:
        opposite = first.get((key, not row.label))
        if any(turn.role == "assistant" and not turn.content.strip() for turn in row.answer):
            fault = "LA303", "the answer is empty"
        elif row.weight == 0:
            fault = "LA310", "its weight is 0"
        elif opposite is not None:
            other = "down" if row.label else "up"
            fault = "LA302", f"has the answer to which {opposite} gives a thumb {other}, for the same prompt"
        elif (key, row.label) in seen:
            fault = "LA302", f"repeats {first[key, row.label]}"
        else:
            seen.add((key, row.label))
            kept.append(row)
            continue
        dropped.setdefault(fault[0], []).append(Dropped(row.source, fault[1]))
    _require_both_thumbs(kept)
    found = [_rated_echoes(kept), _rated_length_bias(kept), _dominance(kept, "thumbs")]
    return Lint(kept, dict(sorted(dropped.items())), [finding for finding in found if finding is not None])


def unused(rows: Sequence[Row]) -> dict[str, list[Dropped]]:
    """Rows that their format left out as a matter of course, by rule."""
    dropped: dict[str, list[Dropped]] = {}
    for row in rows:
        if isinstance(row, Unused):
            dropped.setdefault(row.rule, []).append(Dropped(row.source, row.reason))
    return dropped


def _require_both_thumbs(rated: Sequence[Rated]) -> None:
    """Refuse rows of which nothing can be learned but to like, or to avoid, every answer (LA309)."""
    labels = {row.label for row in rated}
    if len(labels) != 1:
        return
    up = labels == {True}
    word, missing, deed = ("up", "down", "likelier") if up else ("down", "up", "less likely")
    sft = " Answers that are all good can be imitated: lite-align sft." if up else ""
    raise DataError(
        f"LA309: all {len(rated):,} thumbs in {rated[0].source.file} are {word}, so nothing tells a good answer from "
        f"a bad one: every answer would only become {deed}",
        remedy=f"Add answers with a thumb {missing}.{sft}",
    )


_Turns = tuple[tuple[str, str], ...]
_Key = tuple[_Turns, _Turns, _Turns]


def _turns_key(turns: Conversation) -> _Turns:
    return tuple((turn.role, unicodedata.normalize("NFC", turn.content).strip()) for turn in turns)


def _fault(pair: Pair, key: _Key) -> tuple[str, str] | None:
    """Return rule and reason where a pair by itself teaches nothing."""
    empty = [
        name
        for name, turns in (("chosen", key[1]), ("rejected", key[2]))
        if any(role == "assistant" and not text for role, text in turns)
    ]
    if key[1] == key[2]:
        return "LA301", '"chosen" and "rejected" are identical' + (" (and empty)" if empty else "")
    if empty:
        return "LA303", f'"{" and ".join(empty)}" is empty'
    if pair.margin == 0:
        return "LA308", "both answers are rated alike"
    if pair.weight == 0:
        return "LA310", "its weight is 0"
    return None


def _chat_fault(chat: Chat) -> tuple[str, str] | None:
    """Return rule and reason where a conversation by itself teaches nothing."""
    answers = [turn.content for turn in chat.messages if turn.role == "assistant"]
    if not answers or chat.messages[-1].role != "assistant":
        return "LA205", "ends without an answer"
    if not all(text.strip() for text in answers):
        return "LA303", "an answer is empty"
    return None


def _openings(chats: Sequence[Chat]) -> Finding | None:
    rows = [chat.source for chat in chats if not chat.raw and _opens(chat.messages)]
    if not rows:
        return None
    many = "conversation begins" if len(rows) == 1 else "conversations begin"
    what = "with the assistant: what it says before the first question is context, not trained as an answer"
    return Finding("LA205", f"{len(rows):,} {many} {what}: {_places(rows)}")


def _opens(messages: Conversation) -> bool:
    return next((turn.role for turn in messages if turn.role != "system"), "") == "assistant"


def _without_repetitions(pairs: Sequence[tuple[Pair, _Key]], dropped: dict[str, list[Dropped]]) -> list[Pair]:
    first: dict[_Key, Source] = {}
    for pair, key in pairs:
        first.setdefault(key, pair.source)
    kept: list[Pair] = []
    for pair, key in pairs:
        opposite = first.get((key[0], key[2], key[1]))
        if opposite is not None:
            reason = f"prefers the answer that {opposite} rejects, for the same prompt"
        elif first[key] is not pair.source:
            reason = f"repeats {first[key]}"
        else:
            kept.append(pair)
            continue
        dropped.setdefault("LA302", []).append(Dropped(pair.source, reason))
    return kept


def _warnings(pairs: Sequence[Pair]) -> list[Finding]:
    found = [_echoes(pairs), _contradicting_scores(pairs), _length_bias(pairs), _dominance(pairs, "pairs")]
    return [finding for finding in found if finding is not None]


def _echoes(pairs: Sequence[Pair]) -> Finding | None:
    """Find answers that begin with their prompt: columns that were built wrong."""
    rows = [pair.source for pair in pairs if _begins_with_prompt(pair.prompt, pair.chosen)]
    if not rows:
        return None
    many = "answer begins" if len(rows) == 1 else "answers begin"
    return Finding("LA106", f"{len(rows):,} chosen {many} with the prompt itself: {_places(rows)}")


def _begins_with_prompt(prompt: Conversation, answer: Conversation) -> bool:
    text = prompt[-1].content.strip()
    return len(text) >= 10 and answer[0].content.lstrip().startswith(text)


def _contradicting_scores(pairs: Sequence[Pair]) -> Finding | None:
    rows = [pair.source for pair in pairs if pair.margin is not None and pair.margin < 0]
    if not rows:
        return None
    what = "the rejected answer has the higher score"
    return Finding("LA106", f"in {len(rows):,} of {len(pairs):,} pairs {what}: {_places(rows)}")


def _length_bias(pairs: Sequence[Pair]) -> Finding | None:
    differences = [_length(pair.chosen) - _length(pair.rejected) for pair in pairs]
    differing = [difference for difference in differences if difference]
    if len(differing) < _ENOUGH:
        return None
    longer = sum(difference > 0 for difference in differing) / len(differing)
    if _BALANCED[0] <= longer <= _BALANCED[1]:
        return None
    mean = sum(differences) / len(differences)
    return Finding(
        "LA305", f"chosen is longer in {longer:.0%} of pairs (by {mean:+.0f} characters on average)"
    )


def _rated_echoes(rated: Sequence[Rated]) -> Finding | None:
    rows = [row.source for row in rated if _begins_with_prompt(row.prompt, row.answer)]
    if not rows:
        return None
    many = "answer begins" if len(rows) == 1 else "answers begin"
    return Finding("LA106", f"{len(rows):,} {many} with the prompt itself: {_places(rows)}")


def _rated_length_bias(rated: Sequence[Rated]) -> Finding | None:
    """Compare every thumb up with every thumb down: how often is the first one longer?"""
    ups, downs = (
        sorted(_length(row.answer) for row in rated if row.label == label) for label in (True, False)
    )
    if min(len(ups), len(downs)) < _ENOUGH:
        return None
    shorter = sum(bisect_left(downs, length) for length in ups)
    longer = sum(len(downs) - bisect_right(downs, length) for length in ups)
    if not shorter + longer:
        return None
    share = shorter / (shorter + longer)
    if _BALANCED[0] <= share <= _BALANCED[1]:
        return None
    mean = sum(ups) / len(ups) - sum(downs) / len(downs)
    what = "an answer with a thumb up is longer than one with a thumb down"
    return Finding("LA305", f"{what} in {share:.0%} of comparisons (by {mean:+.0f} characters on average)")


def _length(turns: Conversation) -> int:
    return sum(len(turn.content) for turn in turns if turn.role == "assistant")


def _dominance(rows: Sequence[Row], what: str) -> Finding | None:
    counts = Counter(row.category for row in rows if row.category is not None)
    if len(counts) < 2 or len(rows) < _ENOUGH:
        return None
    name, count = counts.most_common(1)[0]
    share = count / len(rows)
    if share < _DOMINANT:
        return None
    return Finding("LA306", f"{share:.0%} of {what} are of one of {len(counts)} categories: {name}")


def _places(rows: Sequence[Source]) -> str:
    more = f" and {len(rows) - 5:,} more" if len(rows) > 5 else ""
    return ", ".join(map(str, rows[:5])) + more


def too_many_dropped(
    dropped_counts: Mapping[str, int],
    total: int,
    max_dropped: float,
    *,
    rows: Sequence[Dropped] = (),
    file: str = "FILE",
) -> DataError | None:
    """Return the error for a file of which more than `max_dropped` (a share) or everything is left out.

    What is left out by a rule of `EXPECTED` is told, and counts only towards everything.

    `rows` are listed under the counts by rule; `file` is named in the remedy.
    """
    dropped = sum(dropped_counts.values())
    faults = sum(count for rule, count in dropped_counts.items() if rule not in EXPECTED)
    if not dropped or (dropped < total and faults <= max_dropped * total):
        return None
    counts = [f"{rule} {RULES.get(rule, '')}: {count:,}" for rule, count in dropped_counts.items()]
    if faults < dropped and faults <= max_dropped * total:
        return DataError(
            f"none of {total:,} rows in {file} prefers an answer",
            details=[*counts, *map(str, rows)],
            remedy="Add rows, or votes, that do.",
        )
    return DataError(
        f"{faults:,} of {total:,} rows ({faults / total:.1%}) in {file} would be left out; "
        f"at most {max_dropped:.1%} may be",
        details=[*counts, *map(str, rows)],
        remedy=f"Write a cleaned copy with: lite-align check {file} --fix clean.jsonl, or allow more with: "
        f"--set data.max_dropped={min(1.0, faults / total + 0.005):.2f}",
    )


def clean_rows(table: RawTable, dropped: Collection[Source]) -> list[Mapping[str, object]]:
    """Return the rows of a table, as they stand in the file, without those at the given places."""
    gone = set(dropped)
    return [row for source, row in table.rows if source not in gone]


def write_rows(rows: Sequence[Mapping[str, object]], out: Path) -> None:
    """Write one JSON object a line; the file appears whole or not at all, and never replaces another.

    Raises:
        UserError: `out` exists already or cannot be written.
    """
    lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", dir=out.parent, prefix=f".{out.name}.", encoding="utf-8", newline="\n", delete=False
        ) as stream:
            temporary = Path(stream.name)
            stream.write(lines)
            stream.flush()
            os.fsync(stream.fileno())
        os.link(temporary, out)  # unlike a rename, fails where `out` exists
    except FileExistsError:
        raise UserError(f"{out} exists already", remedy="Give another name for the cleaned copy.") from None
    except OSError as error:
        raise UserError(
            f"{out} cannot be written: {error.strerror or error}", remedy="Check the folder and its rights."
        ) from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
