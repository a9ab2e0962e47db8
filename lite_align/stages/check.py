"""`lite-align check`: what a file holds, what would be left out, and how it looks to the model."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lite_align.data import formats, lint, sources
from lite_align.data.formats.thumbs import TRAIN_AS_THEY_ARE
from lite_align.data.types import Chat, Conversation, Pair, Prompt, Rated, Rendered, Row, Source, Tree
from lite_align.errors import DataError, UserError
from lite_align.recipe import DPORecipe, Resolved
from lite_align.stages import rows
from lite_align.stages.chats import chats
from lite_align.stages.pairs import PAIRS
from lite_align.stages.rows import checked
from lite_align.stages.thumbs import THUMBS
from lite_align.view import View

if TYPE_CHECKING:
    from lite_align.data.render import Renderer

KINDS: dict[str, rows.Kind[Any]] = {"pair": PAIRS, "rated": THUMBS, "chat": chats("all_turns")}
"""Rows that are checked as they are trained."""

NEXT = {"pair": "dpo {}", "rated": f"dpo {{}} {TRAIN_AS_THEY_ARE}", "chat": "sft {}"}
"""The command that trains on a file, by kind of its rows."""

_BLOCKS = "▁▂▃▄▅▆▇█"
_EXCERPT = 300


@dataclass(frozen=True)
class Content:
    """The rows of a source after every check that needs no tokenizer.

    `unreadable` are rows that do not fit the format (only when mending), `dropped` those left out by rule.
    """

    table: sources.RawTable
    detection: formats.Detection
    rows: Sequence[Row]
    unreadable: list[formats.Problem]
    dropped: dict[str, list[lint.Dropped]]
    warnings: list[lint.Finding]

    @property
    def count(self) -> int:
        """Rows after the conversion: one for all votes on a comparison."""
        return len(self.rows) + sum(map(len, self.dropped.values()))


def check(recipe: DPORecipe, view: View, *, show: int = 0, fix: Path | None = None) -> None:
    """Show format, one converted row, lint and lengths; with `fix` write the usable rows to a new file.

    Raises:
        DataError: rows that cannot be read or converted (without `fix`), or too many that would be left out.
        UserError: `fix` exists already.
        ModelError: `--model` has no usable tokenizer or chat template.
    """
    if fix is not None and fix.exists():
        raise UserError(f"{fix} exists already", remedy="Give --fix the name of a new file.")
    content = examine(recipe, mend=fix is not None)
    _show_content(content, view)
    kind = KINDS.get(content.detection.kind)
    dropped = dict(content.dropped)
    if kind is not None and content.rows and recipe.model.name != "auto":
        dropped |= _show_tokens(kind, recipe, content.rows, view, show)
    else:
        _show_words(content.rows, view)
        if show:
            view.warn("--show needs a model for its tokenizer and template: --model tiny, for example")
    _conclude(recipe, content, dropped, view, fix)


def examine(recipe: DPORecipe, *, mend: bool) -> Content:
    """Read, recognise, convert and lint the rows; with `mend` bad rows are noted instead of stopping.

    Raises:
        DataError: rows that cannot be read or converted, all of them at once.
    """
    options = recipe.data
    table = sources.read(options.path, skip_bad=10**9 if mend else options.skip_bad)
    detection = formats.detect(table, wanted="any", format=options.format, mapping=options.map)
    unreadable: list[formats.Problem] = []
    if mend:
        converted, unreadable = formats.try_convert(table, detection, mapping=options.map)
    else:
        converted = formats.convert(table, detection, mapping=options.map)
    kind = KINDS.get(detection.kind)
    if kind is None:
        return Content(table, detection, converted, unreadable, {}, [])
    found = checked(kind, converted)
    return Content(table, detection, found.kept, unreadable, found.dropped, found.warnings)


def as_json(row: Row) -> dict[str, object]:
    """A row in the plainest format of its kind, to show how it was understood."""
    extra = {"category": row.category, "id": row.id}
    if isinstance(row, Pair):
        fields: dict[str, object] = {
            "prompt": _messages(row.prompt),
            "chosen": _messages(row.chosen),
            "rejected": _messages(row.rejected),
        }
        extra |= {"margin": row.margin, "weight": None if row.weight == 1 else row.weight}
    elif isinstance(row, Rated):
        fields = {"prompt": _messages(row.prompt), "completion": _messages(row.answer), "label": row.label}
        extra |= {"weight": None if row.weight == 1 else row.weight}
    elif isinstance(row, Chat):
        fields = {"messages": _messages(row.messages)}
    else:
        assert isinstance(row, Prompt)
        fields = {"prompt": _messages(row.messages)}
    return fields | {name: value for name, value in extra.items() if value is not None}


def _messages(conversation: Conversation) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in conversation]


def _show_content(content: Content, view: View) -> None:
    table, detection = content.table, content.detection
    share = f"{detection.share:.0%}".replace("%", " %")
    lines = [
        f"{table.name} · {len(table.rows):,} rows · {detection.name} ({share} of rows)",
        detection.description,
    ]
    if detection.runner_up is not None:
        name, runner_up = detection.runner_up
        lines.append(f"next: {name} ({runner_up:.0%} of rows); --format NAME overrides the vote")
    view.section("data", *lines, *table.notes, *detection.notes)
    if content.rows:
        row = content.rows[0]
        parts = [f"{name}: {_excerpt(value)}" for name, value in as_json(row).items()]
        view.section("row", f"{row.source} as it was understood", *parts)
    _show_left_out(content.dropped, view)
    for problem in content.unreadable[:20]:
        view.section("left out", str(problem))
    for finding in content.warnings:  # told even where the recipe accepts the rule: a check hides nothing
        view.warn(f"{finding.rule} {finding.text}")


def _show_left_out(dropped: Mapping[str, Sequence[lint.Dropped]], view: View) -> None:
    for rule, left in sorted(dropped.items()):
        more = [f"… and {len(left) - 5:,} more"] if len(left) > 5 else []
        view.section("left out", f"{len(left):,} by {rule}", *map(str, left[:5]), *more)


def _excerpt(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _EXCERPT else text[:_EXCERPT] + " …"


def _show_tokens(
    kind: rows.Kind[Any], recipe: DPORecipe, read: Sequence[Row], view: View, show: int
) -> rows.Dropped:
    """Render every row with the model's template; show lengths, what does not fit, and the first rows."""
    from lite_align.data.render import Renderer
    from lite_align.model import folder, load
    from lite_align.stages import session

    options = session.settle_model(Resolved(recipe, {}), session.device()).recipe
    trusted = options.model.name == folder.TINY
    tokenizer = load.load_tokenizer(options.model)
    renderer = Renderer(tokenizer, trusted=trusted)
    rendered = rows.render(kind, read, renderer, options.data)
    view.section("template", *renderer.describe())
    longest = [len(tree.root) + max(len(leaf.ids) for leaf in tree.leaves) for tree in rendered.trees]
    if longest:
        view.section("lengths", *histogram(longest, "tokens in the longest answer with its prompt"))
    if rendered.shortened:
        view.warn(f"{rendered.shortened} (data.max_length {options.data.max_length:,}).")
    _show_left_out(rendered.dropped, view)
    if rendered.trees and show:
        view.legend()
    for row, tree, turns in list(zip(rendered.rows, rendered.trees, rendered.turns_dropped))[:show]:
        show_tree(kind, renderer, row, tree, view, turns_dropped=turns)
    rows.refuse_forged(kind, rendered.rows, tokenizer, options.data.accept)
    return rendered.dropped


def show_tree(
    kind: rows.Kind[rows.RowT],
    renderer: "Renderer",
    row: rows.RowT,
    tree: Tree,
    view: View,
    *,
    turns_dropped: int = 0,
    limit: int | None = None,
) -> None:
    """Print a row as it is trained: the shared prompt once, its answers beside each other, coloured by mask.

    Args:
        turns_dropped: prompt turns that did not fit; they are struck through.
        limit: characters of each stretch that are shown; None shows all.
    """
    view.section(kind.noun.removesuffix("s"), " · ".join(filter(None, (str(row.source), kind.about(row)))))
    cut = [(f"{turn.role}: {turn.content}\n", "cut") for turn in kind.prompt(row)[:turns_dropped]]
    root = renderer.spans(Rendered(tree.root, tree.root_trained))
    view.token_row("prompt", _clipped([*cut, *root], limit))
    columns: dict[str, list[tuple[str, str]]] = {}
    for name, leaf in zip(kind.answers, tree.leaves):
        spans = renderer.spans(Rendered(leaf.ids, leaf.trained))
        columns[f"{name} · {sum(leaf.trained):,} tokens {kind.marked}"] = _clipped(spans, limit)
    view.token_columns(columns)


def _clipped(spans: Sequence[tuple[str, str]], limit: int | None) -> list[tuple[str, str]]:
    """Spans of at most `limit` characters each; the middle of a longer one is left out and its size named."""
    found: list[tuple[str, str]] = []
    for text, style in spans:
        if limit is not None and len(text) > limit:
            half = limit // 2
            text = f"{text[:half]} … {len(text) - 2 * half:,} characters … {text[-half:]}"
        found.append((text, style))
    return found


def _show_words(rows: Sequence[Row], view: View) -> None:
    lengths = [len(json.dumps(as_json(row)).split()) for row in rows]
    if lengths:
        view.section("lengths", *histogram(lengths, "words a row"), note="tokens: --model NAME")


def histogram(lengths: Sequence[int], unit: str, bins: int = 24) -> list[str]:
    """Quantiles and a row of blocks, each a bin of equal width from 0 to the longest."""
    ordered = sorted(lengths)
    top = max(ordered[-1], 1)
    counts = [0] * bins
    for length in ordered:
        counts[min(bins - 1, length * bins // top)] += 1
    highest = max(counts)
    blocks = "".join(" " if not n else _BLOCKS[(n * 8 - 1) // highest] for n in counts)
    middle, ninety = ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, len(ordered) * 95 // 100)]
    return [
        f"median {middle:,} · 95 % below {ninety + 1:,} · longest {top:,} {unit}",
        f"0 ▕{blocks}▏ {top:,}",
    ]


def _conclude(
    recipe: DPORecipe,
    content: Content,
    dropped: Mapping[str, Sequence[lint.Dropped]],
    view: View,
    fix: Path | None,
) -> None:
    data = recipe.data.path
    left_out = {row.source for rows in dropped.values() for row in rows}
    lost = {rule: len(rows) for rule, rows in dropped.items()}
    reasons = " · ".join(f"{count:,} {rule}" for rule, count in lost.items())
    kind = {"pair": "pairs", "chat": "conversations", "prompt": "prompts", "rated": "rated answers"}
    usable = sum(row.source not in left_out for row in content.rows)
    text = f"{usable:,} usable {kind[content.detection.kind]}" + (f"; left out: {reasons}" if reasons else "")
    view.json_record(
        {
            "name": content.table.name,
            "format": content.detection.name,
            "share": content.detection.share,
            "rows": len(content.table.rows),
            "usable": usable,
            "left_out": lost,
            "warnings": [f"{finding.rule} {finding.text}" for finding in content.warnings],
        }
    )
    if fix is not None:
        if not usable:
            raise DataError(f"{data} has no usable row", remedy="Nothing was written.")
        lint.write_rows(lint.clean_rows(content.table, _removed(content, left_out)), fix)
        view.section("saved", f"{fix} · {text}")
        _show_next(content, str(fix), view)
        return
    error = lint.too_many_dropped(lost, content.count, recipe.data.max_dropped, file=data)
    if error is not None:
        raise error
    view.section("verdict", f"This run would learn from {text}.")
    _show_next(content, data, view)


def _removed(content: Content, left_out: set[Source]) -> set[Source]:
    """Rows that a cleaned copy lacks: those that cannot be read, and those that are left out.

    Where several rows of the file belong together, those stay: without one of them the others would say something else.
    """
    unreadable = {problem.source for problem in content.unreadable}
    belong_together = formats.FORMATS[content.detection.name].together is not None
    return unreadable if belong_together else unreadable | left_out


def _show_next(content: Content, data: str, view: View) -> None:
    if content.detection.kind in NEXT:
        view.section("next", f"lite-align {NEXT[content.detection.kind].format(data)}")
