"""The reward run that PPO learns from: found, checked, kept in the run's own folder, and how its scores count."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lite_align.data.render import Renderer, Unusable
from lite_align.data.types import Message
from lite_align.errors import ModelError, TrainingStopped, UserError
from lite_align.evaluate.folder import is_number
from lite_align.evaluate.folder import read as read_folder
from lite_align.model import lora, scalar_head
from lite_align.model.backbone import Role, adapter_digest
from lite_align.recipe import ModelOptions, PPOOptions
from lite_align.stages import scoring
from lite_align.stages.rollouts import ModelReward
from lite_align.train import files
from lite_align.train.finished import read_reward
from lite_align.train.run import Run
from lite_align.view import View

RECORD = "reward.json"
"""Beside the kept adapter: what is known of the run that it came from."""


@dataclass(frozen=True)
class RewardSource:
    """A reward model on disk.

    Attributes:
        name: of its run.
        adapter: folder of adapter and head.
        sha256: of both.
        record: `scale`, `recipe` and `hashes` of its run.
        held_out: its held-out rows; none of a kept one.
        kept: whether this is the copy in the folder of the run that uses it.
    """

    name: str
    adapter: Path
    sha256: str
    record: Mapping[str, Any]
    held_out: Sequence[Mapping[str, Any]]
    kept: bool = False

    def keep(self, run: Run) -> "RewardSource":
        """Copy it into a run folder, and return it from there."""
        folder = run.path / "adapters" / Role.REWARD.value
        if self.kept:
            return self
        folder.mkdir(parents=True, exist_ok=True)
        for name in (lora.CONFIG_FILE, lora.WEIGHTS_FILE, scalar_head.FILE):
            shutil.copyfile(self.adapter / name, folder / name)
        facts = {"run": self.name, "adapter": self.sha256, **self.record}
        files.replace(folder / RECORD, files.dump_json(facts, indent=1))
        run.update("reward_model", {"run": self.name, "adapter": self.sha256, "scale": self.record["scale"]})
        return RewardSource(self.name, folder, self.sha256, self.record, (), kept=True)

    def require_base(self, model: ModelOptions, fingerprint: str) -> None:
        """Refuse to score answers of another base, or of one that is stored otherwise.

        Raises:
            UserError: the scores would mean nothing.
        """
        theirs = self.record["recipe"]["model"]
        known = self.record["hashes"].get("base")
        stored = (theirs["quantization"], theirs["dtype"]) == (model.quantization, model.dtype)
        if known in (None, fingerprint) and stored:
            return
        raise UserError(
            f"The reward model {self.name} was trained on another base: its scores would mean nothing.",
            details=[
                f"{self.name}: {theirs['name']}, {theirs['quantization']}, {theirs['dtype']}",
                f"this run: {model.name}, {model.quantization}, {model.dtype}",
            ],
            remedy="Give a reward run on the same base, quantisation and dtype.",
        )

    def model_reward(self, options: PPOOptions, renderer: Renderer, view: View) -> ModelReward:
        """How its scores count."""
        scale = self.record["scale"]
        mean, deviation = scale.get("mean"), scale.get("std")
        if not (is_number(mean) and is_number(deviation) and deviation > 0):
            view.warn(f"{self.name} does not say how its scores are spread: they count as they are.")
            mean, deviation = 0.0, 1.0
        suffix = scale.get("judge_suffix")
        return ModelReward(
            mean=float(mean),
            deviation=float(deviation),
            weight=options.reward_weight,
            clip=options.reward_clip,
            suffix=() if suffix is None else suffix_ids(renderer, str(suffix)),
            stop=renderer.turn_end,
        )


def suffix_ids(renderer: Renderer, suffix: str) -> scoring.Ids:
    """The tokens from the end of an answer to where a judge's turn after it is scored."""
    example = ((Message("user", "Hi"),), (Message("assistant", "An answer"),))
    (rendered,) = scoring.sequences(renderer, [example], suffix)
    if isinstance(rendered, Unusable):
        raise ModelError(f"The template cannot write the judge's turn {suffix!r}: {rendered.detail}.")
    last = len(rendered.ids) - 1 - rendered.trained[::-1].index(True)
    return rendered.ids[last + 1 :]


def reward_of(options: PPOOptions, folder: Path | None) -> RewardSource | None:
    """The reward model of a recipe, from the copy that a run folder has, or from its own run.

    Raises:
        UserError: it is no finished reward run.
        TrainingStopped: the copy is not what the run was started with.
    """
    if options.reward is None:
        return None
    kept = None if folder is None else folder / "adapters" / Role.REWARD.value
    if kept is not None and (kept / RECORD).is_file():
        return _kept(kept)
    run = read_reward(Path(options.reward))
    adapter = run.adapter(Role.REWARD)
    record = {
        "scale": dict(run.record.get("reward") or {}),
        "recipe": run.record["recipe"],
        "hashes": run.record.get("hashes") or {},
    }
    return RewardSource(
        str(run.folder), adapter, adapter_digest(adapter), record, read_folder(run.folder).held_out
    )


def _kept(folder: Path) -> RewardSource:
    facts = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    name, known = str(facts.pop("run")), str(facts.pop("adapter"))
    try:
        found = adapter_digest(folder)
    except ModelError as error:
        found = error.what
    if found != known:
        raise TrainingStopped(
            f"{folder} is not the reward model that this run started with ({name}): {found[:12]} in place of "
            f"{known[:12]}.",
            remedy="A run cannot go on with another reward. Put the adapter back, or start a new run.",
        )
    return RewardSource(name, folder, known, facts, (), kept=True)
