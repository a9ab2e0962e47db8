"""Held-out pairs that a policy is measured on: a file of their own, or those of the reward run that it learns from."""

from lite_align.data.render import Renderer
from lite_align.data.types import Pair, Tree
from lite_align.errors import LiteAlignError
from lite_align.recipe import DataOptions, PairDataOptions, PPORecipe, from_dict
from lite_align.stages import rows
from lite_align.stages.pairs import PAIRS
from lite_align.stages.reward_model import RewardSource
from lite_align.view import View


def held_out_pairs(
    recipe: PPORecipe, source: RewardSource | None, renderer: Renderer, view: View
) -> list[Tree]:
    """Trees of held-out pairs, numbered from 0; none where there are no pairs.

    Raises:
        DataError: the file that the recipe names cannot be read.
    """
    if recipe.ppo.pairs is not None:
        options = PairDataOptions(max_length=recipe.data.max_length)
        return [tree for _, tree in read(options, recipe.ppo.pairs, renderer)]
    if source is None:
        return []
    try:
        return of_reward_run(source, renderer)
    except LiteAlignError as error:
        view.warn(f"The held-out pairs of {source.name} cannot be used: {error.what}")
        return []


def read(options: DataOptions, path: str, renderer: Renderer) -> list[tuple[Pair, Tree]]:
    """The pairs of a file with their trees."""
    found = rows.read(PAIRS, options, path)
    return rows.render(PAIRS, found.rows, renderer, options).examples


def of_reward_run(source: RewardSource, renderer: Renderer) -> list[Tree]:
    """The pairs that a reward run held out.

    Raises:
        DataError: its file cannot be read, or is not what it was.
    """
    theirs = from_dict(dict(source.record["recipe"]))
    return [tree for _, tree in rows.held_out_of(PAIRS, theirs, source.record["hashes"], renderer)]
