"""lite-align against TRL on the same DPO work: CPU seconds a pair and peak memory, against what is to be reached.

`python -m benchmarks.dpo` makes models and rows and runs both sides in turn, each in a process of its own. Same
rows, weights, LoRA shape, batch size, epochs, threads and precision; TRL as `opponent.py` says. The reference pass
is counted on both sides; loading, tokenising and saving on neither. `python -m benchmarks.dpo 15m/nf4` measures one
case anew; the others stay in the result file.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import lite, machine, opponent, record, workload
from benchmarks.sides import LITE, Work, compare, interleave, opponents, summary

RESULT = record.RESULTS / "dpo-cpu.json"
FOLDER = Path(tempfile.gettempdir()) / "lite-align-benchmark"


@dataclass(frozen=True)
class Case:
    """A model in a precision, and what is to be reached with it.

    Args:
        size: of the model, a key of `workload.SIZES`.
        precision: bf16 or nf4.
        speed: at least so many times TRL's pairs a CPU second.
        memory: at most so many times TRL's memory.
        vocabulary: other than that of the size.
        epochs: each is measured.
        pairs: in the data.
    """

    size: str
    precision: str
    speed: float
    memory: float = 0.6
    vocabulary: int | None = None
    epochs: tuple[int, ...] = (1,)
    pairs: int = 48


CASES = {
    "15m/bf16": Case("15m", "bf16", 2.5, epochs=(1, 3)),
    "15m/nf4": Case("15m", "nf4", 2.2, epochs=(1, 3)),
    "60m/bf16": Case("60m", "bf16", 2.0),
    "15m-131k/bf16": Case("15m", "bf16", 2.5, vocabulary=131072),
}
TOY = {"toy/bf16": Case("toy", "bf16", 0.0, memory=99.0, pairs=16)}
"""For the tests: small enough to be over at once, and too small to compare anything."""


def make_work(
    folder: Path,
    size: str,
    pairs: int,
    *,
    vocabulary: int | None = None,
    prompt: float = workload.PROMPT,
    answer: float = workload.ANSWER,
) -> Work:
    """Make model and rows where they are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    model = workload.make_model(folder, size, vocabulary)
    rows = workload.make_rows(model, pairs, prompt_tokens=prompt, answer_tokens=answer)
    file = folder / f"{model.name}-{pairs}-{prompt:g}-{answer:g}.jsonl"
    return Work(str(model), str(workload.write_rows(file, rows)), pairs)


def measure(
    work: Work, precision: str, epochs: Sequence[int], repeats: int, sets: Sequence[str]
) -> dict[str, Any]:
    """Both sides for every number of epochs, as it stands in the result file."""
    sides = {LITE: lite.side(precision, sets), **opponent.sides(precision)}
    measured = {}
    for count in epochs:
        runs = interleave(sides, replace(work, epochs=count), repeats)
        measured[str(count)] = {"sides": summary(runs), "runs": runs}
    return {
        "machine": machine.describe(),
        "threads": work.threads,
        "pairs": work.pairs,
        "repeats": repeats,
        "sets": list(sets),
        "epochs": measured,
    }


def verdict(value: float, wanted: float, *, least: bool) -> str:
    """Whether a ratio reaches what is wanted, or by how much it does not."""
    if value >= wanted if least else value <= wanted:
        return f"{'at least' if least else 'at most'} {wanted:g} wanted: reached"
    return f"{wanted:g} wanted: missed by {abs(value - wanted):.2f}"


def told(name: str, case: Case, measured: dict[str, Any]) -> list[str]:
    """Lines for a person: every side, the ratios, and whether they are what is to be reached."""
    lines = []
    for epochs, result in measured["epochs"].items():
        sides = result["sides"]
        lines.append(
            f"{name}, {epochs} epoch(s), {measured['pairs']} pairs, {measured['repeats']} runs a side"
        )
        for side, figures in sides.items():
            seconds, memory = figures["seconds_per_pair"], figures["memory"]["median"]
            lines.append(
                f"  {side:28s} {seconds['median']:.3f} CPU s/pair ({seconds['low']:.3f} to {seconds['high']:.3f})"
                f"  {memory / 2**20:7,.0f} MiB  {figures['tokens_per_pair']['median']:.0f} tokens a pair"
            )
        ratio = compare(sides, LITE, opponents(sides))
        lines.append(f"  against {ratio.against}:")
        lines.append(f"  speed  {ratio.speed:.2f}x  ({verdict(ratio.speed, case.speed, least=True)})")
        lines.append(f"  memory {ratio.memory:.2f}x  ({verdict(ratio.memory, case.memory, least=False)})")
    return lines


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all if left out")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="sets")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of models and rows")
    parser.add_argument(
        "--out", type=Path, help=f"default: results/{RESULT.name}; with --set: nothing is written"
    )
    return parser


def main() -> None:
    """Measure the named cases, print them and put them into the result file."""
    parser = arguments()
    args = parser.parse_args()
    known = CASES | TOY
    if unknown := [name for name in args.cases if name not in known]:
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    out = args.out or (None if args.sets else RESULT)
    for name in args.cases or CASES:
        case = known[name]
        work = make_work(args.folder, case.size, case.pairs, vocabulary=case.vocabulary)
        measured = measure(
            replace(work, threads=args.threads), case.precision, case.epochs, args.repeats, args.sets
        )
        print("\n".join(told(name, case, measured)), flush=True)
        if out is not None:
            record.add(out, name, measured)


if __name__ == "__main__":
    main()
