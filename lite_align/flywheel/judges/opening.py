"""The judge that a person names: `base`, a run of lite-align reward, the URL of an endpoint, or FILE.py:NAME."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from lite_align.errors import UserError
from lite_align.flywheel.judges.judgement import Judge
from lite_align.flywheel.rubrics import Rubric, read

if TYPE_CHECKING:
    from lite_align.data.render import Renderer
    from lite_align.flywheel.judges.chat_api import Endpoint
    from lite_align.model.backbone import Backbone
    from lite_align.recipe import ModelOptions
    from lite_align.train.faults import TokenBudget
    from lite_align.train.finished import FinishedRun

BASE = "base"
PASS_TOKENS = 4096
"""Tokens of a pass; fewer once memory ran out."""

Kind = Literal["base", "reward", "endpoint", "function"]


@dataclass(frozen=True)
class Asked:
    """Which judge, and how it judges.

    Attributes:
        by: names it.
        model: the base, or the model's name at an endpoint.
        rubric: in YAML; ours where there is none.
        seconds: for one call of an endpoint or a function.
        at_once: questions that are on their way to an endpoint together.
        seed: of the marks around answers.
    """

    by: str = BASE
    model: str | None = None
    rubric: Path | None = None
    seconds: float = 60.0
    at_once: int = 4
    seed: int = 0

    @property
    def kind(self) -> Kind:
        """What `by` names, by its form alone."""
        if self.by == BASE:
            return "base"
        if "://" in self.by:
            return "endpoint"
        return "function" if ".py" in self.by and ":" in self.by else "reward"

    def endpoint(self) -> "Endpoint":
        """The endpoint that `by` names.

        Raises:
            UserError: the URL is none, or no model is named.
        """
        from lite_align.flywheel.judges.chat_api import Endpoint

        if not self.model:
            raise UserError(f"Which model of {self.by}?", remedy="Give its name there with --model.")
        return Endpoint(self.by, self.model, seconds=self.seconds)


class Local(NamedTuple):
    """A base in memory, as the local judges need it; `positions` is the longest row that it can read."""

    backbone: "Backbone"
    renderer: "Renderer"
    budget: "TokenBudget"
    positions: int


Loading = Callable[["FinishedRun | None"], Local]
"""Gives the base: of a reward run, or the one that judges itself."""


def open_judge(asked: Asked, loading: Loading) -> Judge:
    """The judge that was asked for.

    Args:
        asked: see `Asked`.
        loading: is called for a local judge alone.

    Raises:
        UserError: there is no such run, file, function or URL, or it cannot judge.
    """
    match asked.kind:
        case "endpoint":
            from lite_align.flywheel.judges.endpoint import EndpointJudge

            rubric = read(Rubric, asked.rubric)
            return EndpointJudge(asked.endpoint(), rubric, at_once=asked.at_once, seed=asked.seed)
        case "function":
            from lite_align.flywheel.judges.function import FunctionJudge

            _no_rubric(asked)
            return FunctionJudge(asked.by, seconds=asked.seconds)
        case "reward":
            from lite_align.flywheel.judges.reward import RewardJudge
            from lite_align.train.finished import read_reward

            _no_rubric(asked)
            run = read_reward(Path(asked.by))
            return RewardJudge(run, *loading(run))
        case "base":
            from lite_align.flywheel.judges.base import BaseJudge

            rubric = read(Rubric, asked.rubric)
            backbone, renderer, budget, positions = loading(None)
            return BaseJudge(backbone, renderer, rubric, budget, positions, seed=asked.seed)


def _no_rubric(asked: Asked) -> None:
    if asked.rubric is not None:
        raise UserError(
            f"{asked.by} does not read a rubric.",
            remedy="Leave --rubric out, or judge with --by base or a URL.",
        )


def load_local(model: "ModelOptions", budget_told: Callable[[object], None] = lambda lowered: None) -> Local:
    """Load a base to judge with; `auto` is settled as for training.

    Raises:
        ModelError: it cannot be loaded.
    """
    from lite_align.data.render import Renderer
    from lite_align.model.backbone import Backbone
    from lite_align.model.folder import TINY
    from lite_align.model.load import choose, load_model, settle
    from lite_align.recipe import LoraOptions
    from lite_align.stages.session import device
    from lite_align.train.faults import TokenBudget

    on = device()
    model = model.model_copy(update={"name": choose(model, device=on).name})
    backbone = Backbone(load_model(model, device=on), LoraOptions(rank=1), seed=0)
    renderer = Renderer(backbone.loaded.tokenizer, trusted=model.name == TINY)
    budget = TokenBudget(PASS_TOKENS, tell=budget_told)
    return Local(backbone, renderer, budget, settle(model, device=on).positions)
