"""`lite-align dpo DATA`: what preference training does of its own, from the reference cache to the verdict's rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lite_align.data.types import Pair, Tree
from lite_align.evaluate.findings import Verdict
from lite_align.evaluate.folder import read
from lite_align.losses import catalogue
from lite_align.model.backbone import Backbone
from lite_align.model.folder import cache_root
from lite_align.recipe import DPORecipe, Resolved, resolve_auto
from lite_align.stages import answers, passes, reference, rows
from lite_align.stages.dpo import DPO, PairSet, loss_options
from lite_align.stages.pairs import PAIRS
from lite_align.stages.procedure import Prepared, Procedure, RowT
from lite_align.train.faults import TokenBudget
from lite_align.train.run import Run
from lite_align.view import View


class PreferenceProcedure(Procedure[RowT]):
    """What training against a reference has in common, whether on pairs or on thumbs."""

    stage = "dpo"
    has_reference = True

    def check(self, recipe: DPORecipe) -> None:
        """Check the options of the loss."""
        loss_options(recipe)

    def plan(self, prepared: Prepared[RowT]) -> str:
        """Loss and beta."""
        loss = prepared.recipe.loss
        return f"{loss.name} · beta {loss.beta:g}"

    def prove(self, stage: Any, run: Run, view: View) -> None:
        """Show that the policy starts at its reference, or stop."""
        proof = stage.prove_start()
        record = run.record["reference"]
        assert isinstance(record, dict)
        run.update("reference", {**record, "proof": proof})
        if proof["loss"] is None:
            view.section("proof", f"{stage.objective.name} has no reference: nothing to prove")
            return
        adapter = "" if record["reference"] == "none" else f" · reference {record['reference'][:8]}"
        view.section(
            "proof",
            f"loss {proof['loss']:.4f} = {proof['expected']:.4f} · margins 0 (at most "
            f"{proof['largest_difference']:.1e} nats) · base {record['base_sha256'][:8]}{adapter}",
            note="ok",
        )

    def show(self, found: Verdict, run: Run, view: View) -> None:
        """A few answers."""
        answers.show(read(run.path).answers, view)

    def next(self, folder: Path) -> str:
        """Talk to it."""
        return f"lite-align chat {folder}"


class DPOProcedure(PreferenceProcedure[Pair]):
    """Preference training on pairs."""

    def kind(self, recipe: DPORecipe) -> rows.Kind[Pair]:
        """Pairs."""
        return PAIRS

    def settle(
        self, resolved: Resolved[DPORecipe], examples: Sequence[tuple[Pair, Tree]]
    ) -> Resolved[DPORecipe]:
        """Fill the beta of a loss without a reference: it has a meaning of its own and no default by size."""
        objective = catalogue.find(resolved.recipe.loss.name)
        if objective.needs_reference:
            return resolved
        default = objective.defaults["beta"]
        return resolve_auto(resolved, "loss.beta", default, f"the default of {objective.name}")

    def build(
        self, backbone: Backbone, prepared: Prepared[Pair], run: Run, budget: TokenBudget, view: View
    ) -> DPO:
        """Compute the reference log-probs and make the stage."""
        train, held_out = pair_sets(backbone, prepared, budget, view)
        return DPO(backbone, prepared.recipe, train, held_out, budget=budget)

    def measure(self, stage: DPO, prepared: Prepared[Pair], run: Run, view: View) -> None:
        """Held-out pairs and answers, before and after."""
        run.write_rows("held_out.jsonl", held_out_rows(stage))
        told = answers.before_and_after(
            stage.backbone, prepared.renderer, stage.held_out.pairs, prepared.kind.prompt, stage.budget, view
        )
        run.write_rows("answers.jsonl", told)


def reference_logps(
    backbone: Backbone,
    prepared: Prepared[RowT],
    trees: Sequence[Tree],
    budget: TokenBudget,
    view: View,
    *,
    what: str,
) -> list[tuple[float, ...]]:
    """Reference log-probs of trees, from the cache or computed now, eight of them checked; `what` names the trees."""
    if not trees:
        return []
    cache = reference.ReferenceCache(cache_root() / "reference", backbone.reference_identity())
    values, hits = reference.fill(backbone, trees, cache, budget=budget, view=view)
    worst = reference.verify(backbone, trees, values, seed=prepared.recipe.train.seed, budget=budget)
    whose = f"the adapter of {prepared.parent.name}, frozen" if prepared.parent else "the base, adapters off"
    view.section(
        "reference",
        f"{whose} · {hits:,} of {len(trees):,} {what} from the cache · "
        f"{min(reference.CHECKED_ROWS, len(trees))} checked, at most {worst:.1e} nats apart",
    )
    return values


def pair_sets(
    backbone: Backbone, prepared: Prepared[Pair], budget: TokenBudget, view: View
) -> tuple[PairSet, PairSet]:
    """Both pair sets with their reference log-probs, from the cache or computed now, eight of them checked.

    Held-out pairs are measured against the reference by every loss, trained ones by those that need one.
    """
    recipe = prepared.recipe
    needs = catalogue.find(recipe.loss.name).needs_reference
    share = recipe.speed.share_prompts
    pairs, trees = columns(prepared.train, share_prompts=share)
    held_pairs, held_trees = columns(prepared.held_out, share_prompts=share)
    measured = [*trees, *held_trees] if needs else held_trees
    values = reference_logps(backbone, prepared, measured, budget, view, what="pairs")
    train_values = values[: len(trees)] if needs else None
    held_out_values = values[len(trees) :] if needs else values
    return PairSet.of(pairs, trees, train_values), PairSet.of(held_pairs, held_trees, held_out_values)


def columns(examples: Sequence[tuple[Pair, Tree]], *, share_prompts: bool) -> tuple[list[Pair], list[Tree]]:
    """Pairs and trees apart, the trees as they are computed."""
    pairs, trees = [pair for pair, _ in examples], [tree for _, tree in examples]
    return pairs, passes.laid_out(trees, share_prompts=share_prompts)


def held_out_rows(stage: DPO) -> list[dict[str, Any]]:
    """One row a held-out pair: log-probs and margin under reference (before) and policy (after)."""
    reference_logps = stage.held_out.reference
    assert reference_logps is not None
    after = stage.held_out_logps()
    found = []
    for pair, tree, before, now in zip(
        stage.held_out.pairs, stage.held_out.trees, reference_logps.tolist(), after, strict=True
    ):
        tokens = [sum(leaf.trained) + sum(tree.root_trained) for leaf in tree.leaves]
        sides = {
            name: {
                "chosen_logp": values[0],
                "rejected_logp": values[1],
                "margin": stage.margin(values, before, tokens),
            }
            for name, values in (("before", before), ("after", now))
        }
        found.append(
            {
                "source": str(pair.source),
                "category": pair.category,
                "chosen_tokens": tokens[0],
                "rejected_tokens": tokens[1],
                **sides,
            }
        )
    return found
