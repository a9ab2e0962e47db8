"""From DATA to pairs that can be trained: read, recognise, lint, render, split; every row is accounted for."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lite_align.data import formats, lint, sources, split
from lite_align.data.types import Pair, Tree
from lite_align.errors import DataError
from lite_align.recipe import DataOptions

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from lite_align.data.forest import Batch
    from lite_align.data.render import Renderer

Dropped = dict[str, list[lint.Dropped]]

PAD_TO = 64
"""Batches have a multiple of so many tokens. Libraries choose, and some compile and keep, a kernel for every number of
rows: on a CPU in bf16, a 15M model with batches of all lengths came to 1.3 GB, with these to 0.9."""

RULES = {
    "control_tokens": "LA206",
    "empty": "LA303",
    "identical": "LA209",
    "roles": "LA205",
    "template": "LA207",
    "too_long": "LA208",
}
"""Why a row cannot be rendered, as a rule."""


@dataclass(frozen=True)
class ReadPairs:
    """Pairs of one source after the checks that need no tokenizer; `dropped` holds the rows left out, by rule."""

    table: sources.RawTable
    detection: formats.Detection
    pairs: list[Pair]
    dropped: Dropped
    warnings: list[lint.Finding]


@dataclass(frozen=True)
class RenderedPairs:
    """Pairs as trees (key n is pair n), the rows left out, and how many old turns each prompt lost."""

    pairs: list[Pair]
    trees: list[Tree]
    dropped: Dropped
    turns_dropped: list[int]

    @property
    def shortened(self) -> str:
        """How many prompts lost old turns, as a warning; empty if none did."""
        lost = [turns for turns in self.turns_dropped if turns]
        if not lost:
            return ""
        return f"LA208 {len(lost):,} prompts lost {sum(lost):,} old turns, whole, to fit; no answer was cut"


def read_pairs(options: DataOptions, path: str, *, every_pair: bool = False) -> ReadPairs:
    """Read a source, recognise its format, convert every row and leave out what says nothing.

    A ranking of several answers gives one pair, the best against the worst, or with `every_pair` all of them.

    Raises:
        DataError: rows that cannot be read or converted, all of them at once.
    """
    table = sources.read(path, skip_bad=options.skip_bad)
    detection = formats.detect(table, wanted="pair", format=options.format, mapping=options.map)
    rows = formats.convert(table, detection, mapping=options.map, every_pair=every_pair)
    checked = lint.lint_pairs([row for row in rows if isinstance(row, Pair)])
    return ReadPairs(table, detection, checked.kept, checked.dropped, checked.warnings)


def render(pairs: Sequence[Pair], renderer: "Renderer", options: DataOptions) -> RenderedPairs:
    """Render pairs to trees; rows that are too long, or identical as tokens, are left out."""
    from lite_align.data import forest
    from lite_align.data.render import Unusable

    kept: list[Pair] = []
    trees: list[Tree] = []
    dropped: Dropped = {}
    turns_dropped: list[int] = []
    assert options.max_length != "auto"
    drop_turns = options.truncate == "oldest_turns"
    results = renderer.pairs(pairs, options.max_length, drop_turns=drop_turns)
    for pair, tokens in zip(pairs, results, strict=True):
        if isinstance(tokens, Unusable):
            rule = RULES[tokens.reason]
            dropped.setdefault(rule, []).append(lint.Dropped(pair.source, tokens.detail))
            continue
        trees.append(forest.grow(len(kept), (tokens.chosen, tokens.rejected)))
        kept.append(pair)
        turns_dropped.append(tokens.turns_dropped)
    return RenderedPairs(kept, trees, dropped, turns_dropped)


def refuse_forged(
    pairs: Sequence[Pair], tokenizer: "PreTrainedTokenizerBase", accept: Sequence[str] = ()
) -> None:
    """Stop where a text spells control tokens of the model, unless that is accepted (LA206).

    Accepted, they are encoded as plain text, never as the tokens themselves.

    Raises:
        DataError: with every such row.
    """
    control_tokens = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    places: list[str] = []
    for pair in pairs:
        text = "\n".join(turn.content for turn in (*pair.prompt, *pair.chosen, *pair.rejected))
        spelled = [token for token in control_tokens if token in text]
        if spelled:
            places.append(f"{pair.source} spells {', '.join(spelled[:3])}")
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
    rendered: RenderedPairs, options: DataOptions, seed: int
) -> tuple[list[tuple[Pair, Tree]], list[tuple[Pair, Tree]]]:
    """Split by prompt into what is trained on and what is held out, each pair with its tree."""
    assert options.held_out != "auto"
    # By identity: a row that ranks several answers gives several pairs, all from one place.
    trees = {id(pair): tree for pair, tree in zip(rendered.pairs, rendered.trees, strict=True)}
    train, held_out = split.hold_out(rendered.pairs, options.held_out, seed)
    return [(pair, trees[id(pair)]) for pair in train], [(pair, trees[id(pair)]) for pair in held_out]


def require_no_leak(train: Sequence[Pair], held_out: Sequence[Pair], path: str) -> None:
    """Stop a run whose held-out file repeats prompts of the training rows (LA304).

    Raises:
        DataError: with the rows.
    """
    leaks = split.shared_prompts(train, held_out)
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


def to_batch(trees: Sequence[Tree], device: "torch.device") -> "Batch":
    """Pack trees into one row on a device, padded to a multiple of `PAD_TO` tokens."""
    from lite_align.data import forest

    return forest.batch(trees, pad_to=PAD_TO).to(device)
