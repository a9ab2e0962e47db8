"""Small rollouts and PPO stages on a tiny model, for the tests of the stage and of its parts."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from lite_align.data.render import Renderer
from lite_align.data.types import Message, Prompt, Source, Tree
from lite_align.model.backbone import Backbone, Role
from lite_align.model.folder import fingerprint
from lite_align.model.sampler import Sampled
from lite_align.recipe import PPORecipe, RewardRecipe, to_dict
from lite_align.stages import rows
from lite_align.stages.episodes import Episode, Errors, NoReward
from lite_align.stages.held_out import HeldOut
from lite_align.stages.pairs import PAIRS
from lite_align.stages.ppo import PPO
from lite_align.stages.rollouts import Asked, Collector, ModelReward, Ragged, Rollout
from lite_align.train.engine import Engine
from lite_align.train.faults import TokenBudget
from tests import finished
from tests.stages import small, small_reward

SETTINGS: dict[str, Any] = {
    "advantage": "rloo",
    "rollouts": 16,
    "samples": 4,
    "max_new_tokens": 12,
    "value": "policy",
    "kl_horizon": 100,
    "passes": 2,
}
STOPPING = 0.75


def talkative(tiny: Path, folder: Path) -> Path:
    """A copy of a random Llama whose answers end: about one token in eight is a stop token, of either kind."""
    shutil.copytree(tiny, folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    embedding, head = (tensors[f"{name}.weight"] for name in ("model.embed_tokens", "lm_head"))
    embedding += embedding.std()  # a direction that all states have
    for stop in (2, 4):  # </s> and <|im_end|>
        head[stop] += STOPPING / head.shape[1] ** 0.5
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def backbone(folder: Path, *, reward: bool = True, reference: bool = True) -> Backbone:
    """POLICY and its REFERENCE, a twin that is not the base, and a REWARD that was drawn."""
    model = small.backbone(folder)
    if reference:
        finished.move(model, Role.POLICY, 0.05)
        model.fix_reference("adapter")
    if reward:
        model.add(Role.REWARD, small.SHAPE)
        finished.move(model, Role.REWARD, 0.1, seed=3)
    return model


def recipe(
    ppo: dict[str, Any] | None = None, guards: dict[str, Any] | None = None, **train: Any
) -> PPORecipe:
    """A recipe without "auto": RLOO, 4 prompts with 4 answers a round, two passes of two minibatches."""
    return PPORecipe.model_validate(
        {
            "lora": small.SHAPE,
            "ppo": {**SETTINGS, **(ppo or {})},
            "guards": guards or {},
            "train": small.train_options(**train).model_dump(),
        }
    )


def renderer(model: Backbone) -> Renderer:
    """Of its tokenizer; the template is known, so no child process tries it."""
    return Renderer(model.loaded.tokenizer, trusted=True)


def asked(model: Backbone, count: int, *, category: str | None = None) -> list[Asked]:
    """Prompts of different lengths, with a column of their own."""
    own = renderer(model)
    found = []
    for n, row in enumerate(small.rows(count)):
        turns = (Message("user", row["prompt"]),)
        prompt = Prompt(Source("prompts.jsonl", n + 1), category or row["category"], messages=turns)
        found.append(Asked(prompt, own.prompt_ids(turns), {"number": n}))
    return found


class Text:
    """A reward of text in this process: a function of the episode; NoReward where that raises it."""

    def __init__(self, value: Callable[[Episode], float], name: str = "text", weight: float = 1.0) -> None:
        self.name, self.weight, self.errors = name, weight, Errors(name)
        self._value = value
        self.seen: list[Episode] = []

    def __call__(self, episodes: Sequence[Episode]) -> list[float | None]:
        self.seen = list(episodes)
        return [self._one(episode) for episode in episodes]

    def _one(self, episode: Episode) -> float | None:
        try:
            return self._value(episode)
        except NoReward as error:
            self.errors.add(error)
            return None

    def close(self) -> None:
        pass


def letters(episode: Episode) -> float:
    """A reward that differs between answers and has an optimum that a policy can find."""
    return episode.answer.count("e") / 4 - len(episode.answer) / 40


def model_reward(model: Backbone, suffix: Sequence[int] = (), **changes: Any) -> ModelReward:
    """Scores of REWARD as they are."""
    stop = renderer(model).turn_end
    plain = ModelReward(mean=0.0, deviation=1.0, weight=1.0, clip=50.0, suffix=tuple(suffix), stop=stop)
    return replace(plain, **changes)


def collector(
    model: Backbone,
    the_recipe: PPORecipe,
    *,
    reward: ModelReward | None = None,
    texts: Sequence[Text] = (),
    budget: TokenBudget | None = None,
    share_prompts: bool = True,
) -> Collector:
    """A collector on a renderer of its own."""
    return Collector(
        model,
        renderer(model),
        the_recipe.ppo,
        model_reward=reward,
        text_rewards=texts,
        budget=budget or TokenBudget(512),
        share_prompts=share_prompts,
    )


def stage(
    model: Backbone,
    the_recipe: PPORecipe,
    *,
    prompts: int = 8,
    held_out: int = 0,
    texts: Sequence[Text] = (),
    reward: ModelReward | None = None,
    pairs: Sequence[Tree] = (),
    **more: Any,
) -> PPO:
    """A PPO stage whose last `held_out` prompts are held out."""
    both = asked(model, prompts + held_out)
    budget = TokenBudget(int(the_recipe.train.tokens_per_microbatch))
    sources = list(texts) or ([] if reward else [Text(letters)])
    own = collector(model, the_recipe, reward=reward, texts=sources, budget=budget)
    measured = HeldOut(both[prompts:], pairs, None, the_recipe.train.seed)
    return PPO(model, the_recipe, both[:prompts], own, measured, budget=budget, **more)


def engine(the_stage: PPO, total_steps: int = 100) -> Engine[Any]:
    """An engine over the POLICY adapter of a stage, and its value head."""
    named = the_stage.backbone.parameters(Role.POLICY)
    options = the_stage.recipe.train
    return Engine(Accelerator(cpu=True), named, options, total_steps, others=the_stage.groups())


def rollout(
    lengths: Sequence[int],
    scores: Sequence[float | None],
    *,
    samples: int = 1,
    logps: Tensor | None = None,
    reference_logps: Tensor | None = None,
    values: Tensor | None = None,
) -> Rollout:
    """A rollout that nobody sampled, of which only the numbers matter."""
    tokens = sum(lengths)
    zeros = torch.zeros(tokens)
    own = zeros - 1.0 if logps is None else logps
    row = Prompt(Source("prompts.jsonl", 1), messages=(Message("user", "Why?"),))
    return Rollout(
        asked=(Asked(row, (1, 2), {}),) * (len(lengths) // samples),
        samples=samples,
        answers=tuple(Sampled((7,) * length, (-1.0,) * length) for length in lengths),
        texts=tuple("a" for _ in lengths),
        stopped=(True,) * len(lengths),
        trees=(),
        ragged=Ragged(tuple(lengths)),
        logps=own,
        reference_logps=own if reference_logps is None else reference_logps,
        entropies=zeros + 0.5,
        values=values,
        states=None,
        sources={"text": list(scores)},
        scores=tuple(scores),
        errors=sum(score is None for score in scores),
    )


SOUND = ((1.0, 0.0, 6, 7), (0.5, 1.5, 7, 6), (2.0, 1.0, 7, 7), (3.0, 1.0, 6, 6))
"""Scores and lengths of chosen and rejected answers: three of four right, no correlation with length to speak of."""


def reward_run(
    folder: Path,
    base: Path,
    *,
    model: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    held_out: Sequence[tuple[float, float, int, int]] = SOUND,
    **record: Any,
) -> Path:
    """A run folder of stage reward, made without training: an adapter and a head that were drawn."""
    options = {"name": str(base), "quantization": "none", "dtype": "float32", **(model or {})}
    recipe = RewardRecipe.model_validate(
        {"model": options, "lora": small.SHAPE, "data": {"max_length": 512, **(data or {})}}
    )
    hashes = {"base": fingerprint(base)}
    if recipe.data.path:
        hashes["data"] = rows.read(PAIRS, recipe.data, recipe.data.path).table.sha256
    own = small_reward.backbone(base)
    finished.move(own, Role.REWARD, 0.1, seed=3)
    own.save_adapter(Role.REWARD, folder / "adapters" / "reward")
    facts = {
        "schema": 1,
        "stage": "reward",
        "status": "finished",
        "recipe": to_dict(recipe),
        "hashes": hashes,
        "reward": {"mean": 0.5, "std": 2.0, "judge_suffix": None},
    }
    (folder / "run.json").write_text(json.dumps(facts | record))
    names = ("chosen_reward", "rejected_reward", "chosen_tokens", "rejected_tokens")
    small.write(folder / "held_out.jsonl", [dict(zip(names, row, strict=True)) for row in held_out])
    return folder
