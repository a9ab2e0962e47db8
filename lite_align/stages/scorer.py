"""The score that a reward run gives to an answer, raw and in standard deviations of its own fixed set."""

from dataclasses import dataclass
from pathlib import Path

import torch

from lite_align.data import forest
from lite_align.data.comparisons import judged, up_to_score
from lite_align.data.render import Renderer
from lite_align.data.types import Conversation, Message
from lite_align.errors import UserError
from lite_align.evaluate.folder import is_number
from lite_align.model.backbone import Backbone, Role
from lite_align.stages.passes import to_batch
from lite_align.train.finished import FinishedRun, attach, read_reward


@dataclass(frozen=True)
class Score:
    """A score as the head gives it, and as so many standard deviations above the mean; None if they are not known."""

    raw: float
    deviations: float | None

    def told(self) -> str:
        """One line for people."""
        normal = "" if self.deviations is None else f" · {self.deviations:+.2f} standard deviations"
        return f"score {self.raw:+.3f}{normal}"


class Scorer:
    """Scores answers with the REWARD role of a backbone, which it adds.

    Args:
        backbone: the base, with other roles.
        run: a reward run on that base (see `read`).
    """

    def __init__(self, backbone: Backbone, run: FinishedRun) -> None:
        attach(backbone, Role.REWARD, run.adapter(Role.REWARD))
        self._backbone = backbone
        self._renderer = Renderer(backbone.loaded.tokenizer)
        section = run.record.get("reward") or {}
        suffix = section.get("judge_suffix")
        self._suffix = None if suffix is None else str(suffix)
        mean, std = section.get("mean"), section.get("std")
        self._scale = (float(mean), float(std)) if is_number(mean) and is_number(std) and std > 0 else None

    @staticmethod
    def read(folder: Path, policy: FinishedRun) -> FinishedRun:
        """Read a reward run that can score what a policy run says.

        Raises:
            UserError: it is no finished reward run, or was trained on another base.
        """
        run = read_reward(folder)
        bases = [(one.record.get("hashes") or {}).get("base") for one in (run, policy)]
        storage = [(one.recipe.model.quantization, one.recipe.model.dtype) for one in (run, policy)]
        if bases[0] != bases[1] or storage[0] != storage[1]:
            raise UserError(
                f"{folder} was trained on another base than {policy.folder}: scores would mean nothing.",
                details=[
                    f"{one.folder}: {one.recipe.model.name}, {one.recipe.model.quantization}, {one.recipe.model.dtype}"
                    for one in (run, policy)
                ],
                remedy="Give a reward run on the same base, quantisation and dtype.",
            )
        return run

    @torch.no_grad()
    def __call__(self, conversation: Conversation, answer: str) -> Score:
        """The score of an answer at the end of a conversation."""
        turns = judged((Message("assistant", answer),), self._suffix)
        rendered = self._renderer.conversation(conversation, turns)
        tree = forest.grow(0, [up_to_score(rendered, judged=self._suffix is not None)])
        with self._backbone.role(Role.REWARD):
            raw = float(self._backbone.scores(to_batch([tree], self._backbone.device)))
        if self._scale is None:
            return Score(raw, None)
        mean, std = self._scale
        return Score(raw, (raw - mean) / std)
