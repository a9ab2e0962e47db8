"""What the stages of the training loop have in common: steps of an epoch, passes without gradients, their state."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor

from lite_align.data import forest
from lite_align.data.types import Tree
from lite_align.model.backbone import Backbone, Role
from lite_align.recipe import Recipe
from lite_align.stages import passes
from lite_align.train.engine import Group, Loss, MicroBatch, Window
from lite_align.train.faults import TokenBudget

T = TypeVar("T")
RecipeT = TypeVar("RecipeT", bound=Recipe)
BatchT = TypeVar("BatchT", bound=MicroBatch)


class Stage(ABC, Generic[RecipeT, BatchT]):
    """A stage that `train.fit` drives.

    Args:
        backbone: base with the adapter that is trained.
        recipe: with no "auto" left.
        process: number of this process and how many there are; each takes every n-th part of a window.
        budget: tokens of a pass, lowered where memory runs out; None: as the recipe says.
    """

    name: str
    role: ClassVar[Role] = Role.POLICY
    """What is trained; its adapter is saved under this name."""
    steps_per_round: int = 1
    rate_factor: float = 1.0
    ended: str = ""
    """See `train.fit.Stage`."""

    def __init__(
        self,
        backbone: Backbone,
        recipe: RecipeT,
        *,
        process: tuple[int, int] = (0, 1),
        budget: TokenBudget | None = None,
    ) -> None:
        assert recipe.train.tokens_per_microbatch != "auto"
        self.backbone = backbone
        self.recipe = recipe
        self.process = process
        self.budget = budget or TokenBudget(recipe.train.tokens_per_microbatch)

    @property
    @abstractmethod
    def examples(self) -> int:
        """How many examples one epoch has."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one pass over the examples; the last one may be smaller."""
        return -(-self.examples // self.recipe.train.batch_size)

    def epoch(self, step: int) -> float:
        """Passes over the examples finished after `step` updates."""
        return step / self.steps_per_epoch

    @abstractmethod
    def window(self, step: int) -> Window[BatchT]:
        """The examples of optimiser step `step`, in passes within the budget.

        They are a function of the step alone, so a resumed run sees what the uninterrupted one saw.
        """

    @abstractmethod
    def loss(self, batch: BatchT) -> Loss:
        """The loss of one pass, summed over its examples, with the sums of what is logged."""

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Held-out metrics, each example counted once."""

    def measured(self) -> dict[str, float]:
        """What else belongs in the next row of metrics, since the last call."""
        return {}

    def state(self) -> dict[str, Any]:
        """What a resumed run needs besides tensors and the step, as JSON values."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`."""

    def groups(self) -> list[Group]:
        """Tensors besides the adapter that are trained, with learning rates of their own."""
        return []

    def own_part(self, items: Sequence[T]) -> Sequence[T]:
        """What this process does of a window."""
        number, processes = self.process
        return items[number::processes]

    def in_passes(
        self, trees: Sequence[Tree], work: Callable[[list[Tree]], T], where: str
    ) -> Iterator[tuple[list[int], T]]:
        """Do some work without gradients on trees, pass after pass; yields the numbers of the trees and the result."""
        packs = forest.pack(trees, self.budget.tokens)
        return passes.in_packs(trees, packs, work, self.budget, where=where)

    def adapters(self) -> dict[str, dict[str, Tensor]]:
        """The trained adapter, with its head where it has one, by tensor name."""
        return {self.role.value: self.backbone.adapter_tensors(self.role)}

    def load_adapters(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Put a checkpoint's adapter back in place, exactly."""
        self.backbone.set_adapter_tensors(self.role, tensors[self.role.value])
