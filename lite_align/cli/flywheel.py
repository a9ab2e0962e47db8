"""The flywheel: `label`, `agreement` and `judge`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from lite_align.cli import options


def label(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="Comparisons, votes, candidates of sample, or preference pairs."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="VOTES", help="File of votes [default: FILE.votes.jsonl].")
    ] = None,
    annotator: Annotated[
        str | None, typer.Option("--annotator", metavar="NAME", help="Who votes [default: it is asked].")
    ] = None,
    rubric: Annotated[
        Path | None,
        typer.Option(
            "--rubric", metavar="TEXT", help="What to judge by, shown as plain text [default: ours]."
        ),
    ] = None,
    pairs: Annotated[
        int, typer.Option("--pairs", metavar="N", min=1, help="Pairs of candidates a prompt, at most.")
    ] = 1,
    queue: Annotated[
        Literal["plan", "disagreements"],
        typer.Option(
            "--queue", metavar="NAME", help="disagreements: first those on which annotators differ."
        ),
    ] = "plan",
    repeats: Annotated[
        float | None,
        typer.Option(
            "--repeats", metavar="SHARE", min=0.0, max=0.5, help="Items asked once more [default: 0.1]."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="Of orders and sides [default: drawn, stored].")
    ] = None,
    terminal: Annotated[
        bool, typer.Option("--terminal", help="Vote here, without a browser; from a pipe, a key a line.")
    ] = False,
    host: Annotated[
        str, typer.Option("--host", metavar="NAME", help="127.0.0.1; no other is served.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=0, max=65535, help="0: any that is free.")
    ] = 0,
    debug: options.Debug = False,
) -> None:
    """Compare answers blind, on a local page or in the terminal."""
    from lite_align.flywheel.label.command import LabelOptions
    from lite_align.flywheel.label.command import label as start
    from lite_align.view import View

    asked = LabelOptions(
        out=out,
        annotator=annotator,
        rubric=rubric,
        pairs=pairs,
        repeats=repeats,
        seed=seed,
        disagreements=queue == "disagreements",
        terminal=terminal,
        host=host,
        port=port,
    )
    start(file, asked, View())


def agreement(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Files of votes.")],
    to: Annotated[
        tuple[str, Path] | None,
        typer.Option("--to", metavar="pairs OUT", help="Write what the votes come to as weighted pairs."),
    ] = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Say how far annotators agree, and what to discuss."""
    from lite_align.errors import UserError
    from lite_align.flywheel.agreement import report
    from lite_align.view import View

    if to is not None and to[0] != "pairs":
        raise UserError(f"--to {to[0]} is not known", remedy="Votes become pairs: --to pairs OUT.jsonl")
    report(files, View(json=json), pairs=to[1] if to else None)


def loop(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML with a block loop; see recipes/.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder of the loop [default: runs/NAME].")
    ] = None,
    sets: options.Sets = None,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Rounds of sample, label or judge, DPO and promote, until a gate stops them."""
    from lite_align.recipe import load_loop
    from lite_align.view import View

    plan = load_loop(recipe, sets or ())

    from lite_align.flywheel.loop import loop

    raise typer.Exit(loop(plan, out, options.typed(), View(quiet, json), dry_run=dry_run))


def judge(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="Comparisons, votes, candidates of sample, or preference pairs."),
    ],
    by: Annotated[
        str, typer.Option("--by", metavar="JUDGE", help="base, a reward RUN, a URL, or FILE.py:NAME.")
    ] = "base",
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="The base, or the model's name at the URL.")
    ] = None,
    rubric: Annotated[
        Path | None,
        typer.Option(
            "--rubric", metavar="YAML", help="Rubric, or with --revise constitution [default: ours]."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="OUT", help="Votes, or with --revise pairs [default: FILE.judged.jsonl]."
        ),
    ] = None,
    humans: Annotated[
        list[str] | None,
        typer.Option("--humans", metavar="VOTES", help="Votes of people that it is measured on; repeatable."),
    ] = None,
    revise: Annotated[
        bool, typer.Option("--revise", help="Criticise and revise answers; a pair each (Constitutional AI).")
    ] = False,
    pairs: Annotated[
        int, typer.Option("--pairs", metavar="N", min=1, help="Pairs of candidates a prompt, at most.")
    ] = 1,
    timeout: Annotated[
        float,
        typer.Option("--timeout", metavar="SECONDS", min=0.1, help="For one call of a URL or function."),
    ] = 60.0,
    at_once: Annotated[
        int, typer.Option("--at-once", metavar="N", min=1, max=64, help="Questions to a URL at a time.")
    ] = 4,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of marks, and of principles.")] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Write labels although nothing shows that people agree with them.")
    ] = False,
    quiet: options.Quiet = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Let a model, an endpoint or a function say which answer is better, or revise answers."""
    from lite_align.flywheel import judge as labels
    from lite_align.flywheel import revise as revisions
    from lite_align.flywheel.judges.opening import Asked
    from lite_align.view import View

    asked = Asked(by=by, model=model, rubric=rubric, seconds=timeout, at_once=at_once, seed=seed)
    if revise:
        revisions.revise(file, asked, out, View(quiet, json))
        return
    given = labels.JudgeOptions(asked, out=out, humans=tuple(humans or ()), pairs=pairs, force=force)
    labels.judge(file, given, View(quiet, json))
