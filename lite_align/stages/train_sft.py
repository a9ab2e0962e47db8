"""`lite-align sft DATA`: what supervised fine-tuning does of its own, from the trees to the verdict's rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lite_align.data.types import Chat, Tree
from lite_align.evaluate.findings import Verdict
from lite_align.evaluate.folder import read
from lite_align.model.backbone import Backbone, Role
from lite_align.recipe import SFTRecipe
from lite_align.stages import answers, rows
from lite_align.stages.chats import TRAINED, chats
from lite_align.stages.procedure import Prepared, Procedure
from lite_align.stages.sft import SFT, TokenScores, by_step, together
from lite_align.train.faults import TokenBudget
from lite_align.train.run import Run
from lite_align.view import View


class SFTProcedure(Procedure[Chat]):
    """Supervised fine-tuning on conversations."""

    stage = "sft"

    def kind(self, recipe: SFTRecipe) -> rows.Kind[Chat]:
        """Conversations, trained where the recipe says."""
        return chats(recipe.loss.train_on)

    def trees(self, recipe: SFTRecipe, examples: Sequence[tuple[Chat, Tree]]) -> list[Tree]:
        """The trees of the first epoch: none is longer than the longest row, as long as the budget is not known."""
        trees = [tree for _, tree in examples]
        budget = recipe.train.tokens_per_microbatch
        if budget == "auto":
            budget = max((tree.tokens for tree in trees), default=1)
        share = recipe.speed.share_prompts
        steps = by_step(len(trees), recipe, 0)
        return [tree for rows in steps for tree, _ in together(trees, rows, budget, share_prompts=share)]

    def plan(self, prepared: Prepared[Chat]) -> str:
        """What the loss covers."""
        raw = any(row.raw for row, _ in prepared.train)
        return "loss on all tokens of raw texts" if raw else TRAINED[prepared.recipe.loss.train_on]

    def build(
        self, backbone: Backbone, prepared: Prepared[Chat], run: Run, budget: TokenBudget, view: View
    ) -> SFT:
        """Make the stage."""
        train, held_out = (numbered(examples) for examples in (prepared.train, prepared.held_out))
        return SFT(backbone, prepared.recipe, train, held_out, budget=budget)

    def measure(self, stage: SFT, prepared: Prepared[Chat], run: Run, view: View) -> None:
        """Held-out rows and answers, before and after."""
        held_out = [row for row, _ in prepared.held_out]
        run.write_rows("held_out.jsonl", held_out_rows(stage, held_out))
        talks = [row for row in held_out if not row.raw]
        told = answers.before_and_after(
            stage.backbone, prepared.renderer, talks, prepared.kind.prompt, stage.budget, view
        )
        run.write_rows("answers.jsonl", told)

    def show(self, found: Verdict, run: Run, view: View) -> None:
        """A few answers."""
        answers.show(read(run.path).answers, view)

    def next(self, folder: Path) -> str:
        """Talk to it."""
        return f"lite-align chat {folder}"


def numbered(examples: list[tuple[Chat, Tree]]) -> list[Tree]:
    """The trees of some rows, numbered from 0."""
    return [Tree(key, t.root, t.root_trained, t.leaves) for key, (_, t) in enumerate(examples)]


def held_out_rows(stage: SFT, held_out: list[Chat]) -> list[dict[str, Any]]:
    """One row a held-out conversation: nats a token and hits, under what the run started from and under the policy."""
    before, after = (stage.held_out_scores(role) for role in (Role.REFERENCE, Role.POLICY))
    return [
        {
            "source": str(row.source),
            "category": row.category,
            "tokens": now.tokens,
            "before": side(was),
            "after": side(now),
        }
        for row, was, now in zip(held_out, before, after, strict=True)
    ]


def side(scores: TokenScores) -> dict[str, Any]:
    """One side of a held-out row."""
    return {"loss": scores.loss / scores.tokens, "correct": scores.correct}
