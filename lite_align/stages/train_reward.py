"""`lite-align reward DATA`: what reward training does of its own, from compared answers to a proved head."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lite_align.data import lint
from lite_align.data.comparisons import Scored, group, judged
from lite_align.data.render import Renderer, Unusable
from lite_align.data.types import Pair, Tree
from lite_align.errors import DataError
from lite_align.evaluate.findings import Verdict
from lite_align.model.backbone import Backbone, Role
from lite_align.recipe import DataOptions, RewardRecipe
from lite_align.stages import passes, probes, reload, rows, scoring
from lite_align.stages.pairs import PAIRS
from lite_align.stages.procedure import Prepared, Procedure
from lite_align.stages.reward import RewardModel, spread
from lite_align.train.faults import TokenBudget
from lite_align.train.run import Run
from lite_align.view import View

MOST_FIXED = 512
"""Pairs whose scores fix mean and standard deviation where none is held out."""


class RewardProcedure(Procedure[Pair]):
    """Reward training on pairs."""

    stage = "reward"
    role = Role.REWARD

    def kind(self, recipe: RewardRecipe) -> rows.Kind[Pair]:
        """Pairs that end where their scores are read; of a ranking every pair."""
        return replace(
            PAIRS,
            every_pair=True,
            marked="scored",
            lint=lint_with_margins if recipe.loss.margin else lint.lint_pairs,
            sequences=partial(sequences, recipe.loss.judge_suffix),
        )

    def trees(self, recipe: RewardRecipe, examples: Sequence[tuple[Pair, Tree]]) -> list[Tree]:
        """All answers of a prompt together, in trees that are no longer than the longest pair."""
        longest = max((tree.tokens for _, tree in examples), default=0)
        compared = group(scored(examples), most_tokens=longest)
        share = recipe.speed.share_prompts
        return passes.laid_out([one.tree for one in compared], share_prompts=share)

    def plan(self, prepared: Prepared[Pair]) -> str:
        """Loss and place of the score."""
        recipe = prepared.recipe
        suffix = recipe.loss.judge_suffix
        read = "the answer's end" if suffix is None else f"a judge's turn after {suffix!r}"
        margin = "with margins · " if recipe.loss.margin else ""
        return f"Bradley-Terry · {margin}score read at {read}"

    def build(
        self, backbone: Backbone, prepared: Prepared[Pair], run: Run, budget: TokenBudget, view: View
    ) -> RewardModel:
        """Make the stage."""
        train, held_out = scored(prepared.train), scored(prepared.held_out)
        return RewardModel(backbone, prepared.recipe, train, held_out, budget=budget)

    def prove(self, stage: RewardModel, run: Run, view: View) -> None:
        """Show that every score of the first step is read at the last token of its answer (LA502)."""
        batches = stage.window(0).batches
        read = {int(t) for b in batches for t in b.forest.input_ids[0, b.forest.leaf_ends()].tolist()}
        last = {ids[-1] for one in stage.pairs(0) for ids in (one.chosen, one.rejected)}
        assert read == last, "scores are read at other tokens than the sequences end with"
        token = stage.backbone.loaded.tokenizer.decode(sorted(read))
        answers = sum(len(batch.forest.lengths) for batch in batches)
        view.section("proof", f"{answers} scores of the first step are read at {token!r}", note="ok")

    def measure(self, stage: RewardModel, prepared: Prepared[Pair], run: Run, view: View) -> None:
        """Held-out scores, the swap test, the probes, the scale, and the proof of what was saved."""
        recipe, fixed = (
            prepared.recipe,
            stage.held_out or [one for prompt in stage.prompts for one in prompt][:MOST_FIXED],
        )
        found = held_out_rows(stage, prepared.renderer, view)
        run.write_rows("held_out.jsonl", found)
        scores = stage.scores(fixed)
        chosen = {one.chosen: own for one, (own, _) in zip(fixed, scores, strict=True)}
        scale = spread(list(chosen.values()))
        record: dict[str, Any] = {
            "mean": scale["rewards/mean"],
            "std": scale["rewards/std"],
            "count": len(chosen),
            "over": f"chosen answers, {'held out' if stage.held_out else 'trained on'}",
            "judge_suffix": recipe.loss.judge_suffix,
        }
        proof = reload.prove(stage.backbone, recipe, run.path, fixed[: reload.PAIRS])
        run.update("reward", {**record, "reload": proof})

    def show(self, found: Verdict, run: Run, view: View) -> None:
        """Scale of the scores, and the proof of the saved head."""
        record = run.record["reward"]
        assert isinstance(record, dict)
        reload.show(record["reload"], view)
        view.section(
            "scale",
            f"mean {record['mean']:.2f} · standard deviation {record['std']:.2f} · {record['count']:,} "
            f"{record['over']}",
        )

    def next(self, folder: Path) -> str:
        """Compare answers by their scores."""
        return f"lite-align report {folder}"


def lint_with_margins(pairs: Sequence[Pair]) -> lint.Lint[Pair]:
    """Lint pairs for a loss with margins; DataError if no row has one."""
    if pairs and all(pair.margin is None for pair in pairs):
        raise DataError(
            f"loss.margin is on, and none of {len(pairs):,} pairs has a margin",
            remedy="Add a column margin, or scores of both answers, or leave loss.margin out.",
        )
    return lint.lint_pairs(pairs)


def sequences(
    suffix: str | None, renderer: Renderer, pairs: Sequence[Pair], options: DataOptions
) -> list[rows.Sequences | Unusable]:
    """Pairs as tokens, both answers up to where their score is read."""
    turned = [
        replace(pair, chosen=judged(pair.chosen, suffix), rejected=judged(pair.rejected, suffix))
        for pair in pairs
    ]
    return [_cut(found, renderer, suffix) for found in PAIRS.sequences(renderer, turned, options)]


def _cut(
    found: rows.Sequences | Unusable, renderer: Renderer, suffix: str | None
) -> rows.Sequences | Unusable:
    if isinstance(found, Unusable):
        return found
    answers = [scoring.cut(answer, renderer, suffix) for answer in found.answers]
    usable = tuple(answer for answer in answers if not isinstance(answer, Unusable))
    refused = [answer for answer in answers if isinstance(answer, Unusable)]
    return refused[0] if refused else rows.Sequences(usable, found.turns_dropped)


def scored(examples: Sequence[tuple[Pair, Tree]]) -> list[Scored]:
    """Pairs as sequences that end where their scores are read."""
    return [Scored.of(pair, tree) for pair, tree in examples]


def held_out_rows(stage: RewardModel, renderer: Renderer, view: View) -> list[dict[str, Any]]:
    """One row a held-out comparison (see `evaluate.scores`); the first of each prompt has swaps and probes."""
    held_out = stage.held_out
    first: dict[tuple[int, ...], Scored] = {}
    for one in held_out:
        first.setdefault(one.chosen[: one.prompt], one)
    tested = list(first.values())[: probes.MOST_PROMPTS]
    others = other_scores(stage, renderer, tested)
    numbers: dict[tuple[int, ...], int] = {}
    found: list[dict[str, Any]] = []
    for one, (chosen, rejected) in zip(held_out, stage.scores(held_out), strict=True):
        answers = [numbers.setdefault(ids, len(numbers)) for ids in (one.chosen, one.rejected)]
        found.append(
            {
                "source": str(one.pair.source),
                "category": one.pair.category,
                "answers": answers,
                "chosen_tokens": one.tokens[0],
                "rejected_tokens": one.tokens[1],
                "chosen_reward": chosen,
                "rejected_reward": rejected,
                **others.get(id(one), {}),
            }
        )
    return found


def other_scores(
    stage: RewardModel, renderer: Renderer, tested: Sequence[Scored]
) -> dict[int, dict[str, dict[str, float]]]:
    """Scores of swapped answers and probes, for each of the pairs by identity."""
    recipe = stage.recipe
    longest = recipe.data.max_length
    assert longest != "auto"
    suffix = recipe.loss.judge_suffix
    swapped = probes.swaps(tested, max_length=longest)
    probed = probes.probes(renderer, tested, suffix, max_length=longest)
    asked = [
        (one.prompt, [*swap.values(), *probe.values()])
        for one, swap, probe in zip(tested, swapped, probed, strict=True)
    ]
    scores = scoring.score(stage.backbone, asked, stage.budget)
    return {
        id(one): {
            "swaps": dict(zip(swap, values)),
            "probes": dict(zip(probe, values[len(swap) :])),
        }
        for one, swap, probe, values in zip(tested, swapped, probed, scores, strict=True)
    }
