"""A training verb, top to bottom: rows, plan, weights, proof, training, verdict."""

from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from lite_align.errors import TrainingStopped
from lite_align.evaluate import report, verdict
from lite_align.losses import catalogue
from lite_align.model import load
from lite_align.model.backbone import Backbone, Role
from lite_align.model.folder import fingerprint, locate
from lite_align.recipe import Resolved, memory_levers
from lite_align.stages import lineage, resources, session
from lite_align.stages.command import CommandOptions
from lite_align.stages.prepare import data_record, prepare, show_plan
from lite_align.stages.procedure import Prepared, Procedure
from lite_align.stages.stage import Stage
from lite_align.stages.train_dpo import DPOProcedure
from lite_align.stages.train_kto import KTOProcedure
from lite_align.stages.train_ppo import PPOProcedure
from lite_align.stages.train_reward import RewardProcedure
from lite_align.stages.train_sft import SFTProcedure
from lite_align.train.engine import Engine
from lite_align.train.faults import TokenBudget, lost_device_told
from lite_align.train.fit import Cadence, fit, restore, tell_lowered
from lite_align.train.run import Run, require_unused
from lite_align.view import View

PROCEDURES: dict[str, Procedure[Any]] = {
    procedure.stage: procedure
    for procedure in (SFTProcedure(), RewardProcedure(), DPOProcedure(), PPOProcedure())
}
"""Training verbs by stage."""


def train(resolved: Resolved[Any], command: CommandOptions, view: View) -> Path | None:
    """Train an adapter as the recipe says and return the run folder (None after a dry run).

    Raises:
        LiteAlignError: with the exit code that belongs to what went wrong; see `errors`.
    """
    procedure = procedure_of(resolved.recipe)
    session.require_one_process()
    folder = session.interrupted_run(command, procedure.stage, resolved.recipe.data.path)
    stored = session.stored_record(folder)
    if folder is not None and stored is not None and stored["status"] == "finished":
        if not (folder / "report.html").exists():  # killed before its last file
            report.write(folder)
        view.section("saved", f"{folder} is finished; nothing is left to resume.")
        return folder
    procedure.check(resolved.recipe)  # a wrong option and a used folder are told before the data are read
    inputs = procedure.inputs(resolved.recipe, folder)
    if command.out is not None and folder is None and not command.dry_run:
        require_unused(command.out)
    parent = starting_point(resolved, folder, stored)
    prepared = prepare(procedure, resolved, stored, view, parent=parent, dry_run=command.dry_run)
    show_plan(procedure, prepared, view)
    if command.dry_run:
        view.section("next", "Leave out --dry-run to train; nothing was written.")
        return None
    options = prepared.recipe.model
    prepared.hashes["base"] = fingerprint(locate(options.name, options.revision))
    prepared.hashes.update(inputs)
    if parent is not None:
        lineage.require_base(parent, prepared.hashes["base"])
    procedure.fit_base(prepared, folder)
    parents = [parent.facts()] if parent else []
    with (
        session.open_run(prepared.resolved, command, folder, prepared.hashes, parents) as run,
        lost_device_told(run.path),
    ):
        run.update("data", data_record(prepared))
        run.update("plan", {"total_steps": prepared.total_steps, prepared.kind.noun: len(prepared.train)})
        run.update("forecast", prepared.forecast.record())
        backbone = load_backbone(procedure, prepared, run, view)
        watch = resources.Watch(prepared.meter)
        stage, engine = build(procedure, backbone, prepared, run, view)
        resumed = stored is not None and restore(stage, engine, run)
        if resumed:
            view.section("resumed", f"{run.path} after step {engine.step:,} of {engine.total_steps:,}")
        else:
            procedure.prove(stage, run, view)
        if peak := resources.probe(stage, engine, prepared.forecast, prepared.meter):
            watch.keep(peak)
            run.update("measured", {"recomputed": backbone.blocks.recomputed})
        fit(stage, engine, run, view, cadence(prepared))
        run.update("measured", watch.read(prepared.forecast, backbone.blocks.recomputed))
        finish(procedure, stage, prepared, run, view)
    return run.path


def procedure_of(recipe: Any) -> Procedure[Any]:
    """What the verb of a recipe does: preference training by what the loss learns from.

    Raises:
        RecipeError: there is no such loss.
    """
    if recipe.stage == "dpo" and catalogue.find(recipe.loss.name).rows == "thumbs":
        return KTOProcedure(scores_mismatched=catalogue.find(recipe.loss.name).needs_zero)
    return PROCEDURES[recipe.stage]


def starting_point(resolved: Resolved[Any], folder: Path | None, stored: Any) -> lineage.Parent | None:
    """The adapter that the run starts from: its own copy where the run is resumed."""
    if folder is not None and stored is not None:
        return lineage.kept(folder, stored)
    return lineage.find(resolved.recipe.model, resolved.recipe.stage)


def load_backbone(procedure: Procedure[Any], prepared: Prepared[Any], run: Run, view: View) -> Backbone:
    """Load the base, unless it was read together with the rows, and attach the adapter."""
    recipe = prepared.recipe
    on = session.device()
    loaded = prepared.loading.result() if prepared.loading else load.read(recipe.model, device=on)
    loaded = load.place(loaded, recipe.speed)
    seed, speed = recipe.train.seed, recipe.speed
    backbone = Backbone(loaded, recipe.lora, seed=seed, speed=speed, role=procedure.role)
    if prepared.parent is not None:
        parent = lineage.keep(prepared.parent, run.path)
        lineage.start(backbone, parent, has_reference=procedure.role is Role.POLICY)
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
    record_reference(backbone, prepared, run)
    run.update("hashes", prepared.hashes)
    return backbone


def record_reference(backbone: Backbone, prepared: Prepared[Any], run: Run) -> None:
    """Write what the run is measured against, by hash, and refuse another base than it was started with."""
    identity = backbone.reference_identity()
    base = backbone.base_sha256()
    known = run.record.get("reference")
    if isinstance(known, dict) and known["base_sha256"] != base:
        raise TrainingStopped("The base weights are not those that this run was started with.")
    proven = known if isinstance(known, dict) else {}  # a resumed run has the proof of its first start
    twin = backbone.has(Role.REFERENCE) and prepared.parent is not None
    role = f"frozen twin of {prepared.parent.name}" if twin and prepared.parent else "base, adapters off"
    run.update("reference", {**proven, "role": role, **identity, "base_sha256": base})


def build(
    procedure: Procedure[Any], backbone: Backbone, prepared: Prepared[Any], run: Run, view: View
) -> tuple[Stage[Any, Any], Engine[Any]]:
    """Make the stage, with all that it computes before its first step, and the engine."""
    recipe = prepared.recipe
    budget = TokenBudget(
        recipe.train.tokens_per_microbatch,
        tell=partial(tell_lowered, run, view),
        levers=memory_levers(recipe),
    )
    stage = procedure.build(backbone, prepared, run, budget, view)
    accelerator = Accelerator(cpu=session.device().type == "cpu")
    named = backbone.parameters(procedure.role)
    fused = recipe.speed.fused_optimizer
    return stage, Engine(
        accelerator, named, recipe.train, prepared.total_steps, fused=fused, others=stage.groups()
    )


def cadence(prepared: Prepared[Any]) -> Cadence:
    """When to log, evaluate and save."""
    options = prepared.recipe.train
    evaluate = options.eval_steps or prepared.total_steps
    return Cadence(options.log_steps, evaluate, options.save_steps, options.keep_checkpoints, prepared.hashes)


def finish(
    procedure: Procedure[Any], stage: Stage[Any, Any], prepared: Prepared[Any], run: Run, view: View
) -> None:
    """Save the adapter, measure what it is worth, and say what it all means."""
    backbone = stage.backbone
    record = run.record["reference"]
    assert isinstance(record, dict)
    if backbone.base_sha256() != record["base_sha256"]:
        raise TrainingStopped(
            "LA414: the base weights changed during the run, so the reference moved with them."
        )
    adapter = run.path / "adapters" / procedure.role.value
    backbone.save_adapter(procedure.role, adapter)
    run.update("adapters", {procedure.role.value: backbone.adapter_sha256(procedure.role)})
    procedure.measure(stage, prepared, run, view)
    found = verdict.judge(run.path)
    run.update("verdict", {"word": found.word, "sentences": found.sentences, "warnings": found.warnings})
    run.finish()
    page = report.write(run.path)
    procedure.show(found, run, view)
    if found.headline:
        view.section("held out", found.headline)
    measured = run.record["measured"]
    assert isinstance(measured, dict)
    view.section("needed", resources.compared(measured))
    view.section("verdict", found.word[0].upper() + found.word[1:] + ".", *found.sentences)
    for warning in found.warnings:
        view.warn(warning)
    size = sum(file.stat().st_size for file in adapter.iterdir())
    view.section("saved", f"{run.path}  (adapter {size / 1e6:.1f} MB, {page.name})")
    view.section("next", procedure.next(run.path))
    view.json_record(run.record)
