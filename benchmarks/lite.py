"""lite-align's side, through the same parts that `lite-align dpo` uses, with every setting of the recipe."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from benchmarks import counters, machine
from benchmarks.sides import Side, Step, Work, timing
from benchmarks.workload import ALPHA, BATCH, BETA, MAX_LENGTH, RANK, RATE
from lite_align.data.render import Renderer
from lite_align.data.types import Pair, Tree
from lite_align.model import load
from lite_align.model.backbone import Backbone, Role
from lite_align.model.folder import cache_root
from lite_align.model.planner import CPU_TOKENS
from lite_align.recipe import DPORecipe
from lite_align.recipe import load as load_recipe
from lite_align.stages import passes, reference, rows, session
from lite_align.stages.dpo import DPO, PairSet
from lite_align.stages.pairs import PAIRS
from lite_align.train.engine import Engine
from lite_align.train.faults import TokenBudget
from lite_align.view import View

PRECISIONS = {
    "bf16": {"model.quantization": "none", "model.dtype": "bfloat16"},
    "nf4": {"model.quantization": "nf4", "model.dtype": "bfloat16"},
    "fp32": {"model.quantization": "none", "model.dtype": "float32"},
}
"""Nothing is measured in fp32: tests of agreement take it."""


def side(precision: str, sets: Sequence[str] = ()) -> Side:
    """Our side in a precision, with `key=value` settings of the recipe."""
    return Side("benchmarks.lite", {"precision": precision, "sets": list(sets)})


@dataclass(frozen=True)
class Prepared:
    """A loaded model and rendered pairs; `start` is where the clock starts."""

    recipe: DPORecipe
    backbone: Backbone
    pairs: Sequence[Pair]
    trees: Sequence[Tree]

    def start(self) -> tuple[DPO, Engine[Any]]:
        """Run the reference pass and make stage and engine."""
        recipe, backbone = self.recipe, self.backbone
        tokens = recipe.train.tokens_per_microbatch
        assert tokens != "auto"
        budget = TokenBudget(tokens)
        cache = reference.ReferenceCache(cache_root() / "reference", backbone.reference_identity())
        values, hits = reference.fill(backbone, self.trees, cache, budget=budget, view=View(quiet=True))
        assert not hits, "the reference pass must be part of the measurement"
        train = PairSet.of(self.pairs, self.trees, values)
        stage = DPO(backbone, recipe, train, PairSet.of([], [], []), budget=budget)
        return stage, make_engine(stage, recipe, len(self.trees))


def resolve(work: Work, precision: str, sets: Sequence[str]) -> DPORecipe:
    """The recipe of the work, with nothing left to decide, changed by `key=value` settings."""
    return resolve_stage("dpo", work, precision, sets, {"loss.beta": BETA, "loss.sft_weight": 0})


def resolve_stage(stage: str, work: Work, precision: str, sets: Sequence[str], own: dict[str, Any]) -> Any:
    """The recipe of a stage with its own settings, those that all benchmarks have, and changes by `key=value`."""
    settings: dict[str, Any] = {
        **PRECISIONS[precision],
        "model.gradient_checkpointing": "off",
        "speed.compile": "off",
        "data.path": work.rows,
        "data.max_length": MAX_LENGTH,
        "lora.rank": RANK,
        "lora.alpha": ALPHA,
        "train.learning_rate": RATE,
        "train.epochs": work.epochs,
        "train.batch_size": BATCH,
        "train.tokens_per_microbatch": CPU_TOKENS,
        "train.schedule": "constant",
        "train.warmup": 0,
        **own,
    }
    changed = {text.partition("=")[0].strip() for text in sets}
    flags = {key: value for key, value in settings.items() if key not in changed}
    return load_recipe(stage, flags={"model.name": work.model, **flags}, sets=sets).recipe


def prepare(work: Work, precision: str, sets: Sequence[str]) -> Prepared:
    """Load the model and render the rows, as stages.prepare does."""
    recipe = resolve(work, precision, sets)
    read = rows.read(PAIRS, recipe.data, recipe.data.path)
    backbone = load_backbone(recipe)
    rendered = rows.render(PAIRS, read.rows, Renderer(backbone.loaded.tokenizer), recipe.data)
    assert len(rendered.trees) == work.examples, "both sides must train on the same pairs"
    trees = passes.laid_out(rendered.trees, share_prompts=recipe.speed.share_prompts)
    return Prepared(recipe, backbone, rendered.rows, trees)


def load_backbone(recipe: Any, role: Role = Role.POLICY) -> Backbone:
    """The model with a fresh adapter, as a run has it."""
    loaded = load.load_model(recipe.model, device="cpu", speed=recipe.speed)
    backbone = Backbone(loaded, recipe.lora, seed=recipe.train.seed, speed=recipe.speed, role=role)
    wish = recipe.model.gradient_checkpointing
    backbone.recompute(wish if isinstance(wish, int) else len(backbone.blocks) * (wish == "on"))
    return backbone


def make_engine(stage: Any, recipe: Any, examples: int, role: Role = Role.POLICY) -> Engine[Any]:
    """The engine of a run over so many examples."""
    named = stage.backbone.parameters(role)
    total = session.total_steps(recipe, examples)
    return Engine(Accelerator(cpu=True), named, recipe.train, total, fused=recipe.speed.fused_optimizer)


def run(stage: Any, engine: Engine[Any]) -> list[Step]:
    """All steps of a run, with the metrics that it logs."""
    steps = []
    for step in range(engine.total_steps):
        started = time.process_time()
        window = stage.window(step)
        engine.update(window, stage.loss)
        engine.logged()
        tokens = sum(batch.tokens for batch in window.batches)
        steps.append(Step(time.process_time() - started, tokens))
    return steps


def measure(work: Work, settings: dict[str, Any]) -> dict[str, float]:
    """One run: reference pass and steps, with the metrics that a run logs; then the counters, off the clock."""
    before = machine.resident_bytes()
    machine.reset_peak()
    prepared = prepare(work, settings["precision"], settings["sets"])
    started = time.process_time()
    stage, engine = prepared.start()
    reference_seconds = time.process_time() - started
    steps = run(stage, engine)
    peak = machine.peak_bytes() - before
    return {
        **timing(reference_seconds, steps, work),
        "memory": peak,
        "parameters": prepared.backbone.loaded.parameters,
        "prompt_share": prompt_share(prepared.trees),
        **counters.measure(stage, engine),
    }


def prompt_share(trees: Sequence[Tree]) -> float:
    """Which part of the tokens stands in prompts, each prompt counted once."""
    return sum(len(tree.root) for tree in trees) / sum(tree.tokens for tree in trees)
