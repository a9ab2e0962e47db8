"""lite-align's side: the parts that `lite-align dpo` uses, on the kit's weights and rows.

This is the one file of the kit that knows how lite-align trains; `limit` takes its formulas.
"""

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from benchmarks.gpu import device, models
from benchmarks.gpu.job import ALPHA, BETA, RANK, RATE, Job, Pair
from lite_align.data import forest
from lite_align.data.types import Message, Rendered, Source, Tree
from lite_align.data.types import Pair as Row
from lite_align.model import attention, load
from lite_align.model.backbone import Backbone, Role
from lite_align.model.folder import cache_root
from lite_align.model.storage import HostEmbedding, unnest_scales
from lite_align.recipe import DPORecipe, ModelOptions, Resolved
from lite_align.recipe import load as load_recipe
from lite_align.stages import passes, reference, resources
from lite_align.stages.dpo import DPO, PairSet
from lite_align.train.engine import Engine
from lite_align.train.faults import TokenBudget
from lite_align.train.meter import meter
from lite_align.view import View


def tokenizer() -> Any:
    """A tokenizer for those that ask for one; the rows are token ids already."""
    return load.load_tokenizer(ModelOptions(name="tiny"))


def trees(pairs: Sequence[Pair]) -> list[Tree]:
    """Pairs as trees with the prompt as their root."""

    def rendered(prompt: list[int], answer: list[int]) -> Rendered:
        return Rendered((*prompt, *answer), (False,) * len(prompt) + (True,) * len(answer))

    return [
        forest.grow(key, (rendered(p.prompt, p.chosen), rendered(p.prompt, p.rejected)))
        for key, p in enumerate(pairs)
    ]


def rows(count: int) -> list[Row]:
    """Rows that the stage asks for weights and names; their text is never read."""
    nothing = (Message("user", ""),)
    return [
        Row(Source("made from a seed", n + 1), prompt=nothing, chosen=nothing, rejected=nothing)
        for n in range(count)
    ]


def settle(job: Job, grown: Sequence[Tree], on: torch.device) -> DPORecipe:
    """The recipe of a job with the settings that depend on memory filled in as a run fills them."""
    gpu = on.type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        config = models.configuration(job.model, small=job.small, layers=job.layers)
        config.architectures = [type(load.skeleton(config)).__name__]
        config.save_pretrained(folder)
        settings = {
            "model.name": job.folder or folder,
            "model.quantization": "nf4",
            "model.dtype": "bfloat16",
            "lora.rank": RANK,
            "lora.alpha": ALPHA,
            "loss.beta": BETA,
            "loss.sft_weight": 0,
            "train.learning_rate": RATE,
            "train.epochs": 1,
            "train.batch_size": job.batch,
            "train.schedule": "constant",
            "train.warmup": 0,
            "speed.compile": "on" if gpu else "off",
            **job.recipe,
        }
        chosen = {setting.partition("=")[0] for setting in job.settings}  # a key may be given once
        flags = {key: value for key, value in settings.items() if key not in chosen}
        resolved: Resolved[DPORecipe] = load_recipe("dpo", flags=flags, sets=job.settings)
        machine = resources.Machine.of(resolved.recipe.model, meter(on), on)
        works = [resources.work_of(tree) for tree in grown]
        amount = resources.Amount(
            works, [], len(works), job.batch, job.warmup + job.steps, 0, has_reference=True
        )
        return resources.settle(resolved, amount, machine)[0].recipe


def base(job: Job, recipe: DPORecipe, on: torch.device) -> load.Loaded:
    """The frozen base: the checkpoint of a job, or random weights made on the device."""
    if job.folder:
        return load.load_model(recipe.model, device=on, speed=recipe.speed)
    attention.register()
    config = models.configuration(job.model, small=job.small, layers=job.layers)
    model = models.random_nf4(config, on, attention.NAME)
    if recipe.speed.unnest_scales == "on":
        unnest_scales(model)
    embedding = HostEmbedding(model) if recipe.speed.offload_embeddings == "on" else None
    identity = {"base": f"{job.model}, random"}
    return load.Loaded(
        model,
        tokenizer(),
        job.model,
        Path(),
        load.count_parameters(config),
        "nf4",
        torch.bfloat16,
        identity,
        embedding=embedding,
    )


@dataclass
class Session:
    """A backbone with its recipe, before the reference pass."""

    recipe: DPORecipe
    backbone: Backbone

    @classmethod
    def of(cls, job: Job, grown: Sequence[Tree]) -> "Session":
        """Load the base and attach the adapter, laid out for some trees."""
        on = device.the_device()
        if on.type == "cpu":
            torch.set_flush_denormal(True)
        recipe = settle(job, grown, on)
        backbone = Backbone(base(job, recipe, on), recipe.lora, seed=recipe.train.seed, speed=recipe.speed)
        wish = recipe.model.gradient_checkpointing
        backbone.recompute(wish if isinstance(wish, int) else len(backbone.blocks) * (wish == "on"))
        return cls(recipe, backbone)

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch."""
        tokens = self.recipe.train.tokens_per_microbatch
        assert tokens != "auto"
        return tokens

    def stage(self, grown: Sequence[Tree]) -> DPO:
        """Run the reference pass over some trees and make their stage."""
        cache = reference.ReferenceCache(cache_root() / "reference", self.backbone.reference_identity())
        laid_out = passes.laid_out(grown, share_prompts=self.recipe.speed.share_prompts)
        budget = TokenBudget(self.tokens)
        values, hits = reference.fill(self.backbone, laid_out, cache, budget=budget, view=View(quiet=True))
        assert not hits, "the reference pass must be part of the measurement"
        train = PairSet.of(rows(len(laid_out)), laid_out, values)
        return DPO(self.backbone, self.recipe, train, PairSet.of([], [], []), budget=budget)

    def engine(self, total: int) -> Engine[Any]:
        """The optimiser over the adapter."""
        named = self.backbone.parameters(Role.POLICY)
        accelerator = Accelerator(cpu=self.backbone.device.type == "cpu")
        return Engine(accelerator, named, self.recipe.train, total, fused=self.recipe.speed.fused_optimizer)


def train(stage: DPO, engine: Engine[Any], steps: int) -> tuple[list[float], float]:
    """Seconds of every step, packing and logged metrics included, and the last loss."""
    taken, loss = [], math.nan
    device.synchronize()
    for step in range(steps):
        started = time.perf_counter()
        engine.update(stage.window(step), stage.loss)
        loss = engine.logged()["loss"]
        device.synchronize()
        taken.append(time.perf_counter() - started)
    return taken, loss


def measure(job: Job) -> dict[str, Any]:
    """Reference pass and steps over the measured rows, after those of the warm-up."""
    warm, measured = map(trees, job.rows())
    session = Session.of(job, warm + measured)
    device.reset_peak()
    engine = session.engine(job.warmup + job.steps)
    first = session.stage(warm)
    device.synchronize()
    started = time.perf_counter()
    stage = session.stage(measured)
    device.synchronize()
    reference_seconds = time.perf_counter() - started
    warm_seconds, _ = train(first, engine, job.warmup)
    steps, loss = train(stage, engine, job.steps)
    recipe = session.recipe
    return {
        "reference_seconds": reference_seconds,
        "steps": steps,
        "warmup_seconds": sum(warm_seconds),
        "pairs": len(measured),
        "tokens_per_pair": sum(tree.tokens for tree in measured) / len(measured),
        "loss": loss,
        "floor": models.floor(job),
        "settings": {
            "tokens a micro-batch": session.tokens,
            "recomputed blocks": session.backbone.blocks.recomputed,
            "compiled": recipe.speed.compile,
            "attention": session.backbone.kernel.kind,
        },
        "notes": session.backbone.notes,
        "versions": device.versions(),
        **device.peak(),
    }
