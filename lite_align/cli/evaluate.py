"""`eval`, `compare`, `promote`, `rollback`, `sample`: what models say to prompts, and what follows from it."""

from pathlib import Path
from typing import Annotated

import typer

from lite_align.cli import options

Gates = Annotated[
    list[str] | None,
    typer.Option("--gate", metavar="CONDITION", help='As "win_rate>=0.55"; exit 3 if not met; repeatable.'),
]
Samples = Annotated[int, typer.Option("--samples", metavar="N", min=1, help="Answers to each prompt.")]
Prompts = Annotated[
    int, typer.Option("--prompts", metavar="N", min=1, help="Most prompts that are answered.")
]
Temperature = Annotated[
    float, typer.Option("--temperature", metavar="T", min=0.0, help="0: always the likeliest token.")
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", metavar="N", min=1, help="Longest answer.")]
JudgeModel = Annotated[
    str | None, typer.Option("--judge-model", metavar="NAME", help="Name of the model at the URL.")
]
Rubric = Annotated[
    Path | None, typer.Option("--rubric", metavar="YAML", help="What to judge by [default: ours].")
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the sampling.")]


def eval_(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run, or an adapter folder.")],
    data: Annotated[
        str | None, typer.Option("--data", metavar="FILE", help="In place of what the run held out.")
    ] = None,
    probes: Annotated[
        str | None,
        typer.Option(
            "--probes", metavar="FILE", help="Prompts of yours, some with expect: refuse or answer."
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", metavar="NAMES", help="Standard tasks of lm-eval, as arc_easy,piqa."),
    ] = None,
    tasks_limit: Annotated[
        int | None, typer.Option("--tasks-limit", metavar="N", min=1, help="Most questions of a task.")
    ] = None,
    tasks_path: Annotated[
        Path | None, typer.Option("--tasks-path", metavar="DIR", help="YAML files of tasks of yours.")
    ] = None,
    gate: Gates = None,
    samples: Samples = 1,
    prompts: Prompts = 200,
    temperature: Temperature = 1.0,
    max_tokens: MaxTokens = 256,
    seed: Seed = 42,
    model: options.Model = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="For the results [default: the run folder].")
    ] = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Measure what a run gained and lost on held-out rows and on probes."""
    from lite_align.flywheel import evaluation
    from lite_align.flywheel.standard_tasks import Tasks
    from lite_align.stages.speaker import Sampling
    from lite_align.view import View

    sampling = Sampling(temperature, 1.0, max_tokens, seed)
    standard = None if tasks is None else Tasks(tuple(tasks.split(",")), tasks_limit, tasks_path)
    gates = tuple(gate or ())
    wanted = evaluation.Options(
        data, probes, prompts, samples, sampling, model, out, gates, options.typed(), standard
    )
    raise typer.Exit(evaluation.evaluate(run, wanted, View(quiet, json)))


def compare(
    models: Annotated[
        list[str], typer.Argument(metavar="A B …", help="Runs, adapter folders, or the word base.")
    ],
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="FILE", help="Prompts [default: what the last run held out]."),
    ] = None,
    by: Annotated[
        str,
        typer.Option("--by", metavar="JUDGE", help="base, a reward RUN, a URL, FILE.py:NAME, or people."),
    ] = "base",
    judge_model: JudgeModel = None,
    rubric: Rubric = None,
    votes: Annotated[
        str | None,
        typer.Option("--votes", metavar="VOTES", help="Count these votes; nothing is loaded or sampled."),
    ] = None,
    humans: Annotated[
        str | None,
        typer.Option("--humans", metavar="VOTES", help="Votes of people that the judge is measured on."),
    ] = None,
    gate: Gates = None,
    samples: Samples = 1,
    prompts: Prompts = 200,
    temperature: Temperature = 1.0,
    max_tokens: MaxTokens = 256,
    seed: Seed = 42,
    model: options.Model = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="For the results [default: runs/compare-…].")
    ] = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Let models answer the same prompts on one base, and a judge say which is better."""
    from lite_align.flywheel import compare as comparing
    from lite_align.flywheel.judges.opening import Asked
    from lite_align.stages.speaker import Sampling
    from lite_align.view import View

    judge = None if by == comparing.PEOPLE else Asked(by=by, model=judge_model, rubric=rubric, seed=seed)
    sampling = Sampling(temperature, 1.0, max_tokens, seed)
    gates = tuple(gate or ())
    wanted = comparing.Options(
        data, prompts, samples, sampling, judge, votes, humans, model, out, gates, options.typed()
    )
    raise typer.Exit(comparing.compare(models, wanted, View(quiet, json)))


Project = Annotated[
    Path, typer.Option("--project", metavar="DIR", help="Folder with the pointer to what is current.")
]
Who = Annotated[
    str | None, typer.Option("--who", metavar="NAME", help="Who decides [default: the user of this machine].")
]
Why = Annotated[str, typer.Option("--why", metavar="TEXT", help="For the record.")]


def promote(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run.")],
    why: Why,
    project: Project = Path("project"),
    start: Annotated[
        str, typer.Option("--start", metavar="RUN", help="What is current while nothing is promoted.")
    ] = "base",
    final: Annotated[
        str | None,
        typer.Option(
            "--final", metavar="FILE", help="Sealed prompts, some with expect [default: as before]."
        ),
    ] = None,
    final_uses: Annotated[
        int, typer.Option("--final-uses", metavar="N", min=1, help="Most tries on the same sealed prompts.")
    ] = 10,
    by: Annotated[
        str, typer.Option("--by", metavar="JUDGE", help="base, a reward RUN, a URL, or FILE.py:NAME.")
    ] = "base",
    judge_model: JudgeModel = None,
    rubric: Rubric = None,
    probes: Annotated[
        str | None,
        typer.Option("--probes", metavar="FILE", help="Adversarial suite of which nothing may newly fail."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", metavar="VOTES", help="Votes that the run was trained on: they must agree."),
    ] = None,
    gate: Gates = None,
    kl: Annotated[
        float, typer.Option("--kl", metavar="NATS", min=0.0, help="Budget of the KL, an answer.")
    ] = 20.0,
    temperature: Temperature = 1.0,
    max_tokens: MaxTokens = 256,
    seed: Seed = 42,
    who: Who = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Make a run the current one of a project, if every gate passes."""
    from lite_align.evaluate.gates import Limits
    from lite_align.flywheel import promotion
    from lite_align.flywheel.judges.opening import Asked
    from lite_align.stages.speaker import Sampling
    from lite_align.view import View

    wanted = promotion.Options(
        folder=project,
        final=final,
        uses=final_uses,
        judge=Asked(by=by, model=judge_model, rubric=rubric, seed=seed),
        probes=probes,
        labels=labels,
        sampling=Sampling(temperature, 1.0, max_tokens, seed),
        gates=tuple(gate or ()),
        limits=Limits(kl=kl),
        who=who,
        why=why,
        start=start,
    )
    raise typer.Exit(promotion.promote(run, wanted, View(quiet)))


def rollback(
    why: Why, project: Project = Path("project"), who: Who = None, debug: options.Debug = False
) -> None:
    """Make the run current again that was promoted before the last one."""
    from lite_align.flywheel import promotion
    from lite_align.view import View

    promotion.rollback(project, who, why, View())


def sample(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run, an adapter folder, or base.")],
    data: Annotated[str, typer.Option("--data", metavar="FILE", help="Prompts.")],
    n: Annotated[int, typer.Option("--n", metavar="N", min=1, help="Answers to each prompt.")] = 4,
    against: Annotated[
        str | None,
        typer.Option(
            "--against", metavar="MODEL", help="Its answers too; reference: what the run started from."
        ),
    ] = None,
    reward: Annotated[
        Path | None, typer.Option("--reward", metavar="RUN", help="Score the answers by a reward run.")
    ] = None,
    best: Annotated[
        int, typer.Option("--best", metavar="N", min=0, help="Keep the N best by that score [default: all].")
    ] = 0,
    temperature: Temperature = 1.0,
    top_p: Annotated[
        float, typer.Option("--top-p", metavar="P", min=0.01, max=1.0, help="From the likeliest tokens only.")
    ] = 1.0,
    max_tokens: MaxTokens = 256,
    seed: Seed = 42,
    model: options.Model = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Candidates; a file that is there goes on.")
    ] = Path("candidates.jsonl"),
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Sample several answers to each prompt, for label and judge."""
    from lite_align.flywheel import sample as sampling
    from lite_align.stages.speaker import Sampling
    from lite_align.view import View

    drawn = Sampling(temperature, top_p, max_tokens, seed)
    wanted = sampling.Options(data, n, drawn, against, reward, best, out, model)
    sampling.sample(run, wanted, View(quiet))
