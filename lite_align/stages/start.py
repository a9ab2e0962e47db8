"""The first look of a training verb: what is missing is told at once, before torch is imported (4 s with the rest).

Every check here is one that the stage makes as well, made earlier; what only the stage can tell, it tells.
"""

import ast
from pathlib import Path
from typing import Any

from lite_align.data import sources
from lite_align.recipe import Pipeline, PPOOptions, Resolved
from lite_align.stages import rewards
from lite_align.stages.command import CommandOptions
from lite_align.stages.reward_function import RewardFunction, located
from lite_align.train.record import continued_run, finished_record
from lite_align.train.run import require_unused
from lite_align.view import View


def train(resolved: Resolved[Any], command: CommandOptions, view: View) -> Path | None:
    """Look, then train: see `training.train`."""
    recipe = resolved.recipe
    if not command.resume:  # a run that goes on has its own copies of what it was made of
        if command.out is not None and not command.dry_run:
            require_unused(command.out)
        look(recipe)
        if recipe.model.adapter is not None:
            continued_run(Path(recipe.model.adapter))
        if recipe.stage == "ppo":
            rewards.require_reward(recipe.ppo)
            if recipe.ppo.reward is not None:
                finished_record(Path(recipe.ppo.reward))

    from lite_align.stages.training import train

    return train(resolved, command, view)


def run(pipeline: Pipeline, command: CommandOptions, view: View) -> Path:
    """Look at every stage, then run them: see `pipeline.run`. What they continue may be made by an earlier one."""
    for step in pipeline.steps:
        look(step.resolved.recipe)

    from lite_align.stages.pipeline import run

    return run(pipeline, command, view)


def look(recipe: Any) -> None:
    """Refuse files that are not there, and rules and functions that give no reward.

    Raises:
        DataError, UserError, RecipeError: as the stage would.
    """
    for path in (recipe.data.path, recipe.data.held_out_path):
        if path:
            sources.require_there(path)
    if recipe.stage == "ppo":
        _look_at_rewards(recipe.ppo)


def _look_at_rewards(options: PPOOptions) -> None:
    rewards.text_rewards(options.model_copy(update={"reward_fn": None}))
    if options.reward_fn is None or _defines(*located(options.reward_fn)):
        return
    seconds = options.reward_fn_timeout  # only where it is in doubt: what the file imports may take long
    RewardFunction(options.reward_fn, weight=options.reward_fn_weight, seconds=seconds).close()


def _defines(file: Path, name: str) -> bool:
    """Whether a file defines a function plainly, at its top level."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, ValueError, SyntaxError):
        return False
    return any(isinstance(node, ast.FunctionDef) and node.name == name for node in tree.body)
