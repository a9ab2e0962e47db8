"""`lite-align export RUN --to …`: a run as other programs load it."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from lite_align.cli import options


def export(
    run: options.RunFolder,
    to: Annotated[
        Literal["adapter", "merged", "ollama", "gguf"],
        typer.Option(
            "--to",
            metavar="KIND",
            help="adapter (PEFT), merged (transformers), ollama (merged, with a Modelfile), gguf (llama.cpp).",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="New folder [default: RUN/export/KIND].")
    ] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option(
            "--dtype", metavar="NAME", help="Merged weights: float32, bfloat16 or auto (as the run)."
        ),
    ] = "auto",
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Write the model of a run for other programs."""
    from lite_align.export import Kind, write
    from lite_align.view import View

    write.export(run, Kind(to), View(quiet), out=out, dtype=dtype)
