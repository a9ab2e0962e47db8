"""What one training verb does of its own: `training.train` drives it from rows to verdict."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from lite_align.data.render import Renderer
from lite_align.data.types import Row, Tree
from lite_align.evaluate.findings import Verdict
from lite_align.model.backbone import Backbone, Role
from lite_align.model.loading import Loading
from lite_align.recipe import Resolved
from lite_align.stages import passes, resources, rows, session
from lite_align.stages.lineage import Parent
from lite_align.stages.stage import Stage
from lite_align.train.faults import TokenBudget
from lite_align.train.meter import Meter
from lite_align.train.run import Run
from lite_align.view import View

RowT = TypeVar("RowT", bound=Row)


@dataclass(frozen=True)
class Prepared(Generic[RowT]):
    """Everything that is known before the weights are loaded.

    Attributes:
        resolved: the recipe, with no "auto" left but the format of the rows.
        kind: of the rows.
        read: what the file holds.
        dropped: the rows left out, by rule.
        renderer: of the base's tokenizer.
        train: rows to learn from, with their trees.
        held_out: rows to evaluate on.
        total_steps: optimiser steps of the run.
        parameters: of the base.
        hashes: by content: data, template, tokens, base, parent.
        forecast: of memory and time.
        meter: of the device.
        parent: the adapter that the run starts from.
        loading: the weights on their way, if they were read together with the rows.
    """

    resolved: Resolved[Any]
    kind: rows.Kind[RowT]
    read: rows.ReadRows[RowT]
    dropped: rows.Dropped
    renderer: Renderer
    train: list[tuple[RowT, Tree]]
    held_out: list[tuple[RowT, Tree]]
    total_steps: int
    parameters: int
    hashes: dict[str, str]
    forecast: resources.Forecast
    meter: Meter
    parent: Parent | None
    loading: Loading | None

    @property
    def recipe(self) -> Any:
        """The resolved recipe."""
        return self.resolved.recipe


class Procedure(ABC, Generic[RowT]):
    """One training verb.

    Attributes:
        stage: its name: "dpo".
        role: that is trained.
        has_reference: whether what is trained is measured against REFERENCE.
        scores_mismatched: whether every step also scores as many answers under prompts that are not theirs.
    """

    stage: str
    role: Role = Role.POLICY
    has_reference: bool = False
    scores_mismatched: bool = False

    @abstractmethod
    def kind(self, recipe: Any) -> rows.Kind[RowT]:
        """The rows that the recipe asks for."""

    def check(self, recipe: Any) -> None:
        """Raise RecipeError for mistakes that can be told before the data are read."""

    def inputs(self, recipe: Any, folder: Path | None) -> dict[str, str]:
        """Check what a run is made of besides rows, base and parent, and return its hashes by name.

        `folder` is that of a run that is resumed. Raises LiteAlignError.
        """
        return {}

    def fit_base(self, prepared: "Prepared[RowT]", folder: Path | None) -> None:
        """Refuse inputs that belong to another base, whose hash is known now; `folder` as in `inputs`.

        Raises LiteAlignError.
        """

    def steps(self, recipe: Any, examples: int) -> int:
        """Optimiser steps of the run."""
        return session.total_steps(recipe, examples)

    def forward_passes(self, recipe: Any) -> float:
        """Passes without gradients over an example for each one with gradients, for the forecast of time."""
        return 0.0

    def count(self, recipe: Any, examples: int) -> int:
        """What one epoch works on, where `train.batch_size` does not count rows."""
        return examples

    def settle(self, resolved: Resolved[Any], examples: Sequence[tuple[RowT, Tree]]) -> Resolved[Any]:
        """Fill settings that depend on others of this stage or on what is trained, before those of the model's size."""
        return resolved

    def trees(self, recipe: Any, examples: Sequence[tuple[RowT, Tree]]) -> list[Tree]:
        """The trees of some rows as they are computed."""
        return passes.laid_out([tree for _, tree in examples], share_prompts=recipe.speed.share_prompts)

    @abstractmethod
    def plan(self, prepared: Prepared[RowT]) -> str:
        """What is special about this run, in one line of the plan."""

    @abstractmethod
    def build(
        self, backbone: Backbone, prepared: Prepared[RowT], run: Run, budget: TokenBudget, view: View
    ) -> Stage[Any, Any]:
        """Make the stage, with everything that it needs before its first step."""

    def prove(self, stage: Any, run: Run, view: View) -> None:
        """Show that the run starts where it must, or stop."""

    @abstractmethod
    def measure(self, stage: Any, prepared: Prepared[RowT], run: Run, view: View) -> None:
        """Leave in the run folder what verdict and report are made of; the adapter was saved before."""

    @abstractmethod
    def show(self, found: Verdict, run: Run, view: View) -> None:
        """Print what was measured, above the verdict."""

    @abstractmethod
    def next(self, folder: Path) -> str:
        """The command to type next."""
