"""Where a reward model should read its score, and what its adapter should start from: two questions, four cells.

`python -m benchmarks.reward_ablation` trains `tiny` on data_samples/reward_pairs.jsonl, a fifth of the prompts held
out, with everything else as `lite-align reward` does it. Score read at the answer's end, or after a user turn that asks
for a review; adapter new on the base, or a copy of an SFT run on data_samples/sft.jsonl. Cells of one seed have the
same split, so they are compared pair by pair. What it found is written to results/ and into the README.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine, record
from lite_align.evaluate.scores import measure
from lite_align.recipe import load
from lite_align.stages.command import CommandOptions
from lite_align.stages.training import train
from lite_align.view import View

RESULT = record.RESULTS / "reward-ablation.json"
DATA = Path(__file__).resolve().parents[1] / "data_samples"
SUFFIX = "Review the answer."
SEEDS = (1, 2, 3, 4, 5)
PLACES: dict[str, str | None] = {"the answer's end": None, f"after “{SUFFIX}”": SUFFIX}
STARTS = ("base", "sft")
FIGURES = {
    "accuracy": "accuracy",
    "nll": "loss",
    "calibration_error": "calibration error",
    "same": "swap test, same category",
    "other": "swap test, another category",
    "probes": "probes",
}
MISSING = "not yet measured"


def one(stage: str, data: str, out: Path, settings: dict[str, Any]) -> Path:
    """Train a stage as its command does and return the run folder."""
    flags = {"model.name": "tiny", **settings}
    folder = train(load(stage, data=str(DATA / data), flags=flags), CommandOptions(out), View(quiet=True))
    assert folder is not None
    return folder


def figures(run: Path) -> dict[str, float]:
    """What is compared of a reward run: the probes are one mean over their kinds."""
    rows = [json.loads(line) for line in (run / "held_out.jsonl").read_text(encoding="utf-8").splitlines()]
    found = measure(rows)
    return {
        "accuracy": found.accuracy.value,
        "nll": found.nll,
        "calibration_error": found.calibration_error,
        "same": found.swaps["same"].value,
        "other": found.swaps["other"].value,
        "probes": statistics.fmean(interval.value for interval in found.probes.values()),
        "pairs": found.count,
    }


def cells(seed: int, folder: Path, sets: dict[str, Any]) -> dict[str, dict[str, float]]:
    """All four cells of a seed."""
    sft = one("sft", "sft.jsonl", folder / f"sft-{seed}", {"train.seed": seed, **sets})
    found = {}
    for number, (place, suffix) in enumerate(PLACES.items()):
        for start in STARTS:
            settings = {
                "train.seed": seed,
                "data.held_out": 0.2,
                "loss.judge_suffix": suffix,
                "model.adapter": str(sft) if start == "sft" else None,
                **sets,
            }
            run = one("reward", "reward_pairs.jsonl", folder / f"reward-{seed}-{number}-{start}", settings)
            found[f"{place}, {start}"] = figures(run)
    return found


def section(folder: Path = record.RESULTS) -> str:
    """The table of the README."""
    measured = record.load(folder / RESULT.name)
    header = ["score read", "adapter from", *FIGURES.values()]
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for place in PLACES:
        for start in STARTS:
            seeds = measured.get(f"{place}, {start}", {}).get("seeds", {})
            values = [told([run[key] for run in seeds.values()]) for key in FIGURES]
            lines.append(f"| {place} | {start} | {' | '.join(values)} |")
    most = max((len(cell["seeds"]) for cell in measured.values()), default=0)
    note = [
        f"`python -m benchmarks.reward_ablation` on `tiny`: {most} seeds, mean (least–most); chance is 0.5, "
        "and a loss of 0.693. Probes: share of texts without value that score below the chosen answer."
    ]
    return "\n".join([*note, "", *lines]) + "\n"


def told(values: Sequence[float]) -> str:
    """Mean and range."""
    if not values:
        return MISSING
    return f"{statistics.fmean(values):.3f} ({min(values):.3f}–{max(values):.3f})"


def main() -> None:
    """Measure all cells for every seed and put them into the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--small", action="store_true", help="two steps of each run: tries the script alone")
    args = parser.parse_args()
    sets = {"train.max_steps": 2} if args.small else {}
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in args.seeds:
            for name, values in cells(seed, Path(folder), sets).items():
                found.setdefault(name, {})[str(seed)] = values
                print(seed, name, {key: round(value, 3) for key, value in values.items()}, flush=True)
    for name, seeds in found.items():
        record.add(args.out, name, {"machine": machine.describe(), "seeds": seeds})


if __name__ == "__main__":
    main()
