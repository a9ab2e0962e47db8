"""Supervised fine-tuning: where conversations, the backbone and the log-loss of tokens meet.

`SFT` is the stage that `train.fit` drives. A window is so many rows; those that begin alike share a tree as far as the
token budget allows, which changes nothing but the time. Its loss is the mean over all trained tokens of the window.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lite_align.data import forest
from lite_align.data.types import Tree
from lite_align.model.backbone import Backbone, Role
from lite_align.recipe import SFTRecipe
from lite_align.stages import passes
from lite_align.stages.stage import Stage
from lite_align.train.engine import Loss, Window
from lite_align.train.faults import TokenBudget
from lite_align.train.metrics import Sums, means

Members = tuple[Tree, tuple[int, ...]]
"""A tree and the rows that its leaves are."""


@dataclass(frozen=True)
class ChatBatch:
    """Packed conversations.

    Args:
        forest: the packed trees.
        keys: the row of each leaf.
        trained: trained tokens of all rows together.
    """

    forest: forest.Batch
    keys: tuple[int, ...]
    trained: int

    @classmethod
    def of(cls, members: Sequence[Members], device: torch.device) -> "ChatBatch":
        """Pack trees on a device."""
        trees = [tree for tree, _ in members]
        keys = tuple(row for _, rows in members for row in rows)
        return cls(passes.to_batch(trees, device), keys, sum(map(trained_tokens, trees)))

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return self.forest.tokens


@dataclass(frozen=True)
class TokenScores:
    """How a model does on one row: nats of its trained tokens together, and how many no other token beats."""

    loss: float
    correct: int
    tokens: int


class SFT(Stage[SFTRecipe, ChatBatch]):
    """The stage: windows of packed conversations, the loss of one of them, evaluation on held-out ones.

    Args:
        backbone: base with the POLICY adapter that is trained.
        recipe: with no "auto" left.
        train: rows to learn from, a tree of one leaf each; tree n has the key n.
        held_out: rows to evaluate on, likewise.
        process, budget: see `Stage`.
    """

    name = "sft"

    def __init__(
        self,
        backbone: Backbone,
        recipe: SFTRecipe,
        train: Sequence[Tree],
        held_out: Sequence[Tree],
        *,
        process: tuple[int, int] = (0, 1),
        budget: TokenBudget | None = None,
    ) -> None:
        super().__init__(backbone, recipe, process=process, budget=budget)
        self.train = list(train)
        self.held_out = list(held_out)

    @property
    def examples(self) -> int:
        """Rows to learn from."""
        return len(self.train)

    def window(self, step: int) -> Window[ChatBatch]:
        """The rows of optimiser step `step`, packed into micro-batches of at most the token budget.

        Its weight is the number of trained tokens of the whole step: a micro-batch of long answers weighs more than
        one of short ones, however the rows fall into them (LA411).
        """
        epoch, index = divmod(step, self.steps_per_epoch)
        rows = by_step(len(self.train), self.recipe, epoch)[index]
        members = self.together(self.own_part(rows))
        packs = forest.pack([tree for tree, _ in members], self.budget.tokens)
        batches = [ChatBatch.of([members[i] for i in pack], self.backbone.device) for pack in packs]
        return Window(batches, sum(trained_tokens(self.train[row]) for row in rows))

    def together(self, rows: Sequence[int]) -> list[Members]:
        """Training rows as they are computed: those that begin alike in one tree."""
        return together(self.train, rows, self.budget.tokens, share_prompts=self.recipe.speed.share_prompts)

    # Loss and metrics.

    def score(self, batch: forest.Batch) -> tuple[Tensor, Tensor]:
        """Loss of every leaf and its number of tokens that no other beats, under the current role: (L,) each."""
        logps, best = self.backbone.token_scores(batch)
        return -batch.leaf_sum(logps), batch.leaf_sum(best.float())

    def loss(self, batch: ChatBatch) -> Loss:
        """The loss of one micro-batch, summed over its trained tokens, with the sums of what is logged."""
        with self.backbone.role(Role.POLICY):
            losses, correct = self.score(batch.forest)
        total = losses.sum()
        return Loss(total, {"loss": total.detach(), "mean_token_accuracy": correct.sum()}, batch.trained)

    @torch.no_grad()
    def held_out_scores(self, role: Role) -> list[TokenScores]:
        """What a role does on every held-out row, in their order; without dropout."""
        found: dict[int, TokenScores] = {}
        for scores in self._measured(role):
            found |= scores
        return [found[row] for row in range(len(self.held_out))]

    def evaluate(self) -> dict[str, float]:
        """Means over the trained tokens of the held-out rows, each counted once; without dropout."""
        sums = Sums()
        for row in self.held_out_scores(Role.POLICY):
            values = {"loss": row.loss, "mean_token_accuracy": float(row.correct)}
            sums.add({name: torch.tensor(value) for name, value in values.items()}, row.tokens)
        return means(*sums.stacked()) if sums.weight else {}

    def _measured(self, role: Role) -> Iterator[dict[int, TokenScores]]:
        def measured(pack: list[Tree]) -> dict[int, TokenScores]:
            batch = passes.to_batch(pack, self.backbone.device)
            with self.backbone.without_dropout(), self.backbone.role(role):
                losses, correct = self.score(batch)
            values = torch.stack([losses, correct, batch.lengths.to(losses)], 1).tolist()
            return {
                key: TokenScores(loss, round(hits), round(tokens))
                for key, (loss, hits, tokens) in zip(batch.keys, values, strict=True)
            }

        return (result for _, result in self.in_passes(self.held_out, measured, "the evaluation"))


def by_step(examples: int, recipe: SFTRecipe, epoch: int) -> list[list[int]]:
    """The rows of every optimiser step of an epoch, in random order."""
    size = recipe.train.batch_size
    order = forest.order(examples, recipe.train.seed, epoch)
    return [order[start : start + size] for start in range(0, examples, size)]


def together(
    trees: Sequence[Tree], rows: Sequence[int], budget: int, *, share_prompts: bool
) -> list[Members]:
    """Some rows of a set of trees: those that begin alike in one tree, of at most `budget` tokens."""
    if not share_prompts:
        return [(trees[row], (row,)) for row in rows]
    shared = forest.shared([trees[row] for row in rows], budget)
    return [(tree, tuple(rows[place] for place in places)) for tree, places in shared]


def trained_tokens(tree: Tree) -> int:
    """Trained tokens of all leaves of a tree, those of the root counted for each."""
    return sum(sum(leaf.trained) for leaf in tree.leaves) + len(tree.leaves) * sum(tree.root_trained)
