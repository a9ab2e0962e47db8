"""Training on thumbs: where single answers, the backbone and an unpaired loss meet.

The loss of a row is measured from a reference point, one number for a whole optimiser step: how much the policy has
gained on answers under prompts that are not theirs. It is computed without gradients over the whole window before the
window's first pass, so that micro-batches and packing change nothing.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lite_align.data import forest
from lite_align.data.mismatch import Answered, Block, Windows, blocks, mismatched_tree, own_tree, stand_ins
from lite_align.data.types import Rated, Tree
from lite_align.losses import catalogue, unpaired
from lite_align.losses.preference import LossParts
from lite_align.losses.unpaired import ThumbLogps
from lite_align.model.backbone import Backbone, Role
from lite_align.recipe import DPORecipe
from lite_align.stages import passes
from lite_align.stages.dpo import loss_options, not_the_reference
from lite_align.stages.reference import tolerance
from lite_align.stages.stage import Stage
from lite_align.train.engine import Loss, Window
from lite_align.train.faults import TokenBudget
from lite_align.train.metrics import Counted, Sums, means

Pairing = tuple[int, int]
"""A row whose prompt is used, and a row whose answer stands in for its own."""


@dataclass(frozen=True)
class ThumbSet:
    """N rated answers with what the loss needs of each.

    Args:
        rows: for categories, labels and weights.
        answered: the rows as tokens.
        groups: rows that share a prompt.
        reference: (N,) log-probs under the REFERENCE role.
        stand_in: log-probs under REFERENCE of prompts with the answers of other rows.
    """

    rows: Sequence[Rated]
    answered: Sequence[Answered]
    groups: Sequence[Block]
    reference: Tensor
    stand_in: Mapping[Pairing, float]

    @classmethod
    def of(cls, examples: Sequence[tuple[Rated, Tree]]) -> "ThumbSet":
        """Rows without their log-probs yet."""
        rows = [row for row, _ in examples]
        answered = [Answered.of(forest.whole(tree, 0)) for _, tree in examples]
        groups = blocks(answered, [row.label for row in rows])
        return cls(rows, answered, groups, torch.zeros(0), {})

    @property
    def up(self) -> list[bool]:
        """The thumbs."""
        return [row.label for row in self.rows]

    def weights(self, rows: Iterable[int]) -> list[float]:
        """Weights of some rows in the loss."""
        return [self.rows[row].weight for row in rows]

    def lengths(self, rows: Sequence[int]) -> Tensor:
        """Numbers of trained tokens of some rows."""
        return torch.tensor([sum(self.answered[row].answer.trained) for row in rows])


@dataclass(frozen=True)
class Whole:
    """What the loss of a row needs of the whole window that it is in.

    Attributes:
        blocks: of the window, by their first row.
        zero: the reference point, a scalar.
        up, down: thumbs of either kind.
    """

    blocks: Mapping[int, Block]
    zero: Tensor
    up: int
    down: int

    @classmethod
    def of(cls, rows: ThumbSet, window: Sequence[Block], zero: Tensor) -> "Whole":
        """Count the thumbs of a window."""
        labels = [rows.rows[row].label for block in window for row in block]
        return cls({block[0]: block for block in window}, zero, sum(labels), len(labels) - sum(labels))


@dataclass(frozen=True)
class ThumbBatch:
    """A packed micro-batch of a window.

    Attributes:
        packed: the trees.
        rows: the row of each leaf.
        window: that it is a part of.
    """

    packed: forest.Batch
    rows: tuple[int, ...]
    window: Whole

    @property
    def keys(self) -> Sequence[int]:
        """The first row of each tree."""
        return self.packed.keys

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return self.packed.tokens


class KTO(Stage[DPORecipe, ThumbBatch]):
    """The stage: windows of packed answers, the loss of one of them, evaluation on held-out answers.

    Args:
        backbone: base with the POLICY adapter that is trained and the REFERENCE role.
        recipe: with no "auto" left.
        train: answers to learn from.
        held_out: answers to evaluate on.
        budget: see `Stage`; a run on thumbs is one process.
    """

    name = "dpo"

    def __init__(
        self,
        backbone: Backbone,
        recipe: DPORecipe,
        train: ThumbSet,
        held_out: ThumbSet,
        *,
        budget: TokenBudget | None = None,
    ) -> None:
        super().__init__(backbone, recipe, budget=budget)
        assert recipe.loss.beta != "auto"
        self.train = train
        self.held_out = held_out
        self.beta = recipe.loss.beta
        self.objective = catalogue.find(recipe.loss.name)
        self.options = loss_options(recipe)
        self.windows = windows_of(train, recipe)

    # Windows: rows are a function of the step, the reference point of the step and the policy as it stands.

    @property
    def examples(self) -> int:
        """Rows to learn from."""
        return len(self.train.rows)

    def window(self, step: int) -> Window[ThumbBatch]:
        """The rows of optimiser step `step`, packed into micro-batches, measured from one reference point."""
        window, others = self.windows.step(step)
        whole = Whole.of(self.train, window, self.zero(self.train, window, others))
        trees = self.laid_out(own_tree(self.train.answered, block) for block in window)
        batches = [self.batch(pack, whole) for pack in passes.packs(trees, self.budget.tokens)]
        return Window(batches, sum(self.train.weights(row for block in window for row in block)))

    def batch(self, trees: Sequence[Tree], whole: Whole) -> ThumbBatch:
        """Some trees of a window in one pass."""
        rows = tuple(row for tree in trees for row in whole.blocks[tree.key])
        return ThumbBatch(passes.to_batch(trees, self.backbone.device), rows, whole)

    def laid_out(self, trees: Iterable[Tree]) -> list[Tree]:
        """Trees as they are computed."""
        return passes.laid_out(list(trees), share_prompts=self.recipe.speed.share_prompts)

    def zero(self, of: ThumbSet, window: Sequence[Block], others: Sequence[Block]) -> Tensor:
        """The reference point of a window: see `losses.unpaired.reference_point`; 0 for losses without one."""
        pairings = list_pairings(window, others) if self.objective.needs_zero else []
        if not pairings:
            return torch.zeros((), device=self.backbone.device)
        trees = [mismatched_tree(of.answered, b, o) for b, o in zip(window, others, strict=True) if o]
        policy = torch.tensor(self.logps(trees, "the reference point"))
        reference = torch.tensor([of.stand_in[pairing] for pairing in pairings])
        lengths = of.lengths([other for _, other in pairings]) if self.recipe.loss.length_normalized else None
        return unpaired.reference_point(policy, reference, lengths).to(self.backbone.device)

    def logps(self, trees: Sequence[Tree], where: str) -> list[float]:
        """Log-probs under POLICY of all leaves, tree by tree, without gradients."""
        trees = self.laid_out(trees)

        def measured(pack: list[Tree]) -> list[list[float]]:
            batch = passes.to_batch(pack, self.backbone.device)
            with torch.no_grad(), self.backbone.role(Role.POLICY):
                values = self.backbone.leaf_logps(batch).float().tolist()
            return [values[a:b] for a, b in zip(batch.first_leaf, batch.first_leaf[1:])]

        found: dict[int, list[float]] = {}
        for pack, values in self.in_passes(trees, measured, where):
            found |= dict(zip(pack, values, strict=True))
        return [value for i in range(len(trees)) for value in found[i]]

    # Loss and metrics.

    def score(self, of: ThumbSet, batch: ThumbBatch) -> tuple[ThumbLogps, LossParts]:
        """Log-probs of a batch under POLICY and its loss, (B,) each."""
        with self.backbone.role(Role.POLICY):
            policy = self.backbone.leaf_logps(batch.packed)
        rows = list(batch.rows)
        thumbs = ThumbLogps(
            policy=policy,
            reference=forest.upload(of.reference[rows], policy.device),
            lengths=batch.packed.lengths,
            up=forest.upload(torch.tensor([of.rows[row].label for row in rows]), policy.device),
            zero=batch.window.zero,
        )
        loss = self.recipe.loss
        parts = unpaired.total(
            thumbs,
            self.objective,
            self.options,
            sft_weight=loss.sft_weight,
            length_normalized=loss.length_normalized,
        )
        return thumbs, parts

    def loss(self, batch: ThumbBatch) -> Loss:
        """The loss of one micro-batch, summed over its rows, with the sums of what is logged."""
        thumbs, parts = self.score(self.train, batch)
        sums = self.metrics(self.train, batch, thumbs, parts)
        weights = forest.upload(torch.tensor(self.train.weights(batch.rows)), parts.total.device)
        return Loss((parts.total * weights).sum(), sums, len(batch.rows))

    def metrics(
        self, of: ThumbSet, batch: ThumbBatch, thumbs: ThumbLogps, parts: LossParts
    ) -> dict[str, Tensor | Counted]:
        """Sums over the rows of a batch, detached; those of one thumb over its rows alone."""
        found: dict[str, Tensor | Counted] = {"loss": parts.total.detach().sum()}
        if self.recipe.loss.sft_weight:
            found |= {
                "loss/preference": parts.preference.detach().sum(),
                "loss/sft": parts.sft.detach().sum(),
            }
        normalized = self.recipe.loss.length_normalized
        values = unpaired.metrics(thumbs, self.beta, length_normalized=normalized)
        ups = sum(of.rows[row].label for row in batch.rows)
        rewards, zeros = values["rewards"], torch.zeros_like(values["rewards"])
        for side, mask, count in (
            ("chosen", thumbs.up, ups),
            ("rejected", ~thumbs.up, len(batch.rows) - ups),
        ):
            if count:
                for name in ("rewards", "logps"):
                    found[f"{name}/{side}"] = Counted(torch.where(mask, values[name], zeros).sum(), count)
        found["rewards/accuracies"] = values["accuracies"].sum()
        if batch.window.up and batch.window.down:
            # In the mean over the window: the mean reward of its thumbs up less that of its thumbs down.
            rows = batch.window.up + batch.window.down
            share = torch.where(thumbs.up, rewards / batch.window.up, -rewards / batch.window.down)
            found["rewards/margins"] = rows * share.sum()
        if self.objective.needs_zero:
            found["kl"] = batch.window.zero * len(batch.rows)
        return found

    def scored(
        self, of: ThumbSet, window: Sequence[Block], others: Sequence[Block], where: str
    ) -> Iterator[tuple[ThumbBatch, ThumbLogps, LossParts]]:
        """A window of a set in passes without gradients, each with its log-probs and losses."""
        whole = Whole.of(of, window, self.zero(of, window, others))

        def measured(pack: list[Tree]) -> tuple[ThumbBatch, ThumbLogps, LossParts]:
            with torch.no_grad():
                batch = self.batch(pack, whole)
                return (batch, *self.score(of, batch))

        trees = self.laid_out(own_tree(of.answered, block) for block in window)
        return (result for _, result in self.in_passes(trees, measured, where))

    def evaluate(self) -> dict[str, float]:
        """Means over the held-out rows, each counted once; all of them are one window with one reference point."""
        sums = Sums()
        others = held_out_stand_ins(self.held_out, self.recipe)
        for batch, thumbs, parts in self.scored(
            self.held_out, self.held_out.groups, others, "the evaluation"
        ):
            sums.add(self.metrics(self.held_out, batch, thumbs, parts), len(batch.rows))
        return means(*sums.stacked())

    def held_out_logps(self) -> list[float]:
        """Log-prob of every held-out answer under POLICY, in the order of the set."""
        of = self.held_out
        values = self.logps([own_tree(of.answered, block) for block in of.groups], "the evaluation")
        by_row = dict(zip((row for block in of.groups for row in block), values, strict=True))
        return [by_row[row] for row in range(len(of.rows))]

    def prove_start(self) -> dict[str, Any]:
        """Prove that POLICY equals REFERENCE before the first step: no log-ratio, the loss λ/2 in the mean.

        Returns the largest difference found in nats, the loss and the value it must have, and the reference point.

        Raises:
            TrainingStopped: the policy does not start at its reference (rules LA401 to LA405).
        """
        worst, loss, expected, count, zero = 0.0, 0.0, 0.0, 0, 0.0
        for batch, thumbs, parts in self.scored(self.train, *self.windows.step(0), "the proof of the start"):
            for difference, length in zip(
                thumbs.ratio().abs().tolist(), thumbs.lengths.tolist(), strict=True
            ):
                if not difference <= tolerance(self.backbone.dtype, length):  # not >: NaN must not pass
                    raise not_the_reference(difference)
                worst = max(worst, difference)
            loss += float(parts.preference.sum())
            expected += sum(unpaired.at_zero(self.options, self.train.rows[row].label) for row in batch.rows)
            count, zero = count + len(batch.rows), float(batch.window.zero)
        return {
            "loss": loss / count,
            "expected": expected / count,
            "largest_difference": worst,
            "reference_point": zero,
        }


def longest_of(recipe: DPORecipe) -> int:
    """Tokens that a prompt with a foreign answer may have."""
    assert recipe.data.max_length != "auto"
    return recipe.data.max_length


def windows_of(train: ThumbSet, recipe: DPORecipe) -> Windows:
    """The windows of a recipe over a set."""
    options = recipe.train
    return Windows(
        train.answered, train.groups, size=options.batch_size, seed=options.seed, longest=longest_of(recipe)
    )


def list_pairings(window: Sequence[Block], others: Sequence[Block]) -> list[Pairing]:
    """Which prompt goes with which answer in the mismatched trees of a window, leaf by leaf."""
    return [(block[0], other) for block, stand in zip(window, others, strict=True) for other in stand]


def held_out_stand_ins(held_out: ThumbSet, recipe: DPORecipe) -> list[Block]:
    """Whose answers stand in for those of the held-out rows, which are one window."""
    return stand_ins(held_out.answered, held_out.groups, (), longest_of(recipe))


def with_reference(
    of: ThumbSet,
    own: Sequence[tuple[float, ...]],
    pairings: Sequence[Pairing],
    foreign: Sequence[tuple[float, ...]],
) -> ThumbSet:
    """A set with its reference log-probs.

    Args:
        of: the set.
        own: those of its blocks, leaf by leaf.
        pairings: prompts with answers of other rows.
        foreign: those of the trees that these are in, leaf by leaf.
    """
    reference = torch.zeros(len(of.rows))
    for block, logps in zip(of.groups, own, strict=True):
        reference[list(block)] = torch.tensor(logps)
    values = [value for logps in foreign for value in logps]
    return replace(of, reference=reference, stand_in=dict(zip(pairings, values, strict=True)))
