"""`lite-align dpo DATA` with a loss on thumbs: what training on single answers does of its own."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from lite_align.data.mismatch import mismatched_tree, own_tree
from lite_align.data.split import prompt_key
from lite_align.data.types import Rated, Tree
from lite_align.errors import DataError, RecipeError
from lite_align.losses import unpaired
from lite_align.model.backbone import Backbone
from lite_align.recipe import DPORecipe, Resolved, fill_options
from lite_align.stages import answers, passes, rows
from lite_align.stages.dpo import loss_options
from lite_align.stages.kto import (
    KTO,
    ThumbSet,
    held_out_stand_ins,
    list_pairings,
    windows_of,
    with_reference,
)
from lite_align.stages.procedure import Prepared
from lite_align.stages.thumbs import THUMBS
from lite_align.stages.train_dpo import PreferenceProcedure, reference_logps
from lite_align.train.faults import TokenBudget
from lite_align.train.run import Run
from lite_align.view import View


class KTOProcedure(PreferenceProcedure[Rated]):
    """Preference training on thumbs."""

    def __init__(self, *, scores_mismatched: bool = True) -> None:
        self.scores_mismatched = scores_mismatched

    def kind(self, recipe: DPORecipe) -> rows.Kind[Rated]:
        """Answers with a thumb."""
        return THUMBS

    def check(self, recipe: DPORecipe) -> None:
        """Check the options of the loss, and that nothing asks for pairs."""
        super().check(recipe)
        if recipe.data.pair_thumbs:
            raise RecipeError(
                f"data.pair_thumbs makes pairs of thumbs, but {recipe.loss.name} trains on thumbs as they are",
                remedy="Leave one of the two out; lite-align losses says what each loss learns from.",
            )

    def settle(
        self, resolved: Resolved[DPORecipe], examples: Sequence[tuple[Rated, Tree]]
    ) -> Resolved[DPORecipe]:
        """Fill the weights of the thumbs by how many there are of either kind, each times its own weight.

        Raises:
            DataError: one kind is held out altogether, or all answers are to one prompt.
        """
        up = sum(row.label for row, _ in examples)
        down = len(examples) - up
        if not up or not down:
            raise DataError(
                f"LA309: {up:,} thumbs up and {down:,} down are left to train on; both are needed",
                remedy="Add rows, or hold out fewer: --set data.held_out=0",
            )
        if self.scores_mismatched and len({row.prompt for row, _ in examples}) < 2:
            raise DataError(
                f"{resolved.recipe.loss.name} needs answers to at least two prompts: it measures from what the policy "
                "gives to answers under prompts that are not theirs",
                remedy="Add prompts, or use the loss that measures from 0: --set loss.name=apo_zero_unpaired",
            )
        weighed = {
            label: sum(row.weight for row, _ in examples if row.label == label) for label in (True, False)
        }
        weights = unpaired.balanced_weights(weighed[True], weighed[False])
        return fill_options(resolved, "loss.options", weights, f"{up:,} thumbs up, {down:,} down")

    def trees(self, recipe: DPORecipe, examples: Sequence[tuple[Rated, Tree]]) -> list[Tree]:
        """One tree for an up and a down of the same prompt."""
        of = ThumbSet.of(examples)
        trees = [own_tree(of.answered, block) for block in of.groups]
        return passes.laid_out(trees, share_prompts=recipe.speed.share_prompts)

    def plan(self, prepared: Prepared[Rated]) -> str:
        """Loss, beta and weights."""
        up = sum(row.label for row, _ in prepared.train)
        options = loss_options(prepared.recipe)
        weights = [f"{options[name]:.3g}" for name in unpaired.WEIGHTS]
        return (
            f"{super().plan(prepared)} · {up:,} up weigh {weights[0]}, "
            f"{len(prepared.train) - up:,} down weigh {weights[1]}"
        )

    def build(
        self, backbone: Backbone, prepared: Prepared[Rated], run: Run, budget: TokenBudget, view: View
    ) -> KTO:
        """Compute the reference log-probs and make the stage."""
        train, held_out = thumb_sets(backbone, prepared, budget, view, mismatched=self.scores_mismatched)
        return KTO(backbone, prepared.recipe, train, held_out, budget=budget)

    def measure(self, stage: KTO, prepared: Prepared[Rated], run: Run, view: View) -> None:
        """Held-out thumbs and answers, before and after."""
        found = held_out_rows(stage)
        run.write_rows("held_out.jsonl", found)
        unused = len(stage.held_out.rows) - 2 * len(found)
        if unused:
            view.section(
                "held out",
                f"{len(found):,} thumbs up stand against as many down; {unused:,} have no opposite",
            )
        told = answers.before_and_after(
            stage.backbone, prepared.renderer, stage.held_out.rows, prepared.kind.prompt, stage.budget, view
        )
        run.write_rows("answers.jsonl", told)


def thumb_sets(
    backbone: Backbone, prepared: Prepared[Rated], budget: TokenBudget, view: View, *, mismatched: bool
) -> tuple[ThumbSet, ThumbSet]:
    """Both sets with their reference log-probs: of the answers, and of every mismatched answer that the run will score.

    Which answers stand in for which is a function of the step, so those of the whole run are known beforehand.
    """
    recipe = prepared.recipe
    train, held_out = ThumbSet.of(prepared.train), ThumbSet.of(prepared.held_out)
    windows = windows_of(train, recipe)
    trained = [windows.step(step) for step in range(prepared.total_steps)] if mismatched else []
    measured = [(held_out.groups, held_out_stand_ins(held_out, recipe))] if mismatched else []
    lonely = sum(len(b) - len(o) for window, stands in trained for b, o in zip(window, stands, strict=True))
    if lonely:
        view.warn(
            f"{lonely:,} times in this run no answer fits under the prompt of a thumb (data.max_length "
            f"{recipe.data.max_length:,}); the reference point is measured without it."
        )
    groups = [
        [own_tree(train.answered, block) for block in train.groups],
        foreign_trees(train, trained),
        [own_tree(held_out.answered, block) for block in held_out.groups],
        foreign_trees(held_out, measured),
    ]
    share = recipe.speed.share_prompts
    trees = passes.laid_out([tree for group in groups for tree in group], share_prompts=share)
    values = iter(reference_logps(backbone, prepared, trees, budget, view, what="prompts with answers"))
    own, foreign, held, held_foreign = ([next(values) for _ in group] for group in groups)
    return (
        with_reference(train, own, [p for window in trained for p in list_pairings(*window)], foreign),
        with_reference(
            held_out, held, [p for window in measured for p in list_pairings(*window)], held_foreign
        ),
    )


def foreign_trees(of: ThumbSet, windows: Sequence[tuple[Any, Any]]) -> list[Tree]:
    """The mismatched trees of some windows, in their order."""
    return [
        mismatched_tree(of.answered, block, others)
        for window, stands in windows
        for block, others in zip(window, stands, strict=True)
        if others
    ]


def opposites(rated: Sequence[Rated]) -> list[tuple[int, int]]:
    """Set each thumb up against a thumb down: of the same prompt where there is one, else of its category, else any.

    Each row is used once, in the order of the rows; of the commoner thumb some are left over.
    """
    left: dict[bool, list[int]] = {True: [], False: []}
    for number, row in enumerate(rated):
        left[row.label].append(number)
    found: list[tuple[int, int]] = []
    levels: tuple[Callable[[Rated], Hashable], ...] = (
        lambda row: prompt_key(row.prompt),
        lambda row: row.category,
        lambda row: None,
    )
    for level in levels:
        downs: dict[Hashable, list[int]] = {}
        for down in left[False]:
            downs.setdefault(level(rated[down]), []).append(down)
        for up in list(left[True]):
            if waiting := downs.get(level(rated[up])):
                down = waiting.pop(0)
                found.append((up, down))
                left[True].remove(up)
                left[False].remove(down)
    return sorted(found)


def held_out_rows(stage: KTO) -> list[dict[str, Any]]:
    """One row for a held-out thumb up against a thumb down, in the form of a held-out pair.

    The margin is the reward of the first less that of the second. Where the policy does not tell the thumbs apart, it
    is as often above as below 0, whatever the shares of the thumbs and however far all answers have moved.
    """
    of, normalized = stage.held_out, stage.recipe.loss.length_normalized
    before, after = of.reference.tolist(), stage.held_out_logps()
    tokens = of.lengths(range(len(of.rows))).tolist()

    def reward(logps: Sequence[float], row: int) -> float:
        return stage.beta * (logps[row] - before[row]) / (tokens[row] if normalized else 1)

    return [
        {
            "source": str(of.rows[up].source),
            "against": str(of.rows[down].source),
            "category": of.rows[up].category if of.rows[up].category == of.rows[down].category else None,
            "chosen_tokens": tokens[up],
            "rejected_tokens": tokens[down],
            **{
                name: {
                    "chosen_logp": logps[up],
                    "rejected_logp": logps[down],
                    "margin": reward(logps, up) - reward(logps, down),
                }
                for name, logps in (("before", before), ("after", after))
            },
        }
        for up, down in opposites(of.rows)
    ]
