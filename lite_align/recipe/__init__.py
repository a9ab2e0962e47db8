"""Recipes: what a run is told to do, validated before anything is loaded. Imports no torch."""

from lite_align.recipe.advice import size_defaults, unusual
from lite_align.recipe.keys import Key, document, drift_classes, flatten, keys, to_dict
from lite_align.recipe.load import FLAGS, Resolved, dump, from_dict, load, nearest, resolve_auto, stage_of
from lite_align.recipe.schema import (
    PROJECTIONS,
    STAGES,
    DataOptions,
    DPORecipe,
    LoraOptions,
    LossOptions,
    ModelOptions,
    PPOOptions,
    PPORecipe,
    Recipe,
    RewardRecipe,
    SFTRecipe,
    SpeedOptions,
    TrainOptions,
)

__all__ = [
    "FLAGS",
    "PROJECTIONS",
    "STAGES",
    "DPORecipe",
    "DataOptions",
    "Key",
    "LoraOptions",
    "LossOptions",
    "ModelOptions",
    "PPOOptions",
    "PPORecipe",
    "Recipe",
    "Resolved",
    "RewardRecipe",
    "SFTRecipe",
    "SpeedOptions",
    "TrainOptions",
    "document",
    "drift_classes",
    "dump",
    "flatten",
    "from_dict",
    "keys",
    "load",
    "nearest",
    "resolve_auto",
    "size_defaults",
    "stage_of",
    "to_dict",
    "unusual",
]
