"""Online DPO on the demo model: what every round of recipes/loop_tiny.yaml gains, for several seeds.

`python -m benchmarks.loop` trains SFT and the reward model of recipes/pipeline_tiny.yaml and runs the loop from there,
for each seed. The gates of the loop see the prompts of data_samples/probes_tiny.jsonl; what is current after each round
is scored once more, by the rule of the demo's world, on data_samples/held_out_prompts.jsonl, which no gate has seen.
What it found is written to results/ and into the README.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import machine, record
from lite_align.data.render import Renderer
from lite_align.flywheel import rounds
from lite_align.flywheel.loop import loop
from lite_align.model.backbone import Backbone, Role
from lite_align.model.load import load_model
from lite_align.recipe import ScoreOptions, from_dict, load_loop, load_pipeline
from lite_align.stages import pipeline, score, session
from lite_align.stages.command import CommandOptions
from lite_align.train.record import read_record
from lite_align.view import View

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
UNSEEN = RECIPES.parent / "data_samples" / "held_out_prompts.jsonl"
RESULT = record.RESULTS / "loop.json"
CASE = "loop_tiny"
SEEDS = (1, 2, 3)
MISSING = "not yet measured"
FIGURES = {"win_rate": "win rate", "kl": "KL to what was current", "kl_start": "KL to SFT"}


def one(seed: int, folder: Path, sets: Sequence[str] = ()) -> dict[str, Any]:
    """A loop from nothing: its rounds, and the rule score of SFT and of every promoted run on unseen prompts."""
    view = View(quiet=True)
    steps = load_pipeline(RECIPES / "pipeline_tiny.yaml", sets=[f"train.seed={seed}"])
    made = pipeline.run(
        replace(steps, steps=steps.steps[:2], score=None), CommandOptions(folder / "tiny"), view
    )
    start, judge = str(made / "sft"), str(made / "reward")
    own = [f"train.seed={seed}", f"loop.start={start}", f"judge.by={judge}"]
    root = folder / "loop"
    loop(load_loop(RECIPES / "loop_tiny.yaml", [*own, *sets]), root, "benchmarks.loop", view)
    found = json.loads((root / rounds.FILE).read_text(encoding="utf-8"))["rounds"]
    runs = [
        made / "sft",
        *(root / one["folder"] / "dpo" for one in found if one["status"] == rounds.PROMOTED),
    ]
    return {"rounds": [kept(one) for one in found], "unseen": unseen(runs)}


def kept(one: dict[str, Any]) -> dict[str, Any]:
    """What is recorded of a round."""
    figures = one.get("figures", {})
    values = {name: figures[name]["value"] for name in (*FIGURES, "rule_score") if name in figures}
    rule = one.get("agreement", {}).get("rule", {}).get("value")
    return {"status": one["status"], "why": one["why"], "pairs": one.get("pairs"), "kappa": rule, **values}


def unseen(runs: Sequence[Path]) -> list[float]:
    """Mean rule score of runs, as a pipeline scores its policies."""
    options = ScoreOptions(prompts=str(UNSEEN))
    asks = score.read_asks(options.prompts)
    recipe = from_dict(read_record(runs[0])["recipe"])
    loaded = load_model(recipe.model, device=session.device())
    backbone = Backbone(loaded, recipe.lora, seed=0)
    renderer = Renderer(loaded.tokenizer, trusted=True)
    found = []
    for run in runs:
        backbone.load_adapter(Role.POLICY, run / "adapters" / "policy")
        with backbone.role(Role.POLICY):
            found.append(statistics.fmean(score.sampled(backbone, renderer, asks, options)))
    return found


def section(folder: Path = record.RESULTS) -> str:
    """The table of the README."""
    case = record.load(folder / RESULT.name).get(CASE, {})
    by_seed, measured_on = case.get("seeds", {}), case.get("machine", {})
    seeds = list(by_seed.values())
    header = [
        "after round",
        "promoted",
        "pairs",
        *FIGURES.values(),
        "kappa of judge and rule",
        "rule score, unseen prompts",
    ]
    most = max((len(one["rounds"]) for one in seeds), default=0)
    start = told([one["unseen"][0] for one in seeds], 3)
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}", f"| 0 (SFT) |{' |' * 6} {start} |"]
    for n in range(most):
        there = [one["rounds"][n] for one in seeds if len(one["rounds"]) > n]
        promoted = [one for one in there if one["status"] == rounds.PROMOTED]
        cells = [
            f"{len(promoted)} of {len(there)}",
            told([one["pairs"] for one in there], 0),
            *(told([one[name] for one in there if name in one], 2) for name in FIGURES),
            told([one["kappa"] for one in there if one["kappa"] is not None], 2),
            told([one["unseen"][n + 1] for one in seeds if len(one["unseen"]) > n + 1], 3),
        ]
        lines.append(f"| {n + 1} | {' | '.join(cells)} |")
    stopped = [
        f"seed {seed}, round {n}: {one['status']} ({one['why']})"
        for seed, run in by_seed.items()
        for n, one in enumerate(run["rounds"], 1)
        if one["status"] != rounds.PROMOTED
    ]
    note = (
        f"`python -m benchmarks.loop` on `tiny`, {len(seeds)} seeds: mean (least–most). The reward model labels, and "
        "judges the gate; the last column is of 180 prompts that neither saw."
    )
    end = f"Stopped: {'; '.join(stopped)}." if stopped else "No round was refused."
    place = f" {measured_on['cpu']}; commit {measured_on['commit']}." if measured_on else ""
    return "\n".join([note, "", *lines, *(["", f"{end}{place}"] if seeds else [])]) + "\n"


def told(values: Sequence[float], digits: int) -> str:
    """Mean and range."""
    if not values:
        return MISSING
    least, most = min(values), max(values)
    spread = f" ({least:.{digits}f}–{most:.{digits}f})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def main() -> None:
    """Run the loop for every seed and put it into the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as folder:
            found[str(seed)] = one(seed, Path(folder))
        print(seed, found[str(seed)], flush=True)
    record.add(args.out, CASE, {"machine": machine.describe(), "seeds": found})


if __name__ == "__main__":
    main()
