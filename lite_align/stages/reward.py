"""The reward model: where compared answers, the scored backbone and the Bradley–Terry loss meet.

`RewardModel` is the stage that `train.fit` drives. A window is so many pairs; those of one prompt stand together and
share a tree as far as the token budget allows, which changes nothing but the time.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lite_align.data import forest
from lite_align.data.comparisons import Compared, Scored, by_prompt, group
from lite_align.data.types import Tree
from lite_align.losses import reward
from lite_align.model.backbone import Backbone, Role
from lite_align.recipe import RewardRecipe
from lite_align.stages import passes
from lite_align.stages.stage import Stage
from lite_align.train.engine import Loss, Window
from lite_align.train.faults import TokenBudget
from lite_align.train.metrics import Sums, means


@dataclass(frozen=True)
class ScoredBatch:
    """Packed answers, and the C comparisons between their L leaves.

    Attributes:
        forest: the packed trees.
        comparisons: pairs with their leaves, in the order of the columns below.
        chosen: (C,) int64, leaf of the chosen answer.
        rejected: (C,) int64, leaf of the rejected answer.
        margin: (C,) fp32, how much better the chosen answer was rated; 0 where the data do not say.
        weight: (C,) fp32.
    """

    forest: forest.Batch
    comparisons: tuple[Scored, ...]
    chosen: Tensor
    rejected: Tensor
    margin: Tensor
    weight: Tensor

    @classmethod
    def of(cls, compared: Sequence[Compared], trees: Sequence[Tree], device: torch.device) -> "ScoredBatch":
        """Pack trees, as they are computed; tree n is that of the compared answers with this number."""
        batch = passes.to_batch(trees, device)
        found = [
            (first + one.chosen, first + one.rejected, one.scored)
            for key, first in zip(batch.keys, batch.first_leaf)
            for one in compared[key].comparisons
        ]
        scored = tuple(pair for _, _, pair in found)

        def column(values: Sequence[float], dtype: torch.dtype) -> Tensor:
            return forest.upload(torch.tensor(values, dtype=dtype), device)

        return cls(
            batch,
            scored,
            column([chosen for chosen, _, _ in found], torch.int64),
            column([rejected for _, rejected, _ in found], torch.int64),
            column([one.pair.margin or 0.0 for one in scored], torch.float32),
            column([one.pair.weight for one in scored], torch.float32),
        )

    @property
    def keys(self) -> list[int]:
        """Lines of the compared rows, for messages."""
        return [one.pair.source.line for one in self.comparisons]

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return self.forest.tokens


class RewardModel(Stage[RewardRecipe, ScoredBatch]):
    """The stage: windows of compared answers, the loss of one of them, evaluation on held-out pairs.

    Args:
        backbone: base with the REWARD adapter and its scalar head.
        recipe: with no "auto" left.
        train: pairs to learn from.
        held_out: pairs to evaluate on.
        process, budget: see `Stage`; a process takes whole trees.
    """

    name = "reward"
    role = Role.REWARD

    def __init__(
        self,
        backbone: Backbone,
        recipe: RewardRecipe,
        train: Sequence[Scored],
        held_out: Sequence[Scored],
        *,
        process: tuple[int, int] = (0, 1),
        budget: TokenBudget | None = None,
    ) -> None:
        super().__init__(backbone, recipe, process=process, budget=budget)
        self.prompts = by_prompt(train)
        self.held_out = list(held_out)

    @property
    def examples(self) -> int:
        """Pairs to learn from."""
        return sum(map(len, self.prompts))

    def pairs(self, step: int) -> list[Scored]:
        """The pairs of optimiser step `step`: prompts are shuffled, the pairs of one stay side by side."""
        size = self.recipe.train.batch_size
        epoch, index = divmod(step, self.steps_per_epoch)
        order = forest.order(len(self.prompts), self.recipe.train.seed, epoch)
        shuffled = [pair for prompt in order for pair in self.prompts[prompt]]
        return shuffled[index * size : (index + 1) * size]

    def window(self, step: int) -> Window[ScoredBatch]:
        """The pairs of optimiser step `step`, packed into micro-batches of at most the token budget."""
        pairs = self.pairs(step)
        compared, trees = self.compared(pairs)
        batches = [
            ScoredBatch.of(compared, pack, self.backbone.device)
            for pack in passes.packs(self.own_part(trees), self.budget.tokens)
        ]
        return Window(batches, sum(one.pair.weight for one in pairs))

    def compared(self, pairs: Sequence[Scored]) -> tuple[list[Compared], list[Tree]]:
        """Pairs by prompt, and their trees as they are computed, none longer than the budget that could be shorter."""
        compared = group(pairs, most_tokens=self.budget.tokens)
        trees = [one.tree for one in compared]
        return compared, passes.laid_out(trees, share_prompts=self.recipe.speed.share_prompts)

    # Loss and metrics.

    def score(self, batch: ScoredBatch) -> tuple[reward.Comparisons, reward.RewardLoss]:
        """Scores of a batch under REWARD and their loss, (C,) each."""
        with self.backbone.role(Role.REWARD):
            scores = self.backbone.scores(batch.forest)
        pairs = reward.Comparisons(
            # index_select: its backward adds in a fixed order on the CPU.
            scores.index_select(0, batch.chosen),
            scores.index_select(0, batch.rejected),
            batch.margin if self.recipe.loss.margin else None,
        )
        return pairs, reward.total(pairs, self.recipe.loss.center_rewards_coefficient)

    def loss(self, batch: ScoredBatch) -> Loss:
        """The loss of one micro-batch, summed over its comparisons, with the sums of what is logged."""
        pairs, parts = self.score(batch)
        sums = {name: values.sum() for name, values in self.metrics(pairs, parts).items()}
        return Loss((parts.total * batch.weight).sum(), sums, len(batch.comparisons))

    def metrics(self, pairs: reward.Comparisons, parts: reward.RewardLoss) -> dict[str, Tensor]:
        """Everything logged of C comparisons, (C,) each, detached."""
        rows = {"loss": parts.total.detach()}
        if self.recipe.loss.center_rewards_coefficient:
            rows |= {"loss/ranking": parts.ranking.detach(), "loss/centering": parts.centering.detach()}
        return rows | reward.metrics(pairs)

    def without_gradient(
        self, pairs: Sequence[Scored]
    ) -> Iterator[tuple[ScoredBatch, reward.Comparisons, reward.RewardLoss]]:
        """Score pairs batch after batch; the caller turns gradients off."""
        compared, trees = self.compared(pairs)

        def measured(pack: list[Tree]) -> tuple[ScoredBatch, reward.Comparisons, reward.RewardLoss]:
            batch = ScoredBatch.of(compared, pack, self.backbone.device)
            return batch, *self.score(batch)

        return (result for _, result in self.in_passes(trees, measured, "the evaluation"))

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Means over the held-out comparisons, each counted once, and the spread of their scores."""
        sums, scores = Sums(), list[float]()
        for batch, pairs, parts in self.without_gradient(self.held_out):
            rows = self.metrics(pairs, parts)
            sums.add({name: values.sum() for name, values in rows.items()}, len(batch.comparisons))
            scores += torch.cat([pairs.chosen, pairs.rejected]).tolist()
        return {**means(*sums.stacked()), **spread(scores)} if scores else {}

    @torch.no_grad()
    def scores(self, pairs: Sequence[Scored]) -> list[tuple[float, float]]:
        """Scores of the chosen and the rejected answer of pairs, in their order."""
        found: dict[int, tuple[float, float]] = {}
        for batch, scored, _ in self.without_gradient(pairs):
            values = zip(scored.chosen.tolist(), scored.rejected.tolist())
            found |= {id(one): both for one, both in zip(batch.comparisons, values, strict=True)}
        return [found[id(pair)] for pair in pairs]


def spread(scores: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation, least and greatest of some scores."""
    deviation = statistics.stdev(scores) if len(scores) > 1 else 0.0
    return {
        "rewards/mean": statistics.fmean(scores),
        "rewards/std": deviation,
        "rewards/min": min(scores),
        "rewards/max": max(scores),
    }
