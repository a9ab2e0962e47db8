"""`lite-align chat RUN`: talk to the model that a run trained."""

from pathlib import Path
from typing import Annotated

import typer

from lite_align.cli import options


def chat(
    run: options.RunFolder,
    system: Annotated[str, typer.Option("--system", metavar="TEXT", help="System text.")] = "",
    temperature: Annotated[
        float, typer.Option("--temperature", metavar="T", min=0.0, help="0: always the likeliest token.")
    ] = 0.0,
    top_p: Annotated[
        float,
        typer.Option("--top-p", metavar="P", min=0.0, max=1.0, help="Sample from the likeliest tokens only."),
    ] = 1.0,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", metavar="N", min=1, help="Longest answer.")
    ] = 512,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the sampling.")] = 42,
    reward: Annotated[
        Path | None, typer.Option("--reward", metavar="RUN", help="Show the score of each answer.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FILE", help="Append every answer to a JSONL file.")
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Talk to the model of a run."""
    from lite_align.stages import chat as stage
    from lite_align.stages.speaker import Sampling
    from lite_align.view import View

    sampling = Sampling(temperature, top_p, max_tokens, seed)
    stage.chat(run, View(), sampling, system=system, reward=reward, save=save)
