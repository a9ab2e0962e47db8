"""`lite-align eval` and `lite-align compare` on 200 prompts, against two whole models and plain `generate`.

`python -m benchmarks.evaluation` makes a model, pairs and run folders with random adapters, and runs both sides of both
commands in turn, each in a process of its own: same weights, adapters, prompts, pairs, lengths of answers, threads and
precision; the opponent as `opponent_evaluation.py` says. A command is counted from loading to its figures, imports on
neither side. Random weights hardly ever stop by themselves: answers have the greatest length, the same number of tokens
on both sides. `python -m benchmarks.evaluation eval/15m/nf4` measures one case anew; `eval/toy/bf16` is over at once,
and too small to compare anything.
"""

import argparse
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import cases, lite_evaluation, opponent_evaluation, record, tables, workload
from benchmarks.sides import COMMAND_PARTS, LITE, Side, Work, compare

RESULT = record.RESULTS / "evaluation-cpu.json"
PLAIN = "whole models"
COMMANDS = ("eval", "compare")
REPEATS = 1
"""A round of all cases takes about six minutes on two cores."""


@dataclass(frozen=True)
class Task:
    """A command on a model in a precision, with so many prompts and answers of so many tokens."""

    command: str
    size: str
    precision: str
    prompts: int = 200
    new_tokens: int = 32


CASES = {
    f"{command}/15m/{precision}": Task(command, "15m", precision)
    for command in COMMANDS
    for precision in ("bf16", "nf4")
}
TOY = {f"{command}/toy/bf16": Task(command, "toy", "bf16", 8, 4) for command in COMMANDS}


def work_of(folder: Path, task: Task) -> Work:
    """Model, pairs and runs of a task, made where they are not there yet."""
    model = workload.make_model(folder, task.size)
    file = folder / f"{model.name}-evaluation-{task.prompts}.jsonl"
    rows = workload.write_rows(file, workload.make_rows(model, task.prompts))
    work = Work(str(model), str(rows), task.prompts)
    lite_evaluation.make_runs(work, task.precision)
    return work


def sides(task: Task) -> dict[str, Side]:
    """Ours and the plain one."""
    settings = task.command, task.precision, task.new_tokens
    return {LITE: lite_evaluation.side(*settings), PLAIN: opponent_evaluation.side(*settings)}


def measure(task: Task, folder: Path, threads: int, repeats: int) -> dict[str, Any]:
    """Both sides of a task, as it stands in the result file."""
    work = replace(work_of(folder, task), threads=threads)
    measured = cases.measure(work, sides(task), (1,), repeats, ())
    return {**measured, "new_tokens": task.new_tokens}


# The README.

MISSING = tables.MISSING
INTRODUCTION = (
    "`python -m benchmarks.evaluation` times both commands on 200 prompts, from loading to the figures, against the "
    "plain way: a whole model a side (for `compare` a reward model too), `generate` on padded batches and padded "
    "passes, with the best settings (`benchmarks/opponent_evaluation.py` has them with reasons); that both compute the "
    "same is a test (`tests/benchmarks/test_evaluation.py`). Prompts of about 115 tokens, answers of {tokens} (random "
    "weights do not stop by themselves); {runs}. Memory is what a process holds at its peak above its start."
)


def section(folder: Path = record.RESULTS) -> str:
    """The part of the README, from the result file and nothing else."""
    found = {name: case for name, case in record.load(folder / RESULT.name).items() if name in CASES}
    tokens = {case["new_tokens"] for case in found.values()} or {task.new_tokens for task in CASES.values()}
    rows = [
        "| command | model, precision | whole models, CPU s | lite-align | speed | memory |",
        "|---|---|---|---|---|---|",
        *(row(task, found.get(name)) for name, task in CASES.items()),
    ]
    repeats = {case["repeats"] for case in found.values()} or {REPEATS}
    runs = "one run a side" if repeats == {1} else f"medians of {either(repeats)} runs a side"
    told = INTRODUCTION.format(tokens=either(tokens), runs=runs)
    return "\n\n".join(filter(None, [told, "\n".join(rows), tables.machines(found)])) + "\n"


def either(numbers: Collection[int]) -> str:
    """One number, or several with "or" between them."""
    return " or ".join(map(str, sorted(numbers)))


def row(task: Task, measured: Mapping[str, Any] | None) -> str:
    """One row of the table."""
    cells = [MISSING] * 4
    if measured is not None:
        found = measured["epochs"]["1"]["sides"]
        ratio = compare(found, LITE, [PLAIN])
        cells = [
            *(seconds(found[side], measured["examples"]) for side in (PLAIN, LITE)),
            f"**{ratio.speed:.2f}x**",
            f"**{ratio.memory:.2f}x**",
        ]
    return f"| `{task.command}` | {task.size.upper()}, {task.precision} | {' | '.join(cells)} |"


def seconds(figures: Mapping[str, Any], prompts: int) -> str:
    """CPU seconds of a command, with their range if there were several runs, and what they are made of."""

    def of(key: str, value: str = "median") -> str:
        return f"{figures[key][value] * prompts:.1f}"

    whole = "seconds_per_example"
    parts = ", ".join(f"{part} {of(f'{part}_{whole}')}" for part in COMMAND_PARTS)
    low, high = of(whole, "low"), of(whole, "high")
    return f"{of(whole)}{f' ({low}–{high})' if low != high else ''}: {parts}"


def told(name: str, task: Task, measured: Mapping[str, Any]) -> str:
    """Lines for a person."""
    found = measured["epochs"]["1"]["sides"]
    lines = [f"{name}, {task.prompts} prompts, {measured['repeats']} run(s) a side"]
    lines += [
        f"  {side:14s} CPU s {seconds(figures, task.prompts)}  {figures['memory']['median'] / 2**20:,.0f} MiB  "
        f"{figures['tokens_per_example']['median']:.1f} tokens each"
        for side, figures in found.items()
    ]
    ratio = compare(found, LITE, [PLAIN])
    return "\n".join([*lines, f"  speed {ratio.speed:.2f}x  memory {ratio.memory:.2f}x"])


def main(arguments: list[str] | None = None) -> None:
    """Measure the named cases, print them and put them into the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all if left out")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=cases.FOLDER, help="of models, rows and runs")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args(arguments)
    known = CASES | TOY
    if unknown := [name for name in args.cases if name not in known]:
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    for name in args.cases or CASES:
        measured = measure(known[name], args.folder, args.threads, args.repeats)
        print(told(name, known[name], measured), flush=True)
        record.add(args.out, name, measured)


if __name__ == "__main__":
    main()
