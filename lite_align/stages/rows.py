"""Rows of a file on their way to trees: read, checked, rendered, split; the same for every stage. No torch here."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from lite_align.data import formats, lint, sources, split
from lite_align.data.formats.detection import Wanted
from lite_align.data.types import Conversation, Rendered, Row, Tree
from lite_align.errors import DataError
from lite_align.recipe import DataOptions, PairDataOptions, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lite_align.data.render import Renderer, Unusable

RowT = TypeVar("RowT", bound=Row)

Dropped = dict[str, list[lint.Dropped]]

RULES = {
    "control_tokens": "LA206",
    "empty": "LA303",
    "identical": "LA209",
    "roles": "LA205",
    "template": "LA207",
    "too_long": "LA208",
}
"""Why a row cannot be rendered, as a rule."""


class Sequences(NamedTuple):
    """A row as tokens: one sequence for each of its answers, and how many old turns its prompt lost."""

    answers: tuple[Rendered, ...]
    turns_dropped: int = 0


@dataclass(frozen=True)
class Kind(Generic[RowT]):
    """What the rows of a stage are, and how they become sequences.

    Args:
        wanted: kind of the formats that are read (see `data.formats`).
        row: their type.
        noun: what a person calls the rows: "pairs".
        lint: leaves out rows that teach nothing.
        prompt: what rows are split by.
        texts: all texts of a row.
        sequences: each row as tokens, or why it cannot be used.
        answers: what each sequence of a row is, for people.
        about: what else a person should know of a row that is shown.
        every_pair: whether a ranking of several answers gives all of its pairs, or the best against the worst.
        marked: what is done with the tokens that are shown in colour.
    """

    wanted: Wanted
    row: type[RowT]
    noun: str
    lint: Callable[[Sequence[RowT]], lint.Lint[RowT]]
    prompt: Callable[[RowT], Conversation]
    texts: Callable[[RowT], Iterable[str]]
    sequences: Callable[["Renderer", Sequence[RowT], DataOptions], "Sequence[Sequences | Unusable]"]
    answers: tuple[str, ...]
    about: Callable[[RowT], str] = lambda row: ""
    every_pair: bool = False
    marked: str = "trained"


@dataclass(frozen=True)
class ReadRows(Generic[RowT]):
    """Rows of one source after the checks that need no tokenizer; `dropped` holds the rows left out, by rule."""

    table: sources.RawTable
    detection: formats.Detection
    rows: list[RowT]
    dropped: Dropped
    warnings: list[lint.Finding]

    @property
    def count(self) -> int:
        """Rows after the conversion: all pairs of a ranking, one for all votes on a comparison."""
        return len(self.rows) + sum(map(len, self.dropped.values()))


@dataclass(frozen=True)
class RenderedRows(Generic[RowT]):
    """Rows as trees (key n is row n), the rows left out, and how many old turns each prompt lost."""

    rows: list[RowT]
    trees: list[Tree]
    dropped: Dropped
    turns_dropped: list[int]

    @property
    def examples(self) -> list[tuple[RowT, Tree]]:
        """Each row with its tree."""
        return list(zip(self.rows, self.trees, strict=True))

    @property
    def shortened(self) -> str:
        """How many prompts lost old turns, as a warning; empty if none did."""
        lost = [turns for turns in self.turns_dropped if turns]
        if not lost:
            return ""
        return f"LA208 {len(lost):,} prompts lost {sum(lost):,} old turns, whole, to fit; no answer was cut"


def read(kind: Kind[RowT], options: DataOptions, path: str) -> ReadRows[RowT]:
    """Read a source, recognise its format, convert every row and leave out what says nothing.

    Raises:
        DataError: rows that cannot be read or converted, all of them at once.
    """
    table = sources.read(path, skip_bad=options.skip_bad)
    detection = formats.detect(
        table,
        wanted=kind.wanted,
        format=options.format,
        mapping=options.map,
        pair_thumbs=isinstance(options, PairDataOptions) and options.pair_thumbs,
    )
    rows = formats.convert(table, detection, mapping=options.map, every_pair=kind.every_pair)
    found = checked(kind, rows)
    return ReadRows(table, detection, found.kept, found.dropped, found.warnings)


def checked(kind: Kind[RowT], rows: Sequence[Row]) -> lint.Lint[RowT]:
    """Converted rows after the checks of their kind; those that their format left out are among the dropped ones."""
    found = kind.lint([row for row in rows if isinstance(row, kind.row)])
    return lint.Lint(found.kept, merged((lint.unused(rows), found.dropped)), found.warnings)


def render(
    kind: Kind[RowT], rows: Sequence[RowT], renderer: "Renderer", options: DataOptions
) -> RenderedRows[RowT]:
    """Render rows to trees; rows that are too long, or identical as tokens, are left out."""
    from lite_align.data import forest
    from lite_align.data.render import Unusable

    kept: list[RowT] = []
    trees: list[Tree] = []
    dropped: Dropped = {}
    turns_dropped: list[int] = []
    for row, tokens in zip(rows, kind.sequences(renderer, rows, options), strict=True):
        if isinstance(tokens, Unusable):
            rule = RULES[tokens.reason]
            dropped.setdefault(rule, []).append(lint.Dropped(row.source, tokens.detail))
            continue
        alone = len(tokens.answers) == 1
        key, answers = len(kept), tokens.answers
        trees.append(forest.single(key, answers[0]) if alone else forest.grow(key, answers))
        kept.append(row)
        turns_dropped.append(tokens.turns_dropped)
    return RenderedRows(kept, trees, dropped, turns_dropped)


def refuse_forged(
    kind: Kind[RowT],
    rows: Sequence[RowT],
    tokenizer: "PreTrainedTokenizerBase",
    accept: Sequence[str] = (),
) -> None:
    """Stop where a text spells control tokens of the model, unless that is accepted (LA206).

    Accepted, they are encoded as plain text, never as the tokens themselves.

    Raises:
        DataError: with every such row.
    """
    control_tokens = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    places: list[str] = []
    for row in rows:
        text = "\n".join(kind.texts(row))
        spelled = [token for token in control_tokens if token in text]
        if spelled:
            places.append(f"{row.source} spells {', '.join(spelled[:3])}")
    if places and "LA206" not in accept:
        raise DataError(
            f"LA206: the text of {len(places):,} rows spells control tokens of the model",
            details=places,
            remedy="Remove them, or have them read as plain text with: --set data.accept=[LA206]",
        )


def require_enough(name: str, rows: int, dropped: Dropped, max_dropped: float) -> None:
    """Stop a run that would leave out more than a share of the rows.

    Raises:
        DataError: with the counts by rule, the first rows and the remedy.
    """
    first = [row for rows_of_rule in dropped.values() for row in rows_of_rule[:10]]
    error = lint.too_many_dropped(counts(dropped), rows, max_dropped, rows=first, file=name)
    if error is not None:
        raise error


def hold_out(
    kind: Kind[RowT], examples: Sequence[tuple[RowT, Tree]], options: DataOptions, seed: int
) -> tuple[list[tuple[RowT, Tree]], list[tuple[RowT, Tree]]]:
    """Split by prompt into what is trained on and what is held out, each row with its tree."""
    assert options.held_out != "auto"
    # By identity: a row that ranks several answers gives several pairs, all from one place.
    trees = {id(row): tree for row, tree in examples}
    train, held_out = split.hold_out(
        [row for row, _ in examples], kind.prompt, options.held_out, seed, noun=kind.noun
    )
    return [(row, trees[id(row)]) for row in train], [(row, trees[id(row)]) for row in held_out]


def held_out_of(
    kind: Kind[RowT], recipe: Recipe, hashes: Mapping[str, Any], renderer: "Renderer"
) -> list[tuple[RowT, Tree]]:
    """The rows that a run held out, each with its tree.

    Args:
        kind: of its rows.
        recipe: of the run.
        hashes: that the run recorded; older ones say nothing of a held-out file, which is then taken as it is.
        renderer: of the base.

    Raises:
        DataError: its file cannot be read, or is not what it was.
    """
    options = recipe.data
    separate = options.held_out_path
    found = read(kind, options, separate or options.path)
    sha256 = found.table.sha256
    if sha256 != (hashes.get("held_out", sha256) if separate else hashes.get("data")):
        raise DataError(
            f"{separate or options.path} has changed since, so nobody knows which {kind.noun} the run held out.",
            remedy="Give the file as it was, or another one.",
        )
    examples = render(kind, found.rows, renderer, options).examples
    return examples if separate else hold_out(kind, examples, options, recipe.train.seed)[1]


def require_no_leak(kind: Kind[RowT], train: Sequence[RowT], held_out: Sequence[RowT], path: str) -> None:
    """Stop a run whose held-out file repeats prompts of the training rows (LA304).

    Raises:
        DataError: with the rows.
    """
    leaks = split.shared_prompts(train, held_out, kind.prompt)
    if leaks:
        raise DataError(
            f"LA304: {len(leaks):,} prompts of {path} are trained on too",
            details=[f"{held} has the prompt of {trained}" for held, trained in leaks[:20]],
            remedy="Remove them from one of the two files; a prompt in both makes the evaluation worthless.",
        )


def merged(groups: Iterable[Dropped]) -> Dropped:
    """Rows left out in several steps, by rule."""
    together: Dropped = {}
    for group in groups:
        for rule, rows in group.items():
            together.setdefault(rule, []).extend(rows)
    return together


def counts(dropped: Mapping[str, Sequence[lint.Dropped]]) -> dict[str, int]:
    """Number of rows left out, by rule."""
    return {rule: len(rows) for rule, rows in sorted(dropped.items())}
