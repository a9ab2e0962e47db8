"""lite-align's side of PPO, through the same parts that `lite-align ppo` uses."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks import lite, machine
from benchmarks.sides import Side, Work, parts
from benchmarks.stopwatch import Stopwatch
from benchmarks.workload import NEW_TOKENS, PASSES, PPO_RATE, ROLLOUTS
from lite_align.data.render import Renderer
from lite_align.model.backbone import Backbone, Role
from lite_align.recipe import PPORecipe
from lite_align.stages import rows
from lite_align.stages.held_out import HeldOut
from lite_align.stages.ppo import PPO
from lite_align.stages.rollouts import Asked, Collector, ModelReward
from lite_align.stages.train_ppo import PPOProcedure
from lite_align.train.engine import Engine
from lite_align.train.faults import TokenBudget

OWN = {
    "ppo.rollouts": ROLLOUTS,
    "ppo.samples": 1,
    "ppo.passes": PASSES,
    "ppo.max_new_tokens": NEW_TOKENS,
    "ppo.value": "reward",
    "ppo.kl_in": "reward",
    "ppo.kl_horizon": 25 * ROLLOUTS,
    "ppo.value_learning_rate": PPO_RATE,
    "train.learning_rate": PPO_RATE,
}
"""Settings of both sides."""
NO_EARLY_END = "ppo.update_kl=null"
"""No step is skipped, however far the policy moves."""


def side(precision: str, sets: Sequence[str] = ()) -> Side:
    """Our side in a precision, with `key=value` settings of the recipe."""
    return Side("benchmarks.lite_ppo", {"precision": precision, "sets": list(sets)})


def resolve(work: Work, precision: str, sets: Sequence[str], own: dict[str, Any] = OWN) -> PPORecipe:
    """The recipe of the work, with nothing left to decide."""
    return lite.resolve_stage("ppo", work, precision, [NO_EARLY_END, *sets], own)


def prepare(work: Work, recipe: PPORecipe) -> tuple[PPO, Engine[Any]]:
    """The stage with a fresh policy, the base as its reference and a random reward model, and its engine."""
    kind = PPOProcedure().kind(recipe)
    read = rows.read(kind, recipe.data, recipe.data.path)
    backbone = lite.load_backbone(recipe)
    backbone.add(Role.REWARD, recipe.lora)
    randomize(backbone, Role.REWARD)
    renderer = Renderer(backbone.loaded.tokenizer)
    rendered = rows.render(kind, read.rows, renderer, recipe.data)
    asked = [Asked(row, tree.root, {}) for row, tree in rendered.examples]
    assert len(asked) == work.examples, "both sides must answer the same prompts"
    tokens = recipe.train.tokens_per_microbatch
    assert tokens != "auto"
    budget = TokenBudget(tokens)
    collector = Unended(
        backbone,
        renderer,
        recipe.ppo,
        model_reward=ModelReward(0.0, 1.0, 1.0, recipe.ppo.reward_clip, (), renderer.turn_end),
        text_rewards=[],
        budget=budget,
        share_prompts=recipe.speed.share_prompts,
    )
    stage = PPO(backbone, recipe, asked, collector, HeldOut([], [], None, 0), budget=budget)
    # The order of the file, so that both sides have the same prompts in the same round.
    together = stage.prompts_per_round
    stage.asked = lambda number: asked[number * together : (number + 1) * together]
    total = stage.steps_per_round * (len(asked) // together)
    engine = Engine(
        lite.Accelerator(cpu=True),
        backbone.parameters(Role.POLICY),
        recipe.train,
        total,
        fused=recipe.speed.fused_optimizer,
        others=stage.groups(),
    )
    return stage, engine


class Unended(Collector):
    """Scores answers as if they had ended: random weights never stop, and equal rewards would teach nothing."""

    def _scores(
        self,
        sources: Mapping[str, Sequence[float | None]],
        weights: Mapping[str, float],
        stopped: Sequence[bool],
    ) -> tuple[float | None, ...]:
        return super()._scores(sources, weights, [True] * len(stopped))


@torch.no_grad()
def randomize(backbone: Backbone, role: Role, seed: int = 1) -> None:
    """Give a role an adapter that is not zero."""
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in backbone.parameters(role):
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)


def measure(work: Work, settings: dict[str, Any]) -> dict[str, float]:
    """Rounds over all prompts, with the figures that a run logs: CPU seconds an episode by part, and memory."""
    held = machine.resident_bytes()
    machine.reset_peak()
    stage, engine = prepare(work, resolve(work, settings["precision"], settings["sets"]))
    generating, beginning = Stopwatch(), Stopwatch()
    stage.collector.sample = generating.timed(stage.collector.sample)
    stage.begin_round = beginning.timed(stage.begin_round)
    rounds, tokens = [], 0.0
    for number in range(work.examples // ROLLOUTS):
        started = time.process_time()
        run_round(stage, engine, number)
        logged = {**engine.logged(), **stage.measured()}
        generate, begin, whole = generating.take(), beginning.take(), time.process_time() - started
        rounds.append([generate, begin - generate, whole - begin])
        tokens += ROLLOUTS * logged["objective/length"]
    return {
        **parts(rounds, ROLLOUTS),
        "tokens_per_example": tokens / work.examples,
        "memory": machine.peak_bytes() - held,
        "parameters": stage.backbone.loaded.parameters,
    }


def run_round(stage: PPO, engine: Engine[Any], number: int) -> None:
    """All steps of a round; its first window collects and scores."""
    first = number * stage.steps_per_round
    for step in range(first, first + stage.steps_per_round):
        window = stage.window(step)
        assert window.batches, "both sides must make every step"
        engine.update(window, stage.loss)
