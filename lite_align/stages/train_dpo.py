"""`lite-align dpo DATA`, top to bottom: rows, plan, reference, proof, training, verdict."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from lite_align.data import lint
from lite_align.data.render import Renderer
from lite_align.data.types import Pair, Tree
from lite_align.errors import TrainingStopped
from lite_align.evaluate import report, verdict
from lite_align.losses import catalogue
from lite_align.model import load
from lite_align.model.backbone import Backbone, Role
from lite_align.model.folder import TINY, cache_root, fingerprint, locate
from lite_align.model.folder import check as check_folder
from lite_align.model.loading import Loading
from lite_align.model.lora import find_targets
from lite_align.recipe import DPORecipe, Resolved, memory_levers, resolve_auto, unusual
from lite_align.stages import pairs as rows
from lite_align.stages import passes, reference, resources, session
from lite_align.stages.check import show_tree
from lite_align.stages.command import CommandOptions
from lite_align.stages.dpo import DPO, PairSet, loss_options
from lite_align.train.engine import Engine
from lite_align.train.faults import TokenBudget, lost_device_told
from lite_align.train.fit import Cadence, fit, restore, tell_lowered
from lite_align.train.meter import Meter, meter
from lite_align.train.run import Run, require_unused
from lite_align.view import View

SHOWN_PAIRS, SHOWN_CHARACTERS, SHOWN_ANSWERS = 2, 300, 3


@dataclass(frozen=True)
class Prepared:
    """Everything that is known before the weights are loaded."""

    resolved: Resolved[DPORecipe]
    read: rows.ReadPairs
    dropped: rows.Dropped
    renderer: Renderer
    train: list[tuple[Pair, Tree]]
    held_out: list[tuple[Pair, Tree]]
    total_steps: int
    parameters: int
    hashes: dict[str, str]
    forecast: resources.Forecast
    meter: Meter
    loading: Loading | None


def train(resolved: Resolved[DPORecipe], command: CommandOptions, view: View) -> Path | None:
    """Train a DPO adapter as the recipe says and return the run folder (None after a dry run).

    Raises:
        LiteAlignError: with the exit code that belongs to what went wrong; see `errors`.
    """
    session.require_one_process()
    folder = session.interrupted_run(command, "dpo", resolved.recipe.data.path)
    stored = session.stored_record(folder)
    if folder is not None and stored is not None and stored["status"] == "finished":
        if not (folder / "report.html").exists():  # killed before its last file
            report.write(folder)
        view.section("saved", f"{folder} is finished; nothing is left to resume.")
        return folder
    loss_options(resolved.recipe)  # a wrong loss option and a used folder are told before the data are read
    if command.out is not None and folder is None and not command.dry_run:
        require_unused(command.out)
    prepared = prepare(resolved, stored, view, dry_run=command.dry_run)
    show_plan(prepared, view)
    if command.dry_run:
        view.section("next", "Leave out --dry-run to train; nothing was written.")
        return None
    options = prepared.resolved.recipe.model
    prepared.hashes["base"] = fingerprint(locate(options.name, options.revision))
    with (
        session.open_run(prepared.resolved, command, folder, prepared.hashes) as run,
        lost_device_told(run.path),
    ):
        run.update("data", data_record(prepared))
        run.update("plan", {"total_steps": prepared.total_steps, "pairs": len(prepared.train)})
        run.update("forecast", prepared.forecast.record())
        backbone = load_backbone(prepared, run, view)
        watch = resources.Watch(prepared.meter)
        stage, engine = build(backbone, prepared, run, view)
        resumed = stored is not None and restore(stage, engine, run)
        if resumed:
            view.section("resumed", f"{run.path} after step {engine.step:,} of {engine.total_steps:,}")
        else:
            prove(stage, run, view)
        if peak := resources.probe(stage, engine, prepared.forecast, prepared.meter):
            watch.keep(peak)
            run.update("measured", {"recomputed": backbone.blocks.recomputed})
        fit(stage, engine, run, view, cadence(prepared))
        run.update("measured", watch.read(prepared.forecast, backbone.blocks.recomputed))
        finish(stage, prepared, run, view)
    return run.path


# 1. Rows, settings, plan.


def prepare(resolved: Resolved[DPORecipe], stored: Any, view: View, *, dry_run: bool = False) -> Prepared:
    """Read, check, render and split the rows, and fill every "auto" setting; the weights are read meanwhile."""
    recipe = resolved.recipe
    read = rows.read_pairs(recipe.data, recipe.data.path)
    on = session.device()
    resolved = session.settle(resolved, stored, on)
    recipe = resolved.recipe
    if recipe.model.name == TINY and resolved.provenance["model.name"] not in ("--model", "--set"):
        view.warn(
            "No CUDA device: this run uses tiny, the demo model in the package. It knows only the small world of "
            "data_samples/; use --model PATH for a real one."
        )
    tokenizer = load.load_tokenizer(recipe.model)
    parameters = load.parameter_count(recipe.model.name, recipe.model.revision)
    renderer = Renderer(tokenizer, trusted=recipe.model.name == TINY)
    memory = meter(on)
    machine = resources.Machine.of(recipe.model, memory, on)
    if not dry_run:
        require_trainable(recipe)
    meanwhile = recipe.speed.load_while_reading and not dry_run
    loading = Loading(recipe.model, device=on) if meanwhile else None
    with loading or nullcontext():
        rendered = rows.render(read.pairs, renderer, recipe.data)
    dropped = rows.merged((read.dropped, rendered.dropped))
    rows.require_enough(read.table.name, len(read.table.rows), dropped, recipe.data.max_dropped)
    if rendered.shortened:
        view.warn(f"{rendered.shortened} (data.max_length {recipe.data.max_length:,}).")
    rows.refuse_forged(rendered.pairs, tokenizer, recipe.data.accept)
    for finding in read.warnings:
        if finding.rule not in recipe.data.accept:
            view.warn(f"{finding.rule} {finding.text}")
    resolved = session.settle_held_out(resolved, len(rendered.pairs))
    recipe = resolved.recipe
    if recipe.data.held_out_path is None:
        train, held_out = rows.hold_out(rendered, recipe.data, recipe.train.seed)
    else:
        train = list(zip(rendered.pairs, rendered.trees, strict=True))
        held_out = separate(recipe, renderer, tokenizer)
        rows.require_no_leak([p for p, _ in train], [p for p, _ in held_out], recipe.data.held_out_path)
    resolved = own_beta(resolved)
    resolved = session.settle_training(resolved, parameters=parameters, examples=len(train))
    total = session.total_steps(resolved.recipe, len(train))
    resolved, forecast = resources.settle(
        resolved, resources.Amount.of(resolved.recipe, train, held_out, total), machine
    )
    hashes = {
        "data": read.table.sha256,
        "template": renderer.template_sha256,
        "tokens": reference.forest_digest([tree for _, tree in train + held_out]),
    }
    for warning in unusual(resolved.recipe, parameters):
        view.warn(warning)
    return Prepared(
        resolved,
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
        loading,
    )


def require_trainable(recipe: DPORecipe) -> None:
    """Check that the folder of the base is whole and has the layers that get an adapter.

    Raises:
        ModelError: files or layers are missing.
    """
    path = locate(recipe.model.name, recipe.model.revision)
    check_folder(path, recipe.model.name)
    config = load.configuration(recipe.model)
    quirk = load.QUIRKS.get(config.get_text_config().model_type, load.Quirk())
    find_targets(load.skeleton(config), recipe.lora, quirk.targets)


def own_beta(resolved: Resolved[DPORecipe]) -> Resolved[DPORecipe]:
    """A loss without a reference has a beta of its own meaning: its default does not depend on the model's size."""
    objective = catalogue.find(resolved.recipe.loss.name)
    if objective.needs_reference:
        return resolved
    default = objective.defaults["beta"]
    return resolve_auto(resolved, "loss.beta", default, f"the default of {objective.name}")


def separate(
    recipe: DPORecipe, renderer: Renderer, tokenizer: PreTrainedTokenizerBase
) -> list[tuple[Pair, Tree]]:
    """Held-out pairs from a file of their own, with the same checks as the training rows."""
    path = recipe.data.held_out_path
    assert path is not None
    read = rows.read_pairs(recipe.data, path)
    rendered = rows.render(read.pairs, renderer, recipe.data)
    rows.refuse_forged(rendered.pairs, tokenizer, recipe.data.accept)
    dropped = rows.merged((read.dropped, rendered.dropped))
    rows.require_enough(path, len(read.table.rows), dropped, recipe.data.max_dropped)
    return list(zip(rendered.pairs, rendered.trees, strict=True))


def show_plan(prepared: Prepared, view: View) -> None:
    """Everything that will happen, before it does."""
    recipe, read = prepared.resolved.recipe, prepared.read
    detection, pairs = read.detection, len(prepared.train) + len(prepared.held_out)
    counted = rows.counts(prepared.dropped).items()
    left_out = [f"{count:,} {lint.RULES[rule]} ({rule})" for rule, count in counted]
    view.section(
        "data",
        f"{read.table.name} · {len(read.table.rows):,} rows · {detection.name} "
        f"({100 * detection.share:.0f} % of rows) · {pairs:,} pairs after checks",
        f"left out: {' · '.join(left_out) or 'none'}",
        f"held out: {len(prepared.held_out):,} pairs, by prompt",
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
    view.section(
        "model",
        f"{recipe.model.name} · {session.short(prepared.parameters)} parameters · {recipe.model.quantization} · "
        f"{recipe.model.dtype} on {session.device().type} · adapter r{recipe.lora.rank}",
        *prepared.renderer.describe(),
    )
    trees = [tree for _, tree in prepared.train]
    together = sum(tree.tokens for tree in trees)
    apart = sum(len(tree.root) * len(tree.leaves) for tree in trees) + sum(
        len(leaf.ids) for tree in trees for leaf in tree.leaves
    )
    view.section(
        "plan",
        f"{recipe.train.epochs:g} epochs · {prepared.total_steps:,} steps of {recipe.train.batch_size} pairs · "
        f"{recipe.train.tokens_per_microbatch:,} tokens a pass",
        f"{together / len(trees):.0f} tokens a pair with shared prompts, {apart / len(trees):.0f} without",
        f"{recipe.loss.name} · beta {recipe.loss.beta:g} · learning rate {recipe.train.learning_rate:g} "
        f"{recipe.train.schedule}",
    )
    resources.show(prepared.forecast, view)
    session.show_settings(prepared.resolved, view)
    for pair, tree in prepared.train[:SHOWN_PAIRS]:
        show_tree(prepared.renderer, pair, tree, view, limit=SHOWN_CHARACTERS)


# 2. Model, reference, proof.


def load_backbone(prepared: Prepared, run: Run, view: View) -> Backbone:
    """Load the base, unless it was read together with the rows, and attach the adapter."""
    recipe = prepared.resolved.recipe
    on = session.device()
    loaded = prepared.loading.result() if prepared.loading else load.read(recipe.model, device=on)
    loaded = load.place(loaded, recipe.speed)
    backbone = Backbone(loaded, recipe.lora, seed=recipe.train.seed, speed=recipe.speed)
    probed = run.record.get("measured")  # by the first start of a resumed run
    planned = prepared.forecast.plan.layout.recomputed
    backbone.recompute(probed["recomputed"] if isinstance(probed, dict) else planned)
    for note in loaded.notes + backbone.notes:
        view.section("note", note)
    run.update(
        "model",
        {
            "name": loaded.name,
            "parameters": loaded.parameters,
            "quantization": loaded.quantization,
            "dtype": str(loaded.dtype).removeprefix("torch."),
            "identity": loaded.identity,
            "shares_prefixes": backbone.shares_prefixes,
        },
    )
    return backbone


def build(backbone: Backbone, prepared: Prepared, run: Run, view: View) -> tuple[DPO, Engine[Any]]:
    """Compute the reference log-probs, and make stage and engine."""
    recipe = prepared.resolved.recipe
    accelerator = Accelerator(cpu=session.device().type == "cpu")
    identity = backbone.reference_identity()
    if not recipe.speed.share_prompts:
        identity["kernel"] += ", each answer with a prompt of its own"
    tokens = recipe.train.tokens_per_microbatch
    assert tokens != "auto"
    budget = TokenBudget(tokens, tell=partial(tell_lowered, run, view), levers=memory_levers(recipe))
    train, held_out = pair_sets(backbone, prepared, identity, budget, view)
    known = run.record.get("reference")
    base = backbone.base_sha256()
    if isinstance(known, dict) and known["base_sha256"] != base:
        raise TrainingStopped("The base weights are not those that this run was started with.")
    proven = known if isinstance(known, dict) else {}  # a resumed run has the proof of its first start
    run.update("reference", {**proven, "role": "base, adapters off", **identity, "base_sha256": base})
    run.update("hashes", prepared.hashes)
    process = (accelerator.process_index, accelerator.num_processes)
    stage = DPO(backbone, recipe, train, held_out, process=process, budget=budget)
    named = backbone.parameters(Role.POLICY)
    fused = recipe.speed.fused_optimizer
    return stage, Engine(accelerator, named, recipe.train, prepared.total_steps, fused=fused)


def pair_sets(
    backbone: Backbone, prepared: Prepared, identity: dict[str, str], budget: TokenBudget, view: View
) -> tuple[PairSet, PairSet]:
    """Both pair sets with their reference log-probs, from the cache or computed now, eight of them checked.

    Held-out pairs are measured against the reference by every loss, trained ones by those that need one.
    """
    recipe = prepared.resolved.recipe
    needs = catalogue.find(recipe.loss.name).needs_reference
    share = recipe.speed.share_prompts
    pairs, trees = columns(prepared.train, share_prompts=share)
    held_pairs, held_trees = columns(prepared.held_out, share_prompts=share)
    measured = [*trees, *held_trees] if needs else held_trees
    values: list[tuple[float, ...]] = []
    if measured:
        cache = reference.ReferenceCache(cache_root() / "reference", identity)
        values, hits = reference.fill(backbone, measured, cache, budget=budget, view=view)
        worst = reference.verify(backbone, measured, values, seed=recipe.train.seed, budget=budget)
        view.section(
            "reference",
            f"the base, adapters off · {hits:,} of {len(measured):,} pairs from the cache · "
            f"{min(reference.CHECKED_ROWS, len(measured))} checked, at most {worst:.1e} nats apart",
        )
    train_values = values[: len(trees)] if needs else None
    held_out_values = values[len(trees) :] if needs else values
    return PairSet.of(pairs, trees, train_values), PairSet.of(held_pairs, held_trees, held_out_values)


def columns(examples: Sequence[tuple[Pair, Tree]], *, share_prompts: bool) -> tuple[list[Pair], list[Tree]]:
    """Pairs and trees apart, the trees as they are computed."""
    pairs, trees = [pair for pair, _ in examples], [tree for _, tree in examples]
    return pairs, passes.laid_out(trees, share_prompts=share_prompts)


def prove(stage: DPO, run: Run, view: View) -> None:
    """Show that the policy starts at its reference, or stop."""
    proof = stage.prove_start()
    record = run.record["reference"]
    assert isinstance(record, dict)
    run.update("reference", {**record, "proof": proof})
    if proof["loss"] is None:
        view.section("proof", f"{stage.objective.name} has no reference: nothing to prove")
        return
    view.section(
        "proof",
        f"loss {proof['loss']:.4f} = {proof['expected']:.4f} · margins 0 (at most "
        f"{proof['largest_difference']:.1e} nats) · base {record['base_sha256'][:8]}",
        note="ok",
    )


def cadence(prepared: Prepared) -> Cadence:
    """When to log, evaluate and save."""
    options = prepared.resolved.recipe.train
    assert options.save_steps != "auto"
    assert options.eval_steps != "auto"
    evaluate = options.eval_steps or prepared.total_steps
    return Cadence(options.log_steps, evaluate, options.save_steps, options.keep_checkpoints, prepared.hashes)


# 3. What came of it.


def finish(stage: DPO, prepared: Prepared, run: Run, view: View) -> None:
    """Save the adapter, measure held-out pairs and answers before and after, and say what it all means."""
    backbone = stage.backbone
    record = run.record["reference"]
    assert isinstance(record, dict)
    if backbone.base_sha256() != record["base_sha256"]:
        raise TrainingStopped(
            "LA414: the base weights changed during the run, so the reference moved with them."
        )
    adapter = run.path / "adapters" / "policy"
    backbone.save_adapter(Role.POLICY, adapter)
    run.write_rows("held_out.jsonl", held_out_rows(stage))
    probes = session.probe_pairs(stage.held_out.pairs)
    with view.bar("answers", 2 * len(probes), "answers") as bar:
        before = session.answers(backbone, Role.REFERENCE, prepared.renderer, probes, bar.advance)
        after = session.answers(backbone, Role.POLICY, prepared.renderer, probes, bar.advance)
    told = [
        {
            "prompt": pair.prompt[-1].content,
            "category": pair.category,
            "before": b.text,
            "after": a.text,
            "before_tokens": b.tokens,
            "after_tokens": a.tokens,
        }
        for pair, b, a in zip(probes, before, after, strict=True)
    ]
    run.write_rows("answers.jsonl", told)
    found = verdict.judge(run.path)
    run.update("verdict", {"word": found.word, "sentences": found.sentences, "warnings": found.warnings})
    run.finish()
    page = report.write(run.path)
    changed = sorted(told, key=lambda row: row["before"] == row["after"])
    view.answers([(row["prompt"], row["before"], row["after"]) for row in changed[:SHOWN_ANSWERS]])
    if found.held_out is not None:
        figures = found.held_out
        view.section(
            "held out",
            f"accuracy {figures.accuracy_before.value:.2f} → {figures.accuracy.value:.2f} "
            f"[{figures.accuracy.low:.2f}, {figures.accuracy.high:.2f}] · margin {figures.margin_before:.2g} → "
            f"{figures.margin.value:.2g} · chosen log-prob {figures.chosen.value:+.2g}",
        )
    measured = run.record["measured"]
    assert isinstance(measured, dict)
    view.section("needed", resources.compared(measured))
    view.section("verdict", found.word[0].upper() + found.word[1:] + ".", *found.sentences)
    for warning in found.warnings:
        view.warn(warning)
    size = sum(file.stat().st_size for file in adapter.iterdir())
    view.section("saved", f"{run.path}  (adapter {size / 1e6:.1f} MB, {page.name})")
    view.section("next", f"lite-align chat {run.path}")
    view.json_record(run.record)


def held_out_rows(stage: DPO) -> list[dict[str, Any]]:
    """One row a held-out pair: log-probs and margin under reference (before) and policy (after)."""
    reference_logps = stage.held_out.reference
    assert reference_logps is not None
    after = stage.held_out_logps()
    found = []
    for pair, tree, before, now in zip(
        stage.held_out.pairs, stage.held_out.trees, reference_logps.tolist(), after, strict=True
    ):
        tokens = [sum(leaf.trained) + sum(tree.root_trained) for leaf in tree.leaves]
        sides = {
            name: {
                "chosen_logp": values[0],
                "rejected_logp": values[1],
                "margin": stage.margin(values, before, tokens),
            }
            for name, values in (("before", before), ("after", now))
        }
        found.append(
            {
                "source": str(pair.source),
                "category": pair.category,
                "chosen_tokens": tokens[0],
                "rejected_tokens": tokens[1],
                **sides,
            }
        )
    return found


def data_record(prepared: Prepared) -> dict[str, Any]:
    """What run.json says of the data."""
    table, detection = prepared.read.table, prepared.read.detection
    return {
        "name": table.name,
        "format": detection.name,
        "share": detection.share,
        "rows": len(table.rows),
        "kept": len(prepared.train) + len(prepared.held_out),
        "dropped": rows.counts(prepared.dropped),
        "held_out": len(prepared.held_out),
        "sha256": table.sha256,
    }
