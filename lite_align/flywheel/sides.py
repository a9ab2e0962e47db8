"""What can answer: the base, a run, or an adapter, all of one base. Found and checked before anything is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lite_align.errors import UserError
from lite_align.model import lora, scalar_head
from lite_align.model.backbone import Role, adapter_digest
from lite_align.model.folder import fingerprint, locate
from lite_align.model.load import settle
from lite_align.recipe import ModelOptions
from lite_align.stages.session import device
from lite_align.train.finished import FinishedRun, read_finished, require_policy
from lite_align.train.record import RECORD

BASE = "base"


@dataclass(frozen=True)
class Side:
    """One model of a comparison.

    Attributes:
        name: as people call it: "base", or the folder.
        adapter: its adapter; None for the base.
        sha256: of the adapter's weights, "none" for the base.
        run: that it belongs to, if any.
        model: the base that its adapter belongs to, as far as it says.
    """

    name: str
    adapter: Path | None = None
    sha256: str = "none"
    run: FinishedRun | None = None
    model: ModelOptions | None = None

    @property
    def reference(self) -> "Side":
        """What its run started from."""
        if self.run is not None and self.run.has_adapter(Role.REFERENCE):
            folder = self.run.adapter(Role.REFERENCE)
            return Side(f"{self.name}'s start", folder, adapter_digest(folder), model=self.model)
        return Side(BASE)

    @property
    def facts(self) -> dict[str, str]:
        """For records."""
        return {"name": self.name, "adapter": self.sha256}


def find(name: str) -> Side:
    """The side of a name.

    Raises:
        UserError: it is none.
        ModelError: the adapter cannot be read.
    """
    path = Path(name)
    if name == BASE and not path.exists():
        return Side(BASE)
    is_adapter = (path / lora.CONFIG_FILE).is_file()
    if is_adapter and (path / scalar_head.FILE).exists():
        raise UserError(
            f"{name} scores answers and writes none.", remedy="Give an adapter of a run of sft, dpo or ppo."
        )
    owner = path.parent.parent if is_adapter else path
    if (owner / RECORD).is_file():
        run = read_finished(owner)
        require_policy(run, "to compare")
        adapter = run.adapter(Role.POLICY) if path == owner else path
        return Side(name, adapter, adapter_digest(adapter), run, run.recipe.model)
    if is_adapter:
        config, _ = lora.read_adapter(path)
        return Side(name, path, adapter_digest(path), model=_base_of(config))
    raise UserError(
        f"{name} is no run folder and no adapter." if path.exists() else f"There is no {name}.",
        remedy="Give finished runs (lite-align runs lists them), adapter folders, or the word base.",
    )


def _base_of(config: Mapping[str, Any]) -> ModelOptions | None:
    name = config.get("base_model_name_or_path")
    return ModelOptions(name=name, revision=config.get("revision")) if name else None


def common_base(sides: Sequence[Side], model: str | None = None) -> ModelOptions:
    """The one base of some sides, quantisation and dtype settled.

    Runs decide how it is stored; adapters without a run, and the base, take that.

    Args:
        sides: to be compared.
        model: what the user names as the base.

    Raises:
        UserError: they have different bases, or none of them says which.
    """
    known = [(side, side.run) for side in sides if side.run is not None]
    bases = {_stored(run): side.name for side, run in known}
    if len(bases) > 1:
        raise UserError(
            "These were trained on different bases, so their answers come from different models.",
            details=[f"{name}: {', '.join(base)}" for base, name in bases.items()],
            remedy="Compare runs on the same base, quantisation and dtype.",
        )
    if known:
        side, run = known[0]
        options = run.recipe.model
        if model and model != options.name:
            raise UserError(
                f"{side.name} was trained on {options.name}, not on {model}.", remedy="Leave --model out."
            )
    else:
        named = next((side.model for side in sides if side.model is not None), None)
        options = ModelOptions(name=model) if model else named
    if options is None:
        raise UserError("Nothing says which base this is.", remedy="Name it with --model.")
    for side in sides:
        if side.model is not None and side.model.name != options.name:
            raise UserError(
                f"{side.name} belongs to the base {side.model.name}, not to {options.name}.",
                remedy="Compare what has the same base.",
            )
    settled = settle(options, device=device())
    stored = {"quantization": settled.quantization, "dtype": settled.dtype, "adapter": None}
    return options.model_copy(update=stored)


def _stored(run: FinishedRun) -> tuple[str, ...]:
    model, hashes = run.recipe.model, run.record.get("hashes") or {}
    base = hashes.get("base") or fingerprint(locate(model.name, model.revision))
    return model.name, model.quantization, model.dtype, str(base)[:12]
