"""SFT, reward model and DPO on the demo model, for each seed of the recipe: what every stage gains on held-out rows.

`python -m benchmarks.pipeline` runs `lite-align run recipes/pipeline_tiny.yaml` as a user does, in processes of their
own, and writes benchmarks/results/pipeline-cpu.json. The settings of the recipe were chosen on other prompts than those
it is scored on.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import machine, record
from lite_align.evaluate import scores
from lite_align.evaluate.folder import read
from lite_align.evaluate.statistics import Interval, mean
from lite_align.recipe import load_pipeline

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "pipeline_tiny.yaml"
RESULT = record.RESULTS / "pipeline-cpu.json"
CASE = "pipeline_tiny"
MISSING = "not yet measured"


def run(recipe: Path, seed: int, folder: Path, sets: Sequence[str]) -> dict[str, Any]:
    """One pipeline from nothing: seconds, and what its stages and its scores say."""
    command = [
        sys.executable,
        "-m",
        "lite_align",
        "run",
        str(recipe),
        "--seed",
        str(seed),
        "--out",
        str(folder),
    ]
    started = time.perf_counter()
    subprocess.run([*command, "--quiet", *(f"--set={text}" for text in sets)], check=True)
    seconds = time.perf_counter() - started
    rule = json.loads((folder / "score.json").read_text(encoding="utf-8"))
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "sft_loss": held_out_loss(folder / "sft"),
        "reward": reward_accuracy(folder / "reward"),
        "rows": rule["rows"],
        "before": rule["before"],
        "samples": rule["samples"],
    }


def lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def held_out_loss(folder: Path) -> dict[str, float]:
    """Nats a trained token of held-out conversations, before and after SFT."""
    rows = lines(folder / "held_out.jsonl")
    tokens = sum(row["tokens"] for row in rows)
    return {
        side: sum(row[side]["loss"] * row["tokens"] for row in rows) / tokens for side in ("before", "after")
    }


def reward_accuracy(folder: Path) -> dict[str, float]:
    """Held-out pairs that the reward model ranks right, and how often the longer answer is the chosen one."""
    found = scores.measure(scores.measured(read(folder).held_out))
    return {"accuracy": found.accuracy.value, "longer_wins": found.longer.value, "pairs": found.count}


def gains(runs: Sequence[dict[str, Any]], name: str, category: str | None) -> tuple[Interval, list[float]]:
    """Gain of a policy over the one that it continues: over prompts, each the mean of all seeds, and by seed."""
    before = runs[0]["before"][name]

    def differences(one: dict[str, Any]) -> list[float]:
        return [row[name] - row[before] for row in one["rows"] if category in (None, row["category"])]

    by_seed = [differences(one) for one in runs]
    by_prompt = [statistics.fmean(values) for values in zip(*by_seed, strict=True)]
    return mean(by_prompt), [statistics.fmean(values) for values in by_seed]


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means and gains of every policy, for all prompts and by category."""
    categories = sorted({row["category"] for row in runs[0]["rows"]})
    policies = ["base", *runs[0]["before"]]
    table: dict[str, Any] = {}
    for category in (None, *categories):
        rows = [row for one in runs for row in one["rows"] if category in (None, row["category"])]
        entry: dict[str, Any] = {
            "means": {name: statistics.fmean(row[name] for row in rows) for name in policies}
        }
        for name in runs[0]["before"]:
            over_prompts, by_seed = gains(runs, name, category)
            entry[name] = {
                "prompts": asdict(over_prompts),
                "seeds": asdict(mean(by_seed)),
                "by_seed": by_seed,
            }
        table[category or "all"] = entry
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the pipeline with every seed of the recipe and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    seeds = load_pipeline(options.recipe).seeds
    with tempfile.TemporaryDirectory() as folder:
        runs = [run(options.recipe, seed, Path(folder) / f"seed-{seed}", options.set) for seed in seeds]
    case = {
        "machine": machine.describe(),
        "recipe": options.recipe.name,
        "sets": options.set,
        "summary": summary(runs),
        "runs": [{key: value for key, value in one.items() if key != "rows"} for one in runs],
        "prompts": len(runs[0]["rows"]),
    }
    record.add(options.result, CASE, case)


def section(folder: Path = record.RESULTS) -> str:
    """The part of the README, from the result file and nothing else."""
    case = record.load(folder / RESULT.name).get(CASE)
    if case is None:
        return f"{MISSING}\n"
    runs, table = case["runs"], case["summary"]
    names = in_order(runs[0]["before"])
    seeds = ", ".join(str(one["seed"]) for one in runs)
    header = ["prompts", "base", *names, *(f"{name} − {runs[0]['before'][name]} [95 %]" for name in names)]
    rows = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for group, entry in table.items():
        means = [f"{entry['means'][name]:.3f}" for name in ("base", *names)]
        rows.append(f"| {' | '.join([group, *means, *(shown(entry[name]['prompts']) for name in names)])} |")
    losses = [f"{one['sft_loss']['before']:.3f} → {one['sft_loss']['after']:.3f}" for one in runs]
    ranked = [f"{100 * one['reward']['accuracy']:.0f} %" for one in runs]
    longer = 100 * statistics.fmean(one["reward"]["longer_wins"] for one in runs)
    last = names[-1]
    by_seed = ", ".join(f"{value:+.3f}" for value in table["all"][last]["by_seed"])
    return "\n".join(
        [
            f"Rule score (0 to 1) of {case['prompts']} held-out prompts that no setting was chosen on, "
            f"{runs[0]['samples']} sampled answers each, seeds {seeds}; intervals over prompts.",
            "",
            *rows,
            "",
            f"By seed: {last} over {runs[0]['before'][last]} {by_seed} (mean {shown(table['all'][last]['seeds'])}); "
            f"held-out loss of SFT {', '.join(losses)} nats a token; the reward model ranks {', '.join(ranked)} of "
            f"held-out pairs right, where the longer answer wins in {longer:.0f} %. One pipeline took "
            f"{min(one['seconds'] for one in runs):.0f} to {max(one['seconds'] for one in runs):.0f} s on "
            f"{case['machine']['cpu']}; commit {case['machine']['commit']}.",
            "",
        ]
    )


def in_order(before: Mapping[str, str]) -> list[str]:
    """Policies, each after the one that it continues."""
    names: list[str] = []
    while left := [name for name in before if name not in names]:
        names += [name for name in left if before[name] in ("base", *names)]
    return names


def shown(interval: dict[str, float]) -> str:
    """A gain with its interval."""
    return f"{interval['value']:+.3f} [{interval['low']:+.3f}, {interval['high']:+.3f}]"


if __name__ == "__main__":
    main()
