"""A finished run as others use it: its record, its recipe, its adapters, and its model in memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lite_align.errors import UserError
from lite_align.model import lora
from lite_align.model.backbone import Backbone, Role
from lite_align.model.load import load_model
from lite_align.recipe import LoraOptions, Recipe, from_dict
from lite_align.train.record import finished_record


@dataclass(frozen=True)
class FinishedRun:
    """A run folder whose training is over.

    Attributes:
        folder: the run folder.
        record: what run.json holds.
        recipe: its recipe, every "auto" resolved.
    """

    folder: Path
    record: Mapping[str, Any]
    recipe: Recipe

    @property
    def stage(self) -> str:
        """The stage that wrote it: sft, reward, dpo or ppo."""
        return str(self.record["stage"])

    def has_adapter(self, role: Role) -> bool:
        """Whether the run saved an adapter for a role."""
        return self.adapter(role).is_dir()

    def adapter(self, role: Role) -> Path:
        """Folder of a role's adapter, in PEFT's format."""
        return self.folder / "adapters" / role.value

    def backbone(self, device: str) -> Backbone:
        """Load the base as the run had it, with its POLICY, and its REFERENCE where that is a frozen adapter.

        Raises:
            ModelError: the base cannot be loaded, or the adapters do not fit it.
        """
        loaded = load_model(self.recipe.model, device=device)
        backbone = Backbone(loaded, self.recipe.lora, seed=self.recipe.train.seed)
        backbone.load_adapter(Role.POLICY, self.adapter(Role.POLICY))
        if self.has_adapter(Role.REFERENCE):
            attach(backbone, Role.REFERENCE, self.adapter(Role.REFERENCE))
        return backbone


def attach(backbone: Backbone, role: Role, folder: Path) -> None:
    """Give a role of a backbone the adapter of a folder, frozen and in the shape that the folder has.

    Raises:
        ModelError: it cannot be read, or does not fit the base.
    """
    config, _ = lora.read_adapter(folder)
    shape = config["r"], lora.scale(config), frozenset(config["target_modules"])
    if backbone.has(role) and backbone.shape(role) != shape:
        backbone.remove(role)
    if not backbone.has(role):
        backbone.add(role, shape_of(config))
    backbone.load_adapter(role, folder)


def shape_of(config: Mapping[str, Any]) -> LoraOptions:
    """The recipe's block for the shape that an adapter has by its configuration."""
    shape = {"rank": config["r"], "alpha": config["lora_alpha"], "targets": tuple(config["target_modules"])}
    return LoraOptions.model_validate({**shape, "dropout": 0.0})


def read_finished(folder: Path) -> FinishedRun:
    """Read a run folder whose training is over.

    Raises:
        UserError: it is no run folder, cannot be read, or the run has not finished.
    """
    record = finished_record(folder)
    return FinishedRun(folder, record, from_dict(record["recipe"]))


def read_reward(folder: Path) -> FinishedRun:
    """Read a folder of a finished reward run.

    Raises:
        UserError: it is none.
    """
    run = read_finished(folder)
    if run.stage != "reward" or not run.has_adapter(Role.REWARD):
        raise UserError(
            f"{folder} is no reward run ({run.stage}).", remedy="Give a run of lite-align reward."
        )
    return run


def require_policy(run: FinishedRun, purpose: str) -> None:
    """Refuse a run that trained no answering model.

    Raises:
        UserError: the run has no policy adapter; `purpose` says what for, as in "to chat with".
    """
    if run.has_adapter(Role.POLICY):
        return
    if run.stage == "reward":
        raise UserError(
            f"{run.folder} trained a reward model: it scores answers and writes none, so there is nothing {purpose}.",
            remedy="Give a run of sft, dpo or ppo.",
        )
    raise UserError(f"{run.folder} has no adapter {purpose}.", remedy="lite-align runs lists others.")
