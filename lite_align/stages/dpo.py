"""DPO and its family: where pairs, the backbone and a preference loss meet.

`DPO` is the stage that `train.fit` drives; it holds two pair sets (trained and held out) whose reference log-probs
were computed beforehand.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from lite_align.data import forest
from lite_align.data.types import Pair, Tree
from lite_align.errors import TrainingStopped
from lite_align.losses import catalogue, preference
from lite_align.losses.pairs import PairLogps
from lite_align.model.backbone import Backbone, Role
from lite_align.recipe import DPORecipe
from lite_align.stages import passes
from lite_align.stages.reference import tolerance
from lite_align.stages.stage import Stage
from lite_align.train.engine import Loss, Window
from lite_align.train.faults import TokenBudget
from lite_align.train.metrics import Sums, means

T = TypeVar("T")


@dataclass(frozen=True)
class PairSet:
    """N pairs as trees (tree n has key n, leaf 0 chosen, leaf 1 rejected) with what the loss needs of each.

    Args:
        pairs: the rows, for messages, categories and weights.
        trees: the same rows as tokens.
        reference: (N, 2) log-probs of chosen and rejected under the REFERENCE role; None for losses without one.
    """

    pairs: Sequence[Pair]
    trees: Sequence[Tree]
    reference: Tensor | None

    @classmethod
    def of(
        cls, pairs: Sequence[Pair], trees: Sequence[Tree], logps: Sequence[tuple[float, ...]] | None
    ) -> "PairSet":
        """Number the trees from 0 and put their reference log-probs into one tensor."""
        numbered = [Tree(key, t.root, t.root_trained, t.leaves) for key, t in enumerate(trees)]
        reference = None if logps is None else torch.tensor(logps, dtype=torch.float32).view(-1, 2)
        return cls(list(pairs), numbered, reference)

    def logps(self, batch: forest.Batch, leaf_logps: Tensor, *, with_reference: bool) -> PairLogps:
        """Pair up leaf log-probs (2B,) of a batch, (B,) each, with those of the reference or without."""
        policy, lengths = leaf_logps.view(-1, 2), batch.lengths.view(-1, 2)
        rows = list(batch.keys)
        reference = None
        if with_reference:
            assert self.reference is not None
            reference = forest.upload(self.reference[rows], leaf_logps.device)
        return PairLogps(
            chosen=policy[:, 0],
            rejected=policy[:, 1],
            reference_chosen=None if reference is None else reference[:, 0],
            reference_rejected=None if reference is None else reference[:, 1],
            chosen_lengths=lengths[:, 0],
            rejected_lengths=lengths[:, 1],
        )

    def weights(self, keys: Sequence[int]) -> list[float]:
        """Weights of pairs in the loss."""
        return [self.pairs[key].weight for key in keys]


class DPO(Stage[DPORecipe, forest.Batch]):
    """The stage: windows of packed pairs, the loss of one of them, evaluation on held-out pairs.

    Args:
        backbone: base with the POLICY adapter that is trained and the REFERENCE role.
        recipe: with no "auto" left.
        train: pairs to learn from.
        held_out: pairs to evaluate on.
        process, budget: see `Stage`.
    """

    name = "dpo"

    def __init__(
        self,
        backbone: Backbone,
        recipe: DPORecipe,
        train: PairSet,
        held_out: PairSet,
        *,
        process: tuple[int, int] = (0, 1),
        budget: TokenBudget | None = None,
    ) -> None:
        super().__init__(backbone, recipe, process=process, budget=budget)
        assert recipe.loss.beta != "auto"
        self.train = train
        self.held_out = held_out
        self.beta = recipe.loss.beta
        self.objective = catalogue.find(recipe.loss.name)
        self.options = loss_options(recipe)

    def margin(self, logps: Sequence[float], reference: Sequence[float], tokens: Sequence[int]) -> float:
        """Reward margin of one pair from log-probs of (chosen, rejected), as `rewards/margins` logs it."""
        values = torch.tensor([list(logps), list(reference), list(map(float, tokens))], dtype=torch.float64)
        against = values[1] if self.objective.needs_reference else None
        pair = PairLogps(
            chosen=values[0, :1],
            rejected=values[0, 1:],
            chosen_lengths=values[2, :1],
            rejected_lengths=values[2, 1:],
            reference_chosen=None if against is None else against[:1],
            reference_rejected=None if against is None else against[1:],
        )
        normalized = self.recipe.loss.length_normalized
        return float(preference.metrics(pair, self.beta, length_normalized=normalized)["rewards/margins"])

    @property
    def examples(self) -> int:
        """Pairs to learn from."""
        return len(self.train.trees)

    def window(self, step: int) -> Window[forest.Batch]:
        """The pairs of optimiser step `step`, packed into micro-batches of at most the token budget."""
        size = self.recipe.train.batch_size
        epoch, index = divmod(step, self.steps_per_epoch)
        order = forest.order(self.examples, self.recipe.train.seed, epoch)
        rows = order[index * size : (index + 1) * size]
        weight = sum(self.train.weights(rows))
        trees = [self.train.trees[row] for row in self.own_part(rows)]
        return Window(passes.batches(trees, self.budget.tokens, self.backbone.device), weight)

    def passes(
        self, pairs: PairSet, rows: Sequence[int], work: Callable[[forest.Batch], T], where: str
    ) -> Iterator[T]:
        """Do some work without gradients on batches of some pairs of a set, and yield each result."""

        def on_trees(pack: list[Tree]) -> T:
            return work(passes.to_batch(pack, self.backbone.device))

        trees = [pairs.trees[row] for row in rows]
        return (result for _, result in self.in_passes(trees, on_trees, where))

    # Loss and metrics.

    def score(self, pairs: PairSet, batch: forest.Batch) -> tuple[PairLogps, preference.LossParts]:
        """Log-probs of a batch under POLICY and its loss, (B,) each."""
        with self.backbone.role(Role.POLICY):
            leaf_logps = self.backbone.leaf_logps(batch)
        logps = pairs.logps(batch, leaf_logps, with_reference=self.objective.needs_reference)
        parts = preference.total(
            logps,
            self.objective,
            self.options,
            sft_weight=self.recipe.loss.sft_weight,
            length_normalized=self.recipe.loss.length_normalized,
        )
        return logps, parts

    def loss(self, batch: forest.Batch) -> Loss:
        """The loss of one micro-batch, summed over its pairs, with the sums of what is logged."""
        logps, parts = self.score(self.train, batch)
        weights = forest.upload(torch.tensor(self.train.weights(batch.keys)), parts.total.device)
        total = (parts.total * weights).sum()
        return Loss(total, {name: v.sum() for name, v in self.metrics(logps, parts).items()}, len(batch.keys))

    def metrics(self, logps: PairLogps, parts: preference.LossParts) -> dict[str, Tensor]:
        """Everything logged of B pairs, (B,) each, detached."""
        rows = {"loss": parts.total.detach()}
        if self.recipe.loss.sft_weight:
            rows |= {"loss/preference": parts.preference.detach(), "loss/sft": parts.sft.detach()}
        normalized = self.recipe.loss.length_normalized
        return rows | preference.metrics(logps, self.beta, length_normalized=normalized)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Means over the held-out pairs, each counted once."""

        def measured(batch: forest.Batch) -> tuple[dict[str, Tensor], int]:
            rows = self.metrics(*self.score(self.held_out, batch))
            return {name: values.sum() for name, values in rows.items()}, len(batch.keys)

        sums = Sums()
        for found in self.passes(self.held_out, range(len(self.held_out.trees)), measured, "the evaluation"):
            sums.add(*found)
        return means(*sums.stacked()) if sums.weight else {}

    @torch.no_grad()
    def held_out_logps(self) -> list[tuple[float, float]]:
        """Chosen and rejected log-prob of every held-out pair under POLICY, in the order of the set."""

        def measured(batch: forest.Batch) -> dict[int, tuple[float, float]]:
            with self.backbone.role(Role.POLICY):
                leaf_logps = self.backbone.leaf_logps(batch).view(-1, 2).tolist()
            return {key: (chosen, rejected) for key, (chosen, rejected) in zip(batch.keys, leaf_logps)}

        rows = range(len(self.held_out.trees))
        values: dict[int, tuple[float, float]] = {}
        for found in self.passes(self.held_out, rows, measured, "the evaluation"):
            values |= found
        return [values[key] for key in sorted(values)]

    @torch.no_grad()
    def prove_start(self) -> dict[str, Any]:
        """Prove that POLICY equals REFERENCE before the first step: margins 0, loss at its known value.

        Returns the largest difference found in nats, the loss and the value it must have.

        Raises:
            TrainingStopped: the policy does not start at its reference (rules LA401 to LA405).
        """
        if self.train.reference is None or self.objective.at_zero is None:
            return {"reference": "none", "loss": None, "expected": None, "largest_difference": None}

        def measured(batch: forest.Batch) -> tuple[list[list[float]], list[list[int]], float]:
            logps, parts = self.score(self.train, batch)
            differences = torch.stack([logps.chosen_ratio().abs(), logps.rejected_ratio().abs()], 1)
            return differences.tolist(), batch.lengths.view(-1, 2).tolist(), float(parts.preference.sum())

        rows = forest.order(len(self.train.trees), self.recipe.train.seed, 0)[: self.recipe.train.batch_size]
        worst, loss = 0.0, 0.0
        for differences, lengths, loss_here in self.passes(
            self.train, rows, measured, "the proof of the start"
        ):
            for row, length in zip(differences, lengths, strict=True):
                if not all(d <= tolerance(self.backbone.dtype, n) for d, n in zip(row, length)):
                    raise not_the_reference(max(row))
                worst = max(worst, *row)
            loss += loss_here
        expected = self.objective.at_zero(self.options)
        return {"loss": loss / len(rows), "expected": expected, "largest_difference": worst}


def loss_options(recipe: DPORecipe) -> dict[str, float]:
    """All options of the recipe's loss, checked against its signature; RecipeError lists every mistake."""
    objective = catalogue.find(recipe.loss.name)
    given: dict[str, object] = dict(recipe.loss.options)
    if "beta" in objective.options.model_fields and recipe.loss.beta != "auto":
        given["beta"] = recipe.loss.beta
    given["label_smoothing"] = recipe.loss.label_smoothing
    return catalogue.options_for(recipe.loss.name, given, length_normalized=recipe.loss.length_normalized)


def not_the_reference(difference: float) -> TrainingStopped:
    """The error for a log-prob that differs by so many nats before step 1."""
    return TrainingStopped(
        f"The policy does not start at its reference: a log-prob differs by {difference:.3g} nats before step 1.",
        remedy="Nothing was trained. Run lite-align doctor; if it finds nothing, please report it with the model.",
    )
