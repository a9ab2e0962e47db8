"""What a stage continues: the adapter of a finished run or of a folder, with its base, its shape and its hash.

The run keeps a copy of that adapter in `adapters/reference`, so that neither a later change nor the loss of the
parent's folder moves the reference of a resumed run.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from lite_align.errors import ModelError, TrainingStopped, UserError
from lite_align.model import lora, scalar_head
from lite_align.model.backbone import WITH_HEAD, Backbone, Role, adapter_digest
from lite_align.recipe import CONTINUES, ModelOptions, Resolved, inherit
from lite_align.train.record import continued_run

KEPT = "reference"
"""Folder below `adapters/` with the adapter that a run started from."""


@dataclass(frozen=True)
class Parent:
    """An adapter to start from.

    Attributes:
        adapter: its folder.
        role: that it was trained in.
        sha256: of its weights, see `Backbone.adapter_sha256`.
        base: name of its base model.
        run: the run folder it belongs to, if any.
        record: the run.json of that folder.
    """

    adapter: Path
    role: Role
    sha256: str
    base: str
    run: Path | None = None
    record: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """For reading: the run folder, or else the adapter's."""
        return str(self.run or self.adapter)

    def facts(self) -> dict[str, str]:
        """For run.json."""
        stage = str(self.record["stage"]) if self.record else ""
        return {"run": self.name, "stage": stage, "role": self.role.value, "adapter": self.sha256}


def find(options: ModelOptions, stage: str) -> Parent | None:
    """The parent that a recipe names by `model.adapter`, or by a `model.name` that is an adapter folder.

    Raises:
        UserError: it is no finished run and no adapter, or its adapter cannot be continued by this stage.
        ModelError: the adapter cannot be read.
    """
    is_adapter = (Path(options.name) / lora.CONFIG_FILE).is_file()
    if options.adapter is None and not is_adapter:
        return None
    if options.adapter is not None and is_adapter:
        raise UserError(
            f"The model {options.name} is an adapter, and --from names another: {options.adapter}.",
            remedy="Give one of them.",
        )
    path = Path(options.adapter or options.name)
    found = continued_run(path)
    if found is not None:
        return _of_run(*found, path, stage)
    if not (path / lora.CONFIG_FILE).is_file():
        raise UserError(
            f"{path} is neither a run folder nor an adapter, so nothing can continue it.",
            remedy=f"Give a finished run (lite-align runs lists them) or a folder with {lora.CONFIG_FILE}.",
        )
    role = Role.REWARD if (path / scalar_head.FILE).exists() else Role.POLICY
    _require_continued(str(path), role, stage)
    config, _ = lora.read_adapter(path)
    return Parent(path, role, adapter_digest(path), str(config.get("base_model_name_or_path") or ""))


def _of_run(run: Path, record: Mapping[str, Any], path: Path, stage: str) -> Parent:
    given = path.name if path != run else None
    present = [role for role in Role if (run / "adapters" / role.value / lora.CONFIG_FILE).is_file()]
    wanted = [role for role in map(Role, CONTINUES[stage]) if role in present and given in (None, role.value)]
    if not wanted:
        trained = next((role for role in present if role.value != KEPT), Role.POLICY)
        _require_continued(str(run), trained, stage, of=f"a {record['stage']} run")
        raise UserError(f"{run} has no adapter.", remedy="Give another run; lite-align runs lists them.")
    adapter = run / "adapters" / wanted[0].value
    base = str(record["recipe"]["model"]["name"])
    return Parent(adapter, wanted[0], adapter_digest(adapter), base, run, record)


def _require_continued(name: str, role: Role, stage: str, of: str = "") -> None:
    if role in CONTINUES[stage]:
        return
    what = of or f"an adapter of the role {role.value}"
    raise UserError(
        f"{name} is {what}: its adapter scores answers and cannot be continued by {stage}.",
        remedy=f"Give {stage} the sft or dpo run that its policy should start from.",
    )


def settle(resolved: Resolved[Any], parent: Parent) -> Resolved[Any]:
    """Take base and shape of the adapter from the parent.

    Raises:
        RecipeError: the user has set another base or shape.
    """
    config, _ = lora.read_adapter(parent.adapter)
    targets = config.get("target_modules")
    if not isinstance(targets, list):
        raise ModelError(
            f"{parent.adapter} names its layers by a pattern: {targets!r}.",
            remedy="Write the last names of the layers as a list into its target_modules.",
        )
    model: Mapping[str, Any] = parent.record["recipe"]["model"] if parent.record else {}
    must = {
        "model.name": parent.base,
        "model.revision": model.get("revision", config.get("revision")),
        "lora.rank": config["r"],
        "lora.alpha": float(config["lora_alpha"]),
        "lora.targets": tuple(targets),
    }
    if parent.record is not None:  # as the recipe of the parent says it: "auto", or names in its own order
        must["lora.targets"] = tuple(_as_list(parent.record["recipe"]["lora"]["targets"]))
        if parent.record["recipe"]["lora"]["targets"] == "auto":
            must["lora.targets"] = "auto"
    may = {f"model.{name}": model[name] for name in ("quantization", "dtype") if name in model}
    options = resolved.recipe.model
    named = options.adapter is None and options.name not in ("auto", parent.base)
    if named:  # --model ADAPTER
        must["model.adapter"] = options.name
    free = ("model.name", "model.adapter") if named else ()
    return inherit(resolved, must, may, origin=f"as {parent.name}", free=free)


def _as_list(value: object) -> list[str]:
    return [str(part) for part in value] if isinstance(value, list | tuple) else []


def require_base(parent: Parent, fingerprint: str) -> None:
    """Refuse a base whose files are not those that the parent was trained on.

    Raises:
        ModelError: with both hashes.
    """
    known = (parent.record or {}).get("hashes", {}).get("base")
    if known is not None and known != fingerprint:
        raise ModelError(
            f"{parent.name} was trained on another base: its files had the hash {known[:12]}, "
            f"{parent.base} has {fingerprint[:12]}.",
            remedy="Give --model the base that it was trained on, or train the parent again.",
        )


def require_fit(parent: Parent, skeleton: PreTrainedModel, targets: list[str]) -> None:
    """Check names and shapes of the parent's adapter, and of its head, against a base without weights.

    Raises:
        ModelError: the adapter or the head belongs to another base.
    """
    config, values = lora.read_adapter(parent.adapter)
    lora.check_shapes(
        {name: tuple(value.shape) for name, value in values.items()}, skeleton, targets, config["r"]
    )
    if parent.role in WITH_HEAD:
        size = skeleton.config.get_text_config().hidden_size
        scalar_head.check({scalar_head.NAME: scalar_head.read(parent.adapter)}, torch.empty(size))


def keep(parent: Parent, run: Path) -> Parent:
    """Copy the parent's adapter into a run folder, and return it from there."""
    folder = run / "adapters" / KEPT
    if parent.adapter == folder:  # of a resumed run
        return parent
    folder.mkdir(parents=True, exist_ok=True)
    for name in (lora.CONFIG_FILE, lora.WEIGHTS_FILE, scalar_head.FILE):
        if (parent.adapter / name).exists():
            shutil.copyfile(parent.adapter / name, folder / name)
    return Parent(folder, parent.role, parent.sha256, parent.base, parent.run, parent.record)


def kept(run: Path, record: Mapping[str, Any]) -> Parent | None:
    """The parent of a run that is resumed, from the copy that it keeps; None if it started from the base.

    Raises:
        TrainingStopped: the copy is not the adapter that the run was started with.
    """
    if not record["parents"]:
        return None
    facts = record["parents"][0]
    folder = run / "adapters" / KEPT
    try:
        found = adapter_digest(folder)
    except ModelError as error:
        found = error.what
    if found != facts["adapter"]:
        raise TrainingStopped(
            f"{folder} is not the adapter that this run started from ({facts['run']}): "
            f"{found[:12]} in place of {facts['adapter'][:12]}.",
            remedy="A run cannot go on with another reference. Put the adapter back, or start a new run.",
        )
    base = str(record["recipe"]["model"]["name"])
    origin = Path(facts["run"])
    parent_record = {"stage": facts["stage"], "recipe": record["recipe"]} if facts["stage"] else None
    return Parent(folder, Role(facts["role"]), facts["adapter"], base, origin, parent_record)


def start(backbone: Backbone, parent: Parent, *, has_reference: bool) -> None:
    """Put a copy of the parent's adapter into the trained role, and its frozen twin into REFERENCE.

    A parent of another role gives its adapter and no head.
    """
    role = backbone.trained
    backbone.load_adapter(role, parent.adapter, head=parent.role is role)
    if has_reference:
        backbone.fix_reference("adapter")
