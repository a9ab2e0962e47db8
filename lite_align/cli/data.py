"""`lite-align check DATA`: what a file holds, before anything is trained on it."""

from pathlib import Path
from typing import Annotated

import typer

from lite_align.cli import options
from lite_align.cli.train import mapping


def check(
    data: options.Data,
    show: Annotated[
        int,
        typer.Option(
            "--show", metavar="N", min=0, help="Show N rows as they will be trained, coloured by mask."
        ),
    ] = 0,
    fix: Annotated[
        Path | None, typer.Option("--fix", metavar="OUT", help="Write the usable rows to a new .jsonl file.")
    ] = None,
    model: options.Model = None,
    recipe: options.Recipe = None,
    sets: options.Sets = None,
    format: options.Format = None,
    map: options.Map = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Check rows: format, mistakes, lengths in tokens."""
    from lite_align.recipe import load
    from lite_align.stages import check as stage
    from lite_align.view import View

    flags = {"model.name": model, "data.format": format, "data.map": mapping(map)}
    resolved = load("dpo", data=data, recipe_file=recipe, flags=flags, sets=sets or ())
    stage.check(resolved.recipe, View(quiet, json), show=show, fix=fix)
