"""The verbs that train, and `lite-align run RECIPE`: build the recipe, start the stage."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lite_align.cli import options
from lite_align.errors import RecipeError, UserError
from lite_align.stages.command import CommandOptions


def _verb(stage: str, about: str, **own: Any) -> Callable[..., None]:
    """The command of a training stage; besides the options of all, `own` ones by name, as settings of its block."""

    def help_all(asked: bool) -> None:
        if asked:
            from lite_align.recipe import document

            typer.echo(document(stage), nl=False)
            raise typer.Exit

    every_setting = typer.Option(
        "--help-all", callback=help_all, is_eager=True, help="Print every recipe setting, as a recipe."
    )

    def command(
        data: options.Data,
        model: options.Model = None,
        from_: options.From = None,
        out: options.Out = None,
        recipe: options.Recipe = None,
        sets: options.Sets = None,
        resume: options.Resume = False,
        accept_drift: options.AcceptDrift = None,
        dry_run: options.DryRun = False,
        seed: options.Seed = None,
        format: options.Format = None,
        map: options.Map = None,
        quiet: options.Quiet = False,
        json: options.Json = False,
        debug: options.Debug = False,
        help_all: Annotated[bool, every_setting] = False,
        **others: object,
    ) -> None:
        flags = _flags(model, from_, seed, format, map)
        flags |= {f"{stage}.{name}": value for name, value in others.items()}
        told = _command(out, resume, accept_drift, dry_run)
        _train(stage, data, recipe, flags, sets or (), told, quiet=quiet, json=json)

    command.__name__, command.__doc__ = stage, about
    # Typer reads options off the signature.
    *common, _ = inspect.signature(command).parameters.values()
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)
        for name, option in own.items()
    ]
    command.__signature__ = inspect.Signature([*common, *added])  # pyright: ignore[reportFunctionMemberAccess]
    del command.__annotations__["others"]
    command.__annotations__.update(own)
    return command


sft = _verb("sft", "Train on conversations to imitate.")
reward = _verb("reward", "Train a reward model, which scores answers, on pairs of answers.")
dpo = _verb("dpo", "Train on pairs of a chosen and a rejected answer.")
ppo = _verb(
    "ppo",
    "Train on prompts: answers are sampled, scored by a reward model, a function or rules, and learned from.",
    reward=options.Reward,
    reward_fn=options.RewardFn,
    force=options.Force,
)


def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe that names its stage (YAML).")],
    data: options.OptionalData = None,
    model: options.Model = None,
    from_: options.From = None,
    out: options.Out = None,
    sets: options.Sets = None,
    resume: options.Resume = False,
    accept_drift: options.AcceptDrift = None,
    dry_run: options.DryRun = False,
    seed: options.Seed = None,
    format: options.Format = None,
    map: options.Map = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Run the stage that a recipe names, or all of its stages."""
    from lite_align.recipe import is_loop, is_pipeline, stage_of

    if is_loop(recipe):
        raise RecipeError(f"{recipe} is the recipe of a loop", remedy=f"lite-align loop {recipe}")
    flags = _flags(model, from_, seed, format, map)
    command = _command(out, resume, accept_drift, dry_run)
    if is_pipeline(recipe):
        _run_pipeline(recipe, data, flags, sets or (), command, quiet=quiet, json=json)
        return
    _train(stage_of(recipe), data, recipe, flags, sets or (), command, quiet=quiet, json=json)


def _run_pipeline(
    recipe: Path,
    data: str | None,
    flags: dict[str, object],
    sets: Sequence[str],
    command: CommandOptions,
    *,
    quiet: bool,
    json: bool,
) -> None:
    from lite_align.recipe import load_pipeline
    from lite_align.view import View

    if data is not None or flags["model.adapter"] is not None:
        given = "DATA" if data is not None else "--from"
        raise RecipeError(
            f"{given} is for a recipe with one stage; {recipe} has several",
            remedy="Set it for a stage: --set sft.data.path=FILE, or `from:` in the recipe.",
        )
    pipeline = load_pipeline(recipe, flags=flags, sets=sets)

    from lite_align.stages.start import run

    run(pipeline, command, View(quiet, json))


def _flags(
    model: str | None,
    from_: str | None,
    seed: int | None,
    format: str | None,
    map: Sequence[str] | None,
) -> dict[str, object]:
    """The settings that have a flag of their own, by dotted key."""
    return {
        "model.name": model,
        "model.adapter": from_,
        "train.seed": seed,
        "data.format": format,
        "data.map": mapping(map),
    }


def mapping(texts: Sequence[str] | None) -> dict[str, str] | None:
    """`["chosen=good"]` as `{"chosen": "good"}`; None if nothing was given."""
    if not texts:
        return None
    wrong = [f"--map {text}: FIELD=COLUMN expected" for text in texts if not all(text.partition("="))]
    if wrong:
        raise UserError("A column mapping is not right", details=wrong, remedy="Example: --map chosen=good")
    return {field: column for field, _, column in (text.partition("=") for text in texts)}


def _command(
    out: Path | None,
    resume: bool,
    accept_drift: Sequence[str] | None,
    dry_run: bool,
) -> CommandOptions:
    return CommandOptions(out, resume, tuple(accept_drift or ()), dry_run, options.typed())


def _train(
    stage: str,
    data: str | None,
    recipe_file: Path | None,
    flags: dict[str, object],
    sets: Sequence[str],
    command: CommandOptions,
    *,
    quiet: bool,
    json: bool,
) -> None:
    from lite_align.recipe import load
    from lite_align.view import View

    resolved = load(stage, data=data, recipe_file=recipe_file, flags=flags, sets=sets)
    if not resolved.recipe.data.path:
        raise RecipeError("The recipe names no data", remedy="Set data.path, or: lite-align run RECIPE DATA")

    from lite_align.stages.start import train

    train(resolved, command, View(quiet, json))
