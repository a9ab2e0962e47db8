"""What every training command does around its stage: device, automatic settings, run folder, plan."""

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from lite_align.errors import UserError
from lite_align.model import load
from lite_align.recipe import Resolved, drift_classes, flatten, resolve_auto, size_defaults, to_dict
from lite_align.recipe.keys import Key, keys, yaml_value
from lite_align.stages.command import CommandOptions
from lite_align.train.record import find_unfinished, read_record
from lite_align.train.run import Run
from lite_align.view import View

RUNS = Path("runs")
HELD_OUT, MOST_HELD_OUT = 0.1, 512  # share and number of held-out pairs where the recipe does not say
LONGEST = 2048  # tokens of prompt and answer where the recipe does not say
FEW_EXAMPLES = 2000  # below this a second epoch is worth its time
SAVES, EVALUATIONS = 10, 5  # in a whole run, where the recipe says "auto"

AnyResolved = TypeVar("AnyResolved", bound=Resolved[Any])


def device() -> torch.device:
    """The device that runs train on: the first CUDA device, or the CPU."""
    found = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # Before the first parallel work of this thread: the threads that it makes then inherit it.
    load.flush_denormals(found)
    return found


def require_one_process() -> None:
    """Refuse a start in several processes: they would write one run folder, each on a part of the examples.

    Raises:
        UserError: WORLD_SIZE, which torchrun and accelerate set, is not 1 (rule LA412).
    """
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes != "1":
        raise UserError(
            f"LA412: this run was started in {processes} processes; lite-align trains in one.",
            remedy="Start it without torchrun or accelerate launch; to choose the GPU, set CUDA_VISIBLE_DEVICES.",
        )


# Resuming.


def interrupted_run(command: CommandOptions, stage: str, data: str) -> Path | None:
    """The folder that `--resume` continues, or None for a new run.

    Raises:
        UserError: there is nothing to resume.
    """
    if not command.resume:
        return None
    folder = command.out or find_unfinished(RUNS, stage, data)
    if folder is None or not folder.is_dir():
        raise UserError(
            f"There is no unfinished {stage} run of {data} under {RUNS}/."
            if folder is None
            else f"There is no run folder {folder}.",
            remedy="lite-align runs lists them; leave --resume out to start a new run.",
        )
    return folder


def stored_record(folder: Path | None) -> Mapping[str, Any] | None:
    """The record of the run that is resumed; None if it was killed before it wrote one."""
    return read_record(folder) if folder is not None and (folder / "run.json").exists() else None


def open_run(
    resolved: Resolved[Any],
    command: CommandOptions,
    folder: Path | None,
    hashes: dict[str, str],
    parents: Sequence[Mapping[str, str]] = (),
) -> Run:
    """Create a run folder, or lock the interrupted one after checking that it would be continued exactly.

    Raises:
        DriftError: a setting, the data or the model differs from the interrupted run.
        UserError, RunInUse: the folder cannot be used.
    """
    recipe = to_dict(resolved.recipe)
    if stored_record(folder) is None:
        return Run.create(
            stage=recipe["stage"],
            recipe=recipe,
            provenance=resolved.provenance,
            out=folder or command.out,
            root=RUNS,
            command=shlex.split(command.command),
            parents=parents,
        )
    assert folder is not None
    run = Run.resume(folder)
    try:
        classes = drift_classes(recipe["stage"])
        run.check_drift(recipe, classes, hashes=hashes, accept=command.accept_drift)
    except BaseException as error:
        run.finish("interrupted", error=str(error))
        run.close()
        raise
    return run


# Settings that depend on the model and the data.


def settle(resolved: Resolved[Any], stored: Mapping[str, Any] | None, on: torch.device) -> Resolved[Any]:
    """Fill the "auto" settings of the model block; a resumed run keeps the values it was started with."""
    if stored is not None:
        for key, value in flatten(stored["recipe"]).items():
            resolved = resolve_auto(resolved, key, value, "as the interrupted run")
    return settle_model(resolved, on)


def settle_model(resolved: Resolved[Any], on: torch.device) -> Resolved[Any]:
    """Fill the settings that follow from the model's configuration and the device."""
    options = resolved.recipe.model
    choice = load.choose(options, device=on)
    resolved = resolve_auto(resolved, "model.name", choice.name, choice.reason)
    gpu = on.type == "cuda"
    kind = "a GPU" if gpu else "a CPU"
    settled = load.settle(resolved.recipe.model, device=on)
    resolved = resolve_auto(resolved, "model.quantization", settled.quantization, f"on {kind}")
    resolved = resolve_auto(resolved, "model.dtype", settled.dtype, f"on {kind}")
    length = min(LONGEST, settled.positions)
    return resolve_auto(resolved, "data.max_length", length, f"the model has {settled.positions:,} positions")


def settle_held_out(resolved: Resolved[Any], examples: int) -> Resolved[Any]:
    """Fill the share of prompts that is held out."""
    share = round(min(HELD_OUT, MOST_HELD_OUT / max(1, examples)), 4)
    return resolve_auto(resolved, "data.held_out", share, f"a tenth, at most about {MOST_HELD_OUT} pairs")


def total_steps(recipe: Any, examples: int) -> int:
    """Optimiser steps of the run: `max_steps`, or the epochs; the last step of an epoch may be smaller."""
    if recipe.train.max_steps is not None:
        return recipe.train.max_steps
    steps_per_epoch = -(-examples // recipe.train.batch_size)
    return max(1, round(recipe.train.epochs * steps_per_epoch))


def settle_training(
    resolved: Resolved[Any],
    *,
    parameters: int,
    examples: int,
    steps: Callable[[Any, int], int] = total_steps,
) -> Resolved[Any]:
    """Fill the "auto" settings that follow from the size of the model and of the data; `steps` counts the run's."""
    for key, value in size_defaults(resolved.recipe.stage, parameters).items():
        if key in flatten(to_dict(resolved.recipe)):
            resolved = resolve_auto(resolved, key, value, f"{short(parameters)} parameters")
    few = examples < FEW_EXAMPLES
    reason = f"{'fewer' if few else 'no fewer'} than {FEW_EXAMPLES:,} examples"
    resolved = resolve_auto(resolved, "train.epochs", 2.0 if few else 1.0, reason)
    total = steps(resolved.recipe, examples)
    for key, times in (("train.save_steps", SAVES), ("train.eval_steps", EVALUATIONS)):
        resolved = resolve_auto(
            resolved, key, max(1, -(-total // times)), f"{times} times in {total:,} steps"
        )
    return resolved


# What a person sees.


def short(count: float) -> str:
    """A count in three digits: 2.62 M, 7.6 B."""
    for size, unit in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


def show_settings(resolved: Resolved[Any], view: View) -> None:
    """Print every setting, block by block, and where those come from that are not defaults."""
    table: Mapping[str, Key] = keys(resolved.recipe.stage)
    values = flatten(to_dict(resolved.recipe))
    lines: dict[str, list[str]] = {}
    for dotted in table:
        block, _, name = dotted.partition(".")
        if dotted == "data.path":
            continue
        lines.setdefault(block, []).append(f"{name} {plain(values[dotted])}")
    view.section("settings", *(f"{block}: {' · '.join(entries)}" for block, entries in lines.items()))
    by_origin: dict[str, list[str]] = {}
    for dotted, origin in resolved.provenance.items():
        if origin != "default" and dotted != "data.path":
            by_origin.setdefault(origin, []).append(f"{dotted} {plain(values[dotted])}")
    if by_origin:
        view.section(
            "changed", *(f"{' · '.join(entries)}  ({origin})" for origin, entries in by_origin.items())
        )


def plain(value: object) -> str:
    """A recipe value for reading: `q_proj k_proj`, `1e-05`, `auto`."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "none"
    return str(yaml_value(value)) if value not in (None, {}, "") else "none"
