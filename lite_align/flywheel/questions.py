"""Prompts to answer in an evaluation or a comparison: of any file that lite-align reads, or held out by a run."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lite_align.data import formats, lint, sources
from lite_align.data.render import Renderer
from lite_align.data.split import prompt_key
from lite_align.data.types import Chat, Conversation, Pair, Prompt, Rated, Row, Tree
from lite_align.errors import DataError, UserError
from lite_align.recipe import DataOptions
from lite_align.stages import rows
from lite_align.stages.prompts import prompts as prompts_of
from lite_align.stages.rollouts import Asked
from lite_align.stages.training import procedure_of
from lite_align.train.finished import FinishedRun

Expect = Literal["refuse", "answer"]


@dataclass(frozen=True)
class Questions:
    """Different prompts in the order of their file.

    Attributes:
        name: of the file, for people.
        sha256: of its content.
        prompts: each once.
        columns: of the row of each prompt.
        repeated: rows that ask what another one asked before.
        left_out: prompts for which there is no room, and those beyond the number that was wanted.
    """

    name: str
    sha256: str
    prompts: tuple[Prompt, ...]
    columns: tuple[Mapping[str, Any], ...]
    repeated: int = 0
    left_out: tuple[str, ...] = field(default=())

    def told(self) -> str:
        """One line for people."""
        rest = [f"{self.repeated:,} repeated"] if self.repeated else []
        return " · ".join((f"{len(self.prompts):,} prompts of {self.name}", *rest, *self.left_out))

    def part(self, skip: int, most: int | None) -> "Questions":
        """So many from a place on, as if the file began anew at its end; all of them where `most` is None."""
        if most is None:
            return self
        numbers = [(skip + n) % len(self.prompts) for n in range(min(most, len(self.prompts)))]
        return replace(
            self,
            prompts=tuple(self.prompts[n] for n in numbers),
            columns=tuple(self.columns[n] for n in numbers),
        )

    def first(self, most: int) -> "Questions":
        """The first ones; how many were left out is kept."""
        if len(self.prompts) <= most:
            return self
        note = f"{len(self.prompts) - most:,} more left out (--prompts)"
        return replace(
            self, prompts=self.prompts[:most], columns=self.columns[:most], left_out=(*self.left_out, note)
        )


def read(path: str, *, marked: bool = False) -> Questions:
    """The prompts of a file of prompts, pairs, conversations or thumbs.

    Args:
        path: of the file.
        marked: whether rows may say what should happen with their prompt (see `expectation`).

    Raises:
        DataError: it cannot be read, or a mark is none.
    """
    table = sources.read(path)
    converted = formats.convert(table, formats.detect(table))
    columns = {str(source): row for source, row in table.rows}
    if marked:
        for source, row in table.rows:
            expectation(row, source)
    return _distinct(table.name, table.sha256, converted, columns)


def of_rows(name: str, sha256: str, found: Iterable[Row]) -> Questions:
    """The prompts of rows that were read already."""
    return _distinct(name, sha256, found, {})


def _distinct(
    name: str, sha256: str, found: Iterable[Row], columns: Mapping[str, Mapping[str, Any]]
) -> Questions:
    kept: dict[tuple[tuple[str, str], ...], Prompt] = {}
    count = 0
    for row in found:
        if not (messages := prompt_of(row)):
            continue
        count += 1
        key = (
            *((turn.role, turn.content) for turn in messages if turn.role == "system"),
            *prompt_key(messages),
        )
        kept.setdefault(key, Prompt(row.source, row.category, row.id, messages=messages))
    if not kept:
        raise DataError(f"{name} has no prompts to answer.", remedy="Give a file with prompts.")
    prompts = tuple(kept.values())
    found_columns = tuple(columns.get(str(prompt.source), {}) for prompt in prompts)
    return Questions(name, sha256, prompts, found_columns, count - len(prompts))


def prompt_of(row: Row) -> Conversation:
    """The turns that a row's answers follow; none of a raw text."""
    match row:
        case Prompt():
            return row.messages
        case Pair() | Rated() | Chat():
            return row.prompt
        case _:
            return ()


def expectation(columns: Mapping[str, Any], where: object) -> Expect | None:
    """What a row says should happen with its prompt.

    Raises:
        DataError: it says something else than `refuse` or `answer`.
    """
    value = columns.get("expect")
    if value in (None, "refuse", "answer"):
        return value
    raise DataError(f'{where}: "expect" is {value!r}.', remedy='Write "refuse" or "answer", or leave it out.')


@dataclass(frozen=True)
class Measurable:
    """Rows whose log-probs can be measured.

    Attributes:
        noun: what they are.
        examples: each with its tree.
        dropped: how many rows of the file were left out, by rule.
    """

    noun: str = ""
    examples: Sequence[tuple[Any, Tree]] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)


def held_out(run: FinishedRun, renderer: Renderer) -> Measurable:
    """The rows that a run held out, each with its tree.

    Raises:
        DataError: its file cannot be read, or is not what it was.
    """
    kind = procedure_of(run.recipe).kind(run.recipe)
    found = rows.held_out_of(kind, run.recipe, run.record.get("hashes") or {}, renderer)
    return Measurable(kind.noun, found)


def rows_of(path: str, max_length: int, renderer: Renderer) -> Measurable:
    """The pairs or conversations of a file; no rows of a file of prompts."""
    from lite_align.stages.chats import chats
    from lite_align.stages.pairs import PAIRS

    table = sources.read(path)
    kinds: dict[str, rows.Kind[Any]] = {"pair": PAIRS, "chat": chats("all_turns")}
    kind = kinds.get(formats.detect(table).kind)
    if kind is None:
        return Measurable(prompts_of(1).noun)
    options = DataOptions(path=path, max_length=max_length)
    found = rows.read(kind, options, path)
    rendered = rows.render(kind, found.rows, renderer, options)
    dropped = rows.counts(rows.merged((found.dropped, rendered.dropped)))
    return Measurable(kind.noun, rendered.examples, dropped)


def asked(questions: Questions, renderer: Renderer, positions: int, max_new_tokens: int) -> list[Asked]:
    """Every prompt rendered once; those that leave no room for an answer are an error, as they would not be compared.

    Raises:
        UserError: with the prompts that are too long.
        DataError: the template cannot write a prompt, or a text spells control tokens.
    """
    kind = prompts_of(max_new_tokens)
    rendered = rows.render(kind, questions.prompts, renderer, DataOptions(max_length=positions))
    if rendered.dropped:
        dropped: Sequence[lint.Dropped] = [one for found in rendered.dropped.values() for one in found]
        raise UserError(
            f"{len(dropped):,} prompts of {questions.name} cannot be answered",
            details=[str(one) for one in dropped],
            remedy="Leave them out, or lower --max-tokens.",
        )
    rows.refuse_forged(kind, rendered.rows, renderer.tokenizer)
    places = {str(prompt.source): columns for prompt, columns in zip(questions.prompts, questions.columns)}
    return [Asked(prompt, tree.root, places[str(prompt.source)]) for prompt, tree in rendered.examples]
