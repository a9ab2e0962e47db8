"""Arguments and options that several commands share, each with its help text."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[
    str, typer.Argument(metavar="DATA", help="A .jsonl, .json, .csv or .parquet file, a folder, or a hub id.")
]
OptionalData = Annotated[
    str | None, typer.Argument(metavar="[DATA]", help="In place of data.path in the recipe.")
]
Model = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="Folder, hub id, or tiny (built in).")
]
From = Annotated[
    str | None,
    typer.Option("--from", metavar="RUN", help="Finished run, or adapter folder, to continue."),
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Run folder [default: runs/…].")]
Recipe = Annotated[Path | None, typer.Option("--recipe", metavar="FILE", help="Recipe to start from (YAML).")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting of the recipe; repeatable."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
AcceptDrift = Annotated[
    list[str] | None,
    typer.Option("--accept-drift", metavar="KEY", help="Resume although this setting changed; repeatable."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Stop after the plan; nothing is written.")]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Seed of the run [default: 42].")]
Format = Annotated[
    str | None, typer.Option("--format", metavar="NAME", help="Row format, when the vote is wrong.")
]
Map = Annotated[
    list[str] | None,
    typer.Option("--map", metavar="FIELD=COLUMN", help="Own column name, as chosen=good; repeatable."),
]
Reward = Annotated[
    str | None, typer.Option("--reward", metavar="RUN", help="Finished run of lite-align reward.")
]
RewardFn = Annotated[
    str | None,
    typer.Option("--reward-fn", metavar="FILE.py:NAME", help="Python function that scores an answer."),
]
Force = Annotated[
    bool | None, typer.Option("--force", help="Start although the reward model is weak or likes length.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Only the last lines: held out, verdict, saved, next.")]
Json = Annotated[bool, typer.Option("--json", help="Only the run's record, as JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/dpo-data-0001.")]


def typed() -> str:
    """The command line as it was typed."""
    return shlex.join(["lite-align", *sys.argv[1:]])
