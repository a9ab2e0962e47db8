"""SFT, reward model, DPO, PPO and RLOO on the demo model, for each seed: what every stage gains on held-out rows.

`python -m benchmarks.pipeline` runs `lite-align run recipes/pipeline_tiny.yaml` and then pipeline_ppo_tiny.yaml into
the same folder, which skips what both have in common, as a user does, in processes of their own, and writes
benchmarks/results/pipeline-cpu.json. The settings of the recipes were chosen on other prompts than those they are
scored on.
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

FOLDER = Path(__file__).resolve().parents[1] / "recipes"
RECIPES = (FOLDER / "pipeline_tiny.yaml", FOLDER / "pipeline_ppo_tiny.yaml")
RESULT = record.RESULTS / "pipeline-cpu.json"
CASE = "pipeline_tiny"
MISSING = "not yet measured"


def run(recipes: Sequence[Path], seed: int, folder: Path, sets: Sequence[str]) -> dict[str, Any]:
    """Pipelines into one folder, from nothing: seconds of each, and what their stages and scores say."""
    seconds, rules = {}, []
    for recipe in recipes:
        seconds[recipe.stem] = run_one(recipe, seed, folder, sets)
        rules.append(json.loads((folder / "score.json").read_text(encoding="utf-8")))
    return {
        "seed": seed,
        "seconds": seconds,
        "sft_loss": held_out_loss(folder / "sft"),
        "reward": reward_accuracy(folder / "reward"),
        "policies": {step: after_ppo(folder / step) for step in ("ppo", "rloo") if (folder / step).is_dir()},
        "rows": joined([rule["rows"] for rule in rules]),
        "before": {name: start for rule in rules for name, start in rule["before"].items()},
        "samples": rules[0]["samples"],
    }


def joined(parts: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Scores of the same prompts from several pipelines; what two of them scored came out the same."""
    found = [dict(row) for row in parts[0]]
    for part in parts[1:]:
        for row, more in zip(found, part, strict=True):
            assert all(row[name] == more[name] for name in row.keys() & more.keys()), (
                "a policy scored differently"
            )
            row.update(more)
    return found


def after_ppo(folder: Path) -> dict[str, Any]:
    """What a run of PPO says at its end: KL and length of held-out answers, and what its guards did."""
    told = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    rows = lines(folder / "held_out.jsonl")
    return {
        "kl": statistics.fmean(row["after"]["kl"] for row in rows),
        "target_kl": told["recipe"]["ppo"]["target_kl"],
        "tokens": {
            side: statistics.fmean(row[side]["tokens"] for row in rows) for side in ("before", "after")
        },
        "guards": len(told["ppo"]["guards"]),
        "rolled_back_to": told["ppo"]["rolled_back_to"],
    }


def run_one(recipe: Path, seed: int, folder: Path, sets: Sequence[str]) -> float:
    """One pipeline; what is there already is skipped. Returns seconds."""
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
    return round(time.perf_counter() - started, 1)


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
    parser.add_argument("--recipes", type=Path, nargs="+", default=RECIPES)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    seeds = load_pipeline(options.recipes[0]).seeds
    with tempfile.TemporaryDirectory() as folder:
        runs = [run(options.recipes, seed, Path(folder) / f"seed-{seed}", options.set) for seed in seeds]
    case = {
        "machine": machine.describe(),
        "recipes": [recipe.name for recipe in options.recipes],
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
    return "\n".join(
        [
            f"Rule score (0 to 1) of {case['prompts']} held-out prompts that no setting was chosen on, "
            f"{runs[0]['samples']} sampled answers each, seeds {seeds}; intervals over prompts.",
            "",
            *rows,
            "",
            f"By seed: {by_seed(table, runs[0]['before'])}.",
            "",
            *after(runs),
            f"Held-out loss of SFT {', '.join(losses)} nats a token; the reward model ranks {', '.join(ranked)} of "
            f"held-out pairs right, where the longer answer wins in {longer:.0f} %. {took(case)} on "
            f"{case['machine']['cpu']}; commit {case['machine']['commit']}.",
            "",
        ]
    )


def by_seed(table: Mapping[str, Any], before: Mapping[str, str]) -> str:
    """Gains of every policy over the one that it continues, seed by seed and over seeds; SFT's are no goal."""
    told = []
    for name in in_order(before):
        if before[name] != "base":
            entry = table["all"][name]
            values = ", ".join(f"{value:+.3f}" for value in entry["by_seed"])
            told.append(f"{name} over {before[name]} {values} (mean {shown(entry['seeds'])})")
    return "; ".join(told)


def after(runs: Sequence[dict[str, Any]]) -> list[str]:
    """KL, length and guards of the policies that learned from rewards; no line where there are none."""
    told = []
    for name in runs[0].get("policies", {}):
        ends = [one["policies"][name] for one in runs]
        kls = ", ".join(f"{end['kl']:.2f}" for end in ends)
        before, now = (statistics.fmean(end["tokens"][side] for end in ends) for side in ("before", "after"))
        guards = sum(end["guards"] for end in ends)
        told.append(
            f"{name}: KL {kls} nats an answer (budget {ends[0]['target_kl']:g}), answers of {now:.1f} tokens, before "
            f"{before:.1f}; guards tripped {guards} times"
        )
    return [f"{'; '.join(told)}.", ""] if told else []


def took(case: Mapping[str, Any]) -> str:
    """Seconds of every pipeline, in the order in which they ran."""
    told = []
    for name in (Path(recipe).stem for recipe in case["recipes"]):
        seconds = [one["seconds"][name] for one in case["runs"]]
        told.append(f"{name} took {min(seconds):.0f} to {max(seconds):.0f} s")
    return ", and then, without the stages that both have, ".join(told)


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
