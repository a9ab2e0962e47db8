"""lite-align's side of the comparison, through the same parts that `lite-align dpo` uses."""

import argparse
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from benchmarks.dpo import ALPHA, BATCH, BETA, RANK, RATE
from lite_align.data.render import Renderer
from lite_align.model import load
from lite_align.model.backbone import Backbone, Role
from lite_align.model.folder import cache_root
from lite_align.recipe import DPORecipe
from lite_align.recipe import load as load_recipe
from lite_align.stages import pairs as rows
from lite_align.stages import reference, session
from lite_align.stages.dpo import DPO, PairSet
from lite_align.train.engine import Engine
from lite_align.train.faults import TokenBudget
from lite_align.view import View


@dataclass(frozen=True)
class Session:
    """Rendered pairs and a loaded model; `prepare` is where the clock starts."""

    recipe: DPORecipe
    backbone: Backbone
    rendered: rows.RenderedPairs

    def prepare(self) -> tuple[DPO, Engine[Any]]:
        """Run the reference pass and make stage and engine."""
        cache = reference.ReferenceCache(cache_root() / "reference", self.backbone.reference_identity())
        budget = self.recipe.train.tokens_per_microbatch
        assert budget != "auto"
        trees = self.rendered.trees
        view = View(quiet=True)
        values, hits = reference.fill(self.backbone, trees, cache, budget=TokenBudget(budget), view=view)
        assert not hits, "the reference pass must be part of the measurement"
        train = PairSet.of(self.rendered.pairs, trees, values)
        stage = DPO(self.backbone, self.recipe, train, PairSet.of([], [], []))
        named = self.backbone.parameters(Role.POLICY)
        total = session.total_steps(self.recipe, len(trees))
        return stage, Engine(Accelerator(cpu=True), named, self.recipe.train, total)


def build(args: argparse.Namespace) -> Session:
    """Load the model and render the rows."""
    settings = {
        "model.name": args.model,
        "model.quantization": args.quantization,
        "model.dtype": args.dtype,
        "model.gradient_checkpointing": "off",
        "data.path": args.rows,
        "data.max_length": 1024,
        "lora.rank": RANK,
        "lora.alpha": ALPHA,
        "loss.beta": BETA,
        "loss.sft_weight": 0,
        "train.learning_rate": RATE,
        "train.epochs": args.epochs,
        "train.batch_size": BATCH,
        "train.tokens_per_microbatch": args.budget,
        "train.schedule": "constant",
        "train.warmup": 0,
    }
    recipe = load_recipe("dpo", flags=settings).recipe
    read = rows.read_pairs(recipe.data, recipe.data.path)
    loaded = load.load_model(recipe.model, device="cpu")
    rendered = rows.render(read.pairs, Renderer(loaded.tokenizer), recipe.data)
    assert len(rendered.trees) == args.pairs, "both sides must train on the same pairs"
    return Session(recipe, Backbone(loaded, recipe.lora, seed=recipe.train.seed), rendered)
