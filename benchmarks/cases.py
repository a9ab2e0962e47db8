"""Cases of a benchmark, measured from the command line: a model, a precision, and what is to be reached with it."""

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import machine, record
from benchmarks.sides import LITE, Side, Work, compare, interleave, opponents, summary

FOLDER = Path(tempfile.gettempdir()) / "lite-align-benchmark"


@dataclass(frozen=True)
class Case:
    """A model in a precision, and what is to be reached with it.

    Args:
        size: of the model, a key of `workload.SIZES`.
        precision: bf16 or nf4.
        speed: at least so many times TRL's examples a CPU second.
        memory: at most so many times TRL's memory.
        vocabulary: other than that of the size.
        epochs: each is measured.
        examples: in the data.
    """

    size: str
    precision: str
    speed: float
    memory: float = 0.6
    vocabulary: int | None = None
    epochs: tuple[int, ...] = (1,)
    examples: int = 48


@dataclass(frozen=True)
class Benchmark:
    """What is compared.

    Args:
        noun: what an example is: "pair".
        result: file of the results.
        cases: by name.
        toy: cases for the tests: small enough to be over at once, and too small to compare anything.
        sides: all sides for a precision and `key=value` settings of our recipe.
        work: makes model and rows of a case in a folder.
        parts: names of what the seconds are made of, where a side tells.
    """

    noun: str
    result: Path
    cases: Mapping[str, Case]
    toy: Mapping[str, Case]
    sides: Callable[[str, Sequence[str]], dict[str, Side]]
    work: Callable[[Path, Case], Work]
    parts: tuple[str, ...] = ()


def measure(
    work: Work, sides: Mapping[str, Side], epochs: Sequence[int], repeats: int, sets: Sequence[str]
) -> dict[str, Any]:
    """All sides for every number of epochs, as it stands in the result file."""
    measured = {}
    for count in epochs:
        runs = interleave(sides, replace(work, epochs=count), repeats)
        measured[str(count)] = {"sides": summary(runs), "runs": runs}
    return {
        "machine": machine.describe(),
        "threads": work.threads,
        "examples": work.examples,
        "repeats": repeats,
        "sets": list(sets),
        "epochs": measured,
    }


def verdict(value: float, wanted: float, *, least: bool) -> str:
    """Whether a ratio reaches what is wanted, or by how much it does not."""
    if value >= wanted if least else value <= wanted:
        return f"{'at least' if least else 'at most'} {wanted:g} wanted: reached"
    return f"{wanted:g} wanted: missed by {abs(value - wanted):.2f}"


def told(name: str, case: Case, measured: dict[str, Any], benchmark: Benchmark) -> list[str]:
    """Lines for a person: every side, the ratios, and whether they are what is to be reached."""
    lines, noun = [], benchmark.noun
    for epochs, result in measured["epochs"].items():
        sides = result["sides"]
        lines.append(
            f"{name}, {epochs} epoch(s), {measured['examples']} {noun}s, {measured['repeats']} runs a side"
        )
        for side, figures in sides.items():
            seconds, memory = figures["seconds_per_example"], figures["memory"]["median"]
            lines.append(
                f"  {side:40s} {seconds['median']:.3f} CPU s/{noun} ({seconds['low']:.3f} to {seconds['high']:.3f})"
                f"  {memory / 2**20:7,.0f} MiB  {figures['tokens_per_example']['median']:.0f} tokens each"
            )
            if benchmark.parts:
                shares = ", ".join(
                    f"{part} {figures[f'{part}_seconds_per_example']['median']:.3f}"
                    for part in benchmark.parts
                )
                lines.append(f"  {'':40s} {shares}")
        ratio = compare(sides, LITE, opponents(sides))
        lines.append(f"  against {ratio.against}:")
        lines.append(f"  speed  {ratio.speed:.2f}x  ({verdict(ratio.speed, case.speed, least=True)})")
        lines.append(f"  memory {ratio.memory:.2f}x  ({verdict(ratio.memory, case.memory, least=False)})")
    return lines


def arguments(benchmark: Benchmark, about: str | None) -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ", ".join(benchmark.cases)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {names}; all if left out")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="sets")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of models and rows")
    out = f"default: results/{benchmark.result.name}; with --set: nothing is written"
    parser.add_argument("--out", type=Path, help=out)
    return parser


def main(benchmark: Benchmark, about: str | None) -> None:
    """Measure the named cases, print them and put them into the result file."""
    parser = arguments(benchmark, about)
    args = parser.parse_args()
    known = {**benchmark.cases, **benchmark.toy}
    if unknown := [name for name in args.cases if name not in known]:
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(benchmark.cases)}")
    out = args.out or (None if args.sets else benchmark.result)
    for name in args.cases or benchmark.cases:
        case = known[name]
        work = replace(benchmark.work(args.folder, case), threads=args.threads)
        sides = benchmark.sides(case.precision, args.sets)
        measured = measure(work, sides, case.epochs, args.repeats, args.sets)
        print("\n".join(told(name, case, measured, benchmark)), flush=True)
        if out is not None:
            record.add(out, name, measured)
