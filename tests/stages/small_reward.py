"""Small compared answers and reward models, for the tests of the stage and of what surrounds it."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from lite_align.data import forest
from lite_align.data.comparisons import Scored, judged, up_to_score
from lite_align.data.render import PairTokens, Renderer
from lite_align.data.types import Message, Pair, Source
from lite_align.model.backbone import Backbone, Role
from lite_align.model.load import load_model
from lite_align.recipe import LoraOptions, ModelOptions, RewardLossOptions, RewardRecipe
from lite_align.stages.reward import RewardModel
from lite_align.train.engine import Engine
from tests.stages import small


def compared(prompts: int, answers: int, seed: int = 0) -> list[Pair]:
    """All pairs of so many answers to each of so many prompts; margins and weights differ."""
    source = random.Random(seed)
    found: list[Pair] = []
    for n in range(prompts):
        prompt = (Message("user", f"{' '.join(source.choices(small.WORDS, k=source.randint(2, 12)))} {n}?"),)
        texts = [
            f"{' '.join(source.choices(small.WORDS, k=source.randint(1, 9)))} {k}." for k in range(answers)
        ]
        turns = [(Message("assistant", text),) for text in texts]
        found += [
            Pair(
                Source("rows.jsonl", len(found) + i),
                ("even", "odd")[n % 2],
                prompt=prompt,
                chosen=turns[better],
                rejected=turns[worse],
                margin=float(worse - better),
                weight=source.choice((0.5, 1.0, 2.0)),
            )
            for i, (better, worse) in enumerate(
                ((a, b) for a in range(answers) for b in range(a + 1, answers)), 1
            )
        ]
    return found


def scored(pairs: Sequence[Pair], tokenizer: Any, suffix: str | None = None) -> list[Scored]:
    """Pairs as sequences that end where their scores are read."""
    renderer = Renderer(tokenizer)
    turned = [
        replace(pair, chosen=judged(pair.chosen, suffix), rejected=judged(pair.rejected, suffix))
        for pair in pairs
    ]
    found: list[Scored] = []
    for pair, tokens in zip(pairs, renderer.pairs(turned, 512), strict=True):
        assert isinstance(tokens, PairTokens)
        sides = [up_to_score(side, judged=suffix is not None) for side in (tokens.chosen, tokens.rejected)]
        found.append(Scored.of(pair, forest.grow(0, sides)))
    return found


def backbone(
    folder: Path, *, quantization: str = "none", lora: LoraOptions = small.SHAPE, seed: int = 42
) -> Backbone:
    """A base in fp32 with a fresh REWARD adapter and head."""
    options = ModelOptions.model_validate(
        {"name": str(folder), "quantization": quantization, "dtype": "float32"}
    )
    return Backbone(load_model(options, device="cpu"), lora, seed=seed, role=Role.REWARD)


def recipe(loss: dict[str, Any] | None = None, **train: Any) -> RewardRecipe:
    """A recipe without "auto": 8 pairs a step, a constant learning rate of 1e-3."""
    return RewardRecipe(
        lora=small.SHAPE,
        loss=RewardLossOptions.model_validate(loss or {}),
        train=small.train_options(**train),
    )


def engine(stage: RewardModel, total_steps: int = 100) -> Engine[Any]:
    """An engine over the REWARD adapter and head of a stage."""
    named = stage.backbone.parameters(Role.REWARD)
    return Engine(Accelerator(cpu=True), named, stage.recipe.train, total_steps)
