"""What a value head should read: the frozen reward model's states, which cost no pass, or the policy's own.

`python -m benchmarks.value_heads` trains `tiny` as recipes/pipeline_ppo_tiny.yaml does (SFT, reward model, PPO with a
value head) with either head, the same prompts, random numbers and rewards for both, and compares on prompts of
data_samples/prompts.jsonl that the runs hold out. What it found is written to results/ and into the README.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine, record
from lite_align.evaluate.folder import read
from lite_align.recipe import Resolved, load_pipeline, to_dict
from lite_align.stages.command import CommandOptions
from lite_align.stages.training import train
from lite_align.view import View

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "pipeline_ppo_tiny.yaml"
RESULT = record.RESULTS / "value-heads.json"
SEEDS = (1, 2, 3)
HEADS = {"reward": "the reward model's (a probe)", "policy": "the policy's own (a linear head)"}
FIGURES = {
    "explained": "explained variance, last third",
    "reward": "gain in reward",
    "rule_score": "gain in rule score",
}
"""What decides between them; tokens a second are recorded, and compared only where nothing else runs."""

MISSING = "not yet measured"


def one(resolved: Resolved[Any], out: Path) -> Path:
    """Run a stage and return its folder."""
    folder = train(resolved, CommandOptions(out), View(quiet=True))
    assert folder is not None
    return folder


def figures(run: Path) -> dict[str, float]:
    """What is compared of a run."""
    folder = read(run)
    explained = folder.series("value/explained_variance")[1]
    last = explained[-max(1, len(explained) // 3) :]
    gains = {
        name: statistics.fmean(row["after"][name] - row["before"][name] for row in folder.held_out)
        for name in ("reward", "rule_score")
    }
    speed = statistics.median(folder.series("speed/learned_tokens_per_second")[1])
    return {"explained": statistics.fmean(last), **gains, "learning": speed}


def both(seed: int, folder: Path, sets: Sequence[str]) -> dict[str, dict[str, float]]:
    """Figures of both heads for a seed, with one SFT run and one reward model."""
    found: dict[str, Path] = {}

    pipeline = load_pipeline(RECIPE, sets=[f"train.seed={seed}", *sets])

    def step(name: str, out: str, **ppo: str) -> Path:
        recipe = pipeline.step(name).resolved.recipe
        nested = to_dict(recipe)
        nested["model"]["adapter"] = str(found["sft"]) if found else None
        nested |= {"ppo": {**nested["ppo"], **ppo}} if ppo else {}
        return one(Resolved(type(recipe).model_validate(nested), {"model.name": "recipe"}), folder / out)

    found["sft"] = step("sft", f"sft-{seed}")
    reward = str(step("reward", f"reward-{seed}"))
    return {head: figures(step("ppo", f"ppo-{seed}-{head}", value=head, reward=reward)) for head in HEADS}


def section(folder: Path = record.RESULTS) -> str:
    """The table of the README."""
    measured = record.load(folder / RESULT.name)
    header = ["states that the value head reads", *FIGURES.values()]
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    seeds: list[str] = []
    for head, name in HEADS.items():
        by_seed = measured.get(head, {}).get("seeds", {})
        seeds = seeds or list(by_seed)
        values = [told([run[key] for run in by_seed.values()]) for key in FIGURES]
        lines.append(f"| {name} | {' | '.join(values)} |")
    note = f"`python -m benchmarks.value_heads` on `tiny`: {len(seeds)} seeds, mean (least–most)."
    return "\n".join([note, "", *lines]) + "\n"


def told(values: Sequence[float]) -> str:
    """Mean and range, in three digits."""
    if not values:
        return MISSING
    return f"{statistics.fmean(values):.3g} ({min(values):.3g}–{max(values):.3g})"


def main() -> None:
    """Measure both heads for every seed and put them into the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in args.seeds:
            for head, values in both(seed, Path(folder), ()).items():
                found.setdefault(head, {})[str(seed)] = values
                print(seed, head, {key: round(value, 3) for key, value in values.items()}, flush=True)
    for head, seeds in found.items():
        record.add(args.out, head, {"machine": machine.describe(), "seeds": seeds})


if __name__ == "__main__":
    main()
