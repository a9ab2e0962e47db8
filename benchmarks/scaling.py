"""How the cost of a pair grows with prompt share, length, vocabulary and model size, on both sides.

`python -m benchmarks.scaling` changes one of them at a time around one point (the 15M model, half of a pair's tokens
in its prompt, 200 tokens a pair) and measures CPU seconds a pair and memory. TRL in the variant with a bf16 base.
`python -m benchmarks.scaling length` measures one sweep anew.
"""

import argparse
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import lite, machine, opponent, record
from benchmarks.cases import FOLDER
from benchmarks.dpo import make_work
from benchmarks.sides import LITE, interleave, summary
from benchmarks.workload import VOCABULARY

RESULT = record.RESULTS / "scaling-cpu.json"


@dataclass(frozen=True)
class Point:
    """What one measurement is made of.

    Args:
        size: of the model, a key of `workload.SIZES`.
        vocabulary: of its embedding and head.
        tokens: of a pair with its prompt once, on average, without the template's.
        share: of them in the prompt.
        examples: in the data.
    """

    size: str = "15m"
    vocabulary: int = VOCABULARY
    tokens: int = 200
    share: float = 0.5
    examples: int = 24


USUAL = Point()
SWEEPS = {
    "prompt share": tuple(replace(USUAL, share=share) for share in (0.2, 0.5, 0.8)),
    "length": tuple(replace(USUAL, tokens=tokens) for tokens in (100, 200, 400, 800)),
    "vocabulary": tuple(replace(USUAL, vocabulary=factor * VOCABULARY) for factor in (1, 2, 4)),
    "model size": tuple(replace(USUAL, size=size) for size in ("5m", "15m", "60m")),
}
TOY = {"toy": (Point("toy", 512, 100, 0.5, 16), Point("toy", 1024, 100, 0.5, 16))}


def measure(point: Point, folder: Path, *, threads: int, repeats: int) -> dict[str, Any]:
    """Both sides at one point, as it stands in the result file."""
    prompt = point.tokens * point.share
    work = make_work(
        folder,
        point.size,
        point.examples,
        vocabulary=point.vocabulary,
        prompt=prompt,
        answer=(point.tokens - prompt) / 2,
    )
    variant = opponent.VARIANTS["bf16"][0]
    sides = {LITE: lite.side("bf16"), variant.name: opponent.side(variant)}
    runs = interleave(sides, replace(work, threads=threads), repeats)
    return {"point": asdict(point), "sides": summary(runs)}


def main() -> None:
    """Measure the named sweeps, print them and put them into the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweeps", nargs="*", metavar="SWEEP", help=f"of {', '.join(SWEEPS)}; all if left out")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of models and rows")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    known = SWEEPS | TOY
    if unknown := [name for name in args.sweeps if name not in known]:
        parser.error(f"no sweep {', '.join(unknown)}; there are {', '.join(SWEEPS)}")
    done: dict[Point, dict[str, Any]] = {}  # the point that sweeps have in common is measured once
    for name in args.sweeps or SWEEPS:
        for point in known[name]:
            if point not in done:
                done[point] = measure(point, args.folder, threads=args.threads, repeats=args.repeats)
            seconds = {
                side: figures["seconds_per_example"]["median"]
                for side, figures in done[point]["sides"].items()
            }
            told = " · ".join(f"{side} {value:.3f}" for side, value in seconds.items())
            print(f"{name}: {point}: CPU s/pair {told}", flush=True)
        points = [done[point] for point in known[name]]
        case = {"machine": machine.describe(), "threads": args.threads, "repeats": args.repeats}
        record.add(args.out, name, {**case, "points": points})


if __name__ == "__main__":
    main()
