"""Proof that what was saved is what was trained: scores after a reload in a fresh process with another seed.

Heads that were never saved, or are drawn anew at loading, are the usual way to lose a reward model (LA501): nothing
fails, and the scores are those of chance.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lite_align.data.comparisons import Scored
from lite_align.errors import ModelError, TrainingStopped
from lite_align.model import load
from lite_align.model.backbone import Backbone, Role
from lite_align.recipe import RewardRecipe, to_dict
from lite_align.stages import scoring, session
from lite_align.train.faults import Shortage, TokenBudget, attempt, free_memory
from lite_align.view import View

PAIRS = 16
"""Pairs whose two answers are scored again."""


def prove(backbone: Backbone, recipe: RewardRecipe, run: Path, pairs: Sequence[Scored]) -> dict[str, Any]:
    """Score answers here and in a fresh process that loads the saved adapter and head, and compare.

    Where the device has no room for a second base, the adapter is overwritten and loaded again here.

    Returns what run.json says of it.

    Raises:
        TrainingStopped: a score differs at all, or nothing could be loaded (rule LA501).
    """
    answers = [ids for pair in pairs for ids in (pair.chosen, pair.rejected)]
    adapter = run / "adapters" / Role.REWARD.value
    here = scores(backbone, answers)
    there, process = fresh(recipe, adapter, answers), "a fresh one, another seed"
    if there is None:
        there, process = again(backbone, adapter, answers), "this one: no memory for a second base"
    worst = max((abs(a - b) for a, b in zip(here, there, strict=True)), default=0.0)
    if worst != 0.0:
        raise TrainingStopped(
            f"LA501: the saved reward model gives other scores than the trained one, by up to {worst:.3g}.",
            remedy="Do not use it. Please report it with the model's name; the last checkpoint is intact.",
        )
    return {"largest_difference": worst, "answers": len(answers), "process": process}


def show(proof: Mapping[str, Any], view: View) -> None:
    """Print what the proof found."""
    view.section(
        "reload",
        f"{proof['answers']} scores after a reload differ by {proof['largest_difference']:.1f} · process: "
        f"{proof['process']}",
        note="ok",
    )


def scores(backbone: Backbone, answers: Sequence[scoring.Ids]) -> list[float]:
    """Scores of sequences, each by itself."""
    longest = max(map(len, answers), default=1)
    found = scoring.score(backbone, [(0, [ids]) for ids in answers], TokenBudget(longest))
    return [score for (score,) in found]


def fresh(recipe: RewardRecipe, adapter: Path, answers: Sequence[scoring.Ids]) -> list[float] | None:
    """Scores of a process of its own; None if memory ran out there.

    Raises:
        TrainingStopped: the process failed; holds the end of what it printed.
    """
    free_memory()
    order = {
        "recipe": to_dict(recipe),
        "adapter": str(adapter),
        "answers": answers,
        "threads": torch.get_num_threads(),
    }
    command = [sys.executable, "-m", "lite_align.stages.reload"]
    done = subprocess.run(command, input=json.dumps(order), capture_output=True, text=True, check=False)
    if done.returncode:
        raise TrainingStopped(
            "LA501: the saved reward model could not be loaded by a fresh process.",
            details=done.stderr.strip().splitlines()[-3:],
            remedy="Do not use it. Please report it with the model's name; the last checkpoint is intact.",
        )
    return json.loads(done.stdout.splitlines()[-1])


def again(backbone: Backbone, adapter: Path, answers: Sequence[scoring.Ids]) -> list[float]:
    """Scores of this process after its adapter and head were overwritten and loaded from the folder."""
    kept = backbone.adapter_tensors(Role.REWARD)
    backbone.set_adapter_tensors(Role.REWARD, {name: torch.zeros_like(v) for name, v in kept.items()})
    try:
        backbone.load_adapter(Role.REWARD, adapter)
        return scores(backbone, answers)
    except ModelError as error:
        raise TrainingStopped(f"LA501: the saved reward model could not be loaded: {error.what}") from error
    finally:
        backbone.set_adapter_tensors(Role.REWARD, kept)


def main() -> None:
    """Load what the order on standard input names, and print the scores of its answers, or null without memory."""
    order = json.load(sys.stdin)
    torch.set_num_threads(order["threads"])
    recipe = RewardRecipe.model_validate(order["recipe"])

    def loaded_scores() -> list[float]:
        loaded = load.place(load.read(recipe.model, device=session.device()), recipe.speed)
        seed = recipe.train.seed + 1
        backbone = Backbone(loaded, recipe.lora, seed=seed, speed=recipe.speed, role=Role.REWARD)
        backbone.load_adapter(Role.REWARD, Path(order["adapter"]))
        return scores(backbone, [tuple(ids) for ids in order["answers"]])

    found = attempt(loaded_scores)
    print(json.dumps(None if isinstance(found, Shortage) else found))


if __name__ == "__main__":
    main()
