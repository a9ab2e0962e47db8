"""lite-align's side of reward models, through the same parts that `lite-align reward` uses."""

from collections.abc import Sequence
from typing import Any

from benchmarks import counters, lite, machine
from benchmarks.sides import Side, Work, timing
from lite_align.data.render import Renderer
from lite_align.model.backbone import Role
from lite_align.recipe import RewardRecipe
from lite_align.stages import rows
from lite_align.stages.reward import RewardModel
from lite_align.stages.train_reward import RewardProcedure, scored


def side(precision: str, sets: Sequence[str] = ()) -> Side:
    """Our side in a precision, with `key=value` settings of the recipe."""
    return Side("benchmarks.lite_reward", {"precision": precision, "sets": list(sets)})


def resolve(work: Work, precision: str, sets: Sequence[str]) -> RewardRecipe:
    """The recipe of the work, with nothing left to decide."""
    return lite.resolve_stage("reward", work, precision, sets, {"loss.center_rewards_coefficient": 0.01})


def measure(work: Work, settings: dict[str, Any]) -> dict[str, float]:
    """One run, then the counters, off the clock."""
    before = machine.resident_bytes()
    machine.reset_peak()
    recipe = resolve(work, settings["precision"], settings["sets"])
    kind = RewardProcedure().kind(recipe)
    read = rows.read(kind, recipe.data, recipe.data.path)
    backbone = lite.load_backbone(recipe, Role.REWARD)
    rendered = rows.render(kind, read.rows, Renderer(backbone.loaded.tokenizer), recipe.data)
    assert len(rendered.trees) == work.examples, "both sides must train on the same pairs"
    stage = RewardModel(backbone, recipe, scored(rendered.examples), [])
    engine = lite.make_engine(stage, recipe, len(rendered.trees), Role.REWARD)
    steps = lite.run(stage, engine)
    return {
        **timing(0.0, steps, work),
        "memory": machine.peak_bytes() - before,
        "parameters": backbone.loaded.parameters,
        **counters.measure(stage, engine),
    }
