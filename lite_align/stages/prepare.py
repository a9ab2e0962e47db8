"""Everything before the weights: rows, settings, plan; the same for every training verb."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from lite_align.data import lint
from lite_align.data.render import Renderer
from lite_align.data.types import Tree
from lite_align.model import load
from lite_align.model.folder import TINY, locate
from lite_align.model.folder import check as check_folder
from lite_align.model.loading import Loading
from lite_align.model.lora import find_targets
from lite_align.recipe import Resolved, unusual
from lite_align.stages import lineage, reference, resources, rows, session
from lite_align.stages.check import show_tree
from lite_align.stages.procedure import Prepared, Procedure, RowT
from lite_align.train.meter import meter
from lite_align.view import View

SHOWN_ROWS, SHOWN_CHARACTERS = 2, 300


def prepare(
    procedure: Procedure[RowT],
    resolved: Resolved[Any],
    stored: Any,
    view: View,
    *,
    parent: lineage.Parent | None = None,
    dry_run: bool = False,
) -> Prepared[RowT]:
    """Read, check, render and split the rows, and fill every "auto" setting; the weights are read meanwhile."""
    kind = procedure.kind(resolved.recipe)
    read = rows.read(kind, resolved.recipe.data, resolved.recipe.data.path)
    on = session.device()
    if parent is not None:
        resolved = lineage.settle(resolved, parent)
    resolved = session.settle(resolved, stored, on)
    recipe = resolved.recipe
    tell_demo(resolved, view)
    parameters = load.parameter_count(recipe.model.name, recipe.model.revision)
    memory = meter(on)
    machine = resources.Machine.of(recipe.model, memory, on)
    if not dry_run:
        require_trainable(recipe, parent)
    meanwhile = recipe.speed.load_while_reading and not dry_run
    loading = Loading(recipe.model, device=on) if meanwhile else None
    renderer = Renderer(load.load_tokenizer(recipe.model), trusted=recipe.model.name == TINY)
    with loading or nullcontext():
        examples, dropped = render(kind, read, recipe, renderer, view)
    resolved = session.settle_held_out(resolved, len(examples))
    train, held_out, separate_hash = split(kind, examples, resolved.recipe, renderer)
    resolved = procedure.settle(resolved, train)
    resolved = session.settle_training(
        resolved, parameters=parameters, examples=len(train), steps=procedure.steps
    )
    total = procedure.steps(resolved.recipe, len(train))
    amount = amount_of(procedure, resolved.recipe, train, held_out, total)
    resolved, forecast = resources.settle(resolved, amount, machine)
    hashes = {
        "data": read.table.sha256,
        "template": renderer.template_sha256,
        "tokens": reference.forest_digest([tree for _, tree in train + held_out]),
    }
    if separate_hash is not None:
        hashes["held_out"] = separate_hash
    if parent is not None:
        hashes["parent"] = parent.sha256
    for warning in unusual(resolved.recipe, parameters):
        view.warn(warning)
    return Prepared(
        resolved,
        kind,
        read,
        dropped,
        renderer,
        train,
        held_out,
        total,
        parameters,
        hashes,
        forecast,
        memory,
        parent,
        loading,
    )


def tell_demo(resolved: Resolved[Any], view: View) -> None:
    """Warn of a run that nobody gave a model, so that it takes the demo's."""
    if resolved.recipe.model.name == TINY and resolved.provenance["model.name"].startswith("auto"):
        view.warn(
            "No CUDA device: this run uses tiny, the demo model in the package. It knows only the small world of "
            "data_samples/; use --model PATH for a real one."
        )


def amount_of(
    procedure: Procedure[RowT],
    recipe: Any,
    train: list[tuple[RowT, Tree]],
    held_out: list[tuple[RowT, Tree]],
    steps: int,
) -> resources.Amount:
    """What the run works on, with the rows as its procedure computes them."""
    return resources.Amount.of(
        recipe.train,
        procedure.trees(recipe, train),
        procedure.trees(recipe, held_out),
        examples=procedure.count(recipe, len(train)),
        steps=steps,
        has_reference=procedure.has_reference,
        scores_mismatched=procedure.scores_mismatched,
        forward_passes=procedure.forward_passes(recipe),
    )


def render(
    kind: rows.Kind[RowT], read: rows.ReadRows[RowT], recipe: Any, renderer: Renderer, view: View
) -> tuple[list[tuple[RowT, Tree]], rows.Dropped]:
    """Rows as trees, and all that were left out; what a person should know of them is told."""
    rendered = rows.render(kind, read.rows, renderer, recipe.data)
    dropped = rows.merged((read.dropped, rendered.dropped))
    rows.require_enough(read.table.name, read.count, dropped, recipe.data.max_dropped)
    if rendered.shortened:
        view.warn(f"{rendered.shortened} (data.max_length {recipe.data.max_length:,}).")
    rows.refuse_forged(kind, rendered.rows, renderer.tokenizer, recipe.data.accept)
    for finding in read.warnings:
        if finding.rule not in recipe.data.accept:
            view.warn(f"{finding.rule} {finding.text}")
    return rendered.examples, dropped


def split(
    kind: rows.Kind[RowT], examples: list[tuple[RowT, Tree]], recipe: Any, renderer: Renderer
) -> tuple[list[tuple[RowT, Tree]], list[tuple[RowT, Tree]], str | None]:
    """What is trained on and what is held out: by prompt, or from a file of its own, whose sha256 comes third."""
    if recipe.data.held_out_path is None:
        return *rows.hold_out(kind, examples, recipe.data, recipe.train.seed), None
    held_out, sha256 = separate(kind, recipe, renderer)
    rows.require_no_leak(kind, [r for r, _ in examples], [r for r, _ in held_out], recipe.data.held_out_path)
    return examples, held_out, sha256


def require_trainable(recipe: Any, parent: lineage.Parent | None) -> None:
    """Check that the folder of the base is whole, has the layers that get an adapter, and fits the parent's.

    Raises:
        ModelError: files or layers are missing, or the parent's adapter is one of another base.
    """
    path = locate(recipe.model.name, recipe.model.revision)
    check_folder(path, recipe.model.name)
    config = load.configuration(recipe.model)
    quirk = load.QUIRKS.get(config.get_text_config().model_type, load.Quirk())
    skeleton = load.skeleton(config)
    targets = find_targets(skeleton, recipe.lora, quirk.targets)
    if parent is not None:
        lineage.require_fit(parent, skeleton, targets)


def separate(kind: rows.Kind[RowT], recipe: Any, renderer: Renderer) -> tuple[list[tuple[RowT, Tree]], str]:
    """Held-out rows from a file of their own, with the same checks as the training rows, and its sha256."""
    path = recipe.data.held_out_path
    read = rows.read(kind, recipe.data, path)
    rendered = rows.render(kind, read.rows, renderer, recipe.data)
    rows.refuse_forged(kind, rendered.rows, renderer.tokenizer, recipe.data.accept)
    dropped = rows.merged((read.dropped, rendered.dropped))
    rows.require_enough(path, read.count, dropped, recipe.data.max_dropped)
    return rendered.examples, read.table.sha256


def show_plan(procedure: Procedure[RowT], prepared: Prepared[RowT], view: View) -> None:
    """Everything that will happen, before it does."""
    recipe, noun = prepared.recipe, prepared.kind.noun
    show_data(prepared, view)
    view.section(
        "model",
        f"{recipe.model.name} · {session.short(prepared.parameters)} parameters · {recipe.model.quantization} · "
        f"{recipe.model.dtype} on {session.device().type} · adapter r{recipe.lora.rank}",
        *([f"continues {prepared.parent.name}"] if prepared.parent else []),
        *prepared.renderer.describe(),
    )
    trees = procedure.trees(recipe, prepared.train)
    together = sum(tree.tokens for tree in trees)
    apart = sum(len(tree.root) * len(tree.leaves) for tree in trees) + sum(
        len(leaf.ids) for tree in trees for leaf in tree.leaves
    )
    examples, one = len(prepared.train), noun.removesuffix("s")
    view.section(
        "plan",
        f"{recipe.train.epochs:g} epochs · {prepared.total_steps:,} steps of {recipe.train.batch_size} {noun} · "
        f"{recipe.train.tokens_per_microbatch:,} tokens a pass",
        f"{together / examples:.0f} tokens a {one} with shared prompts, {apart / examples:.0f} without",
        f"{procedure.plan(prepared)} · learning rate {recipe.train.learning_rate:g} {recipe.train.schedule}",
    )
    resources.show(prepared.forecast, view)
    session.show_settings(prepared.resolved, view)
    for row, tree in prepared.train[:SHOWN_ROWS]:
        show_tree(prepared.kind, prepared.renderer, row, tree, view, limit=SHOWN_CHARACTERS)


def show_data(prepared: Prepared[Any], view: View) -> None:
    """What was read, and every row that was left out."""
    read, noun = prepared.read, prepared.kind.noun
    detection, kept = read.detection, len(prepared.train) + len(prepared.held_out)
    counted = rows.counts(prepared.dropped).items()
    left_out = [f"{count:,} {lint.RULES[rule]} ({rule})" for rule, count in counted]
    view.section(
        "data",
        f"{read.table.name} · {len(read.table.rows):,} rows · {detection.name} "
        f"({100 * detection.share:.0f} % of rows) · {kept:,} {noun} after checks",
        f"left out: {' · '.join(left_out) or 'none'}",
        f"held out: {len(prepared.held_out):,} {noun}, by prompt",
        *read.table.notes,
        *detection.notes,
    )
    for rule, dropped in sorted(prepared.dropped.items()):
        # A folder of files has the same line numbers more than once.
        for file in sorted({row.source.file for row in dropped}):
            places = [f"{row.source.line:,}" for row in dropped if row.source.file == file]
            more = f" and {len(places) - 20:,} more" if len(places) > 20 else ""
            lines = ", ".join(places[:20])
            view.section("left out", f"{rule} {lint.RULES[rule]}: line {lines}{more} of {file}")


def data_record(prepared: Prepared[Any]) -> dict[str, Any]:
    """What run.json says of the data."""
    table, detection = prepared.read.table, prepared.read.detection
    return {
        "name": table.name,
        "format": detection.name,
        "kind": prepared.kind.noun,
        "share": detection.share,
        "rows": len(table.rows),
        "kept": len(prepared.train) + len(prepared.held_out),
        "dropped": rows.counts(prepared.dropped),
        "warnings": [{"rule": one.rule, "text": one.text} for one in prepared.read.warnings],
        "tokens": token_counts(prepared),
        "held_out": len(prepared.held_out),
        "sha256": table.sha256,
    }


def token_counts(prepared: Prepared[Any]) -> dict[str, dict[str, int]]:
    """How long prompts and answers are, in tokens: median, the 95th of a hundred, and the longest of each."""
    trees = [tree for _, tree in prepared.train + prepared.held_out]
    found = {"prompt": [tree.root_trained.count(False) for tree in trees]}
    # The leaf of a prompt that is yet to be answered holds a stand-in.
    for number, name in enumerate(prepared.kind.answers if prepared.kind.wanted != "prompt" else ()):
        found[name] = [sum(tree.root_trained) + sum(tree.leaves[number].trained) for tree in trees]
    return {name: quantiles(sorted(lengths)) for name, lengths in found.items() if lengths}


def quantiles(lengths: Sequence[int]) -> dict[str, int]:
    """Some of sorted lengths; each is one of them: [1, 2, 3, 9] has the median 2."""
    last = len(lengths) - 1
    return {"median": lengths[last // 2], "95 %": lengths[round(0.95 * last)], "longest": lengths[last]}
