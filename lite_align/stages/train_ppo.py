"""`lite-align ppo PROMPTS`: what PPO does of its own, from the reward model to the guards and the verdict's rows."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lite_align.data.types import Leaf, Prompt, Tree
from lite_align.errors import RecipeError, UserError
from lite_align.evaluate import reward as reward_judge
from lite_align.evaluate import scores
from lite_align.evaluate.findings import Verdict
from lite_align.evaluate.folder import read
from lite_align.evaluate.gains import preference_record
from lite_align.model.backbone import Backbone, Role
from lite_align.model.folder import TINY
from lite_align.recipe import PPOOptions, PPORecipe, Resolved, resolve_auto
from lite_align.stages import answers, passes, rewards, rows
from lite_align.stages.guards import Tripped
from lite_align.stages.held_out import SAMPLES as SAMPLED
from lite_align.stages.held_out import HeldOut, asks_of
from lite_align.stages.judge_pairs import held_out_pairs
from lite_align.stages.ppo import PPO, minibatches
from lite_align.stages.procedure import Prepared, Procedure
from lite_align.stages.prompts import prompts
from lite_align.stages.reward_function import located
from lite_align.stages.reward_model import RewardSource, reward_of
from lite_align.stages.rollouts import Asked, Collector
from lite_align.train.faults import TokenBudget
from lite_align.train.finished import attach
from lite_align.train.run import Run
from lite_align.view import View

ROUNDS = 24
"""Rounds of a run whose length the recipe leaves open: enough to see where the reward and quality part."""
SAMPLES = 4
"""Answers to each prompt where advantages compare them (arXiv 2402.14740 uses 2 to 4)."""
HORIZON = 25
"""Rounds in which the weight of the KL adapts."""


class PPOProcedure(Procedure[Prompt]):
    """Reinforcement learning on prompts."""

    stage = "ppo"
    has_reference = True

    def kind(self, recipe: PPORecipe) -> rows.Kind[Prompt]:
        """Prompts that leave room for the longest answer."""
        return prompts(recipe.ppo.max_new_tokens)

    def check(self, recipe: PPORecipe) -> None:
        """Check that there is a reward, and that minibatches and rounds hold whole prompts."""
        options = recipe.ppo
        rewards.require_reward(options)
        samples = samples_of(options)
        for name, size in (("ppo.rollouts", options.rollouts), ("train.batch_size", recipe.train.batch_size)):
            if size % samples:
                raise RecipeError(
                    f"{name} {size} is no multiple of ppo.samples {samples}: the answers to a prompt stay together",
                    remedy=f"Set {name}={samples * max(1, round(size / samples))}.",
                )
        for source in rewards.text_rewards(options):
            source.close()

    def inputs(self, recipe: PPORecipe, folder: Path | None) -> dict[str, str]:
        """Check the reward model and the file of the reward function; their hashes."""
        found: dict[str, str] = {}
        source = reward_of(recipe.ppo, folder)
        if source is not None:
            require_sound(source, recipe.ppo)
            found["reward"] = source.sha256
        if recipe.ppo.reward_fn is not None:
            path, _ = located(recipe.ppo.reward_fn)
            found["reward_fn"] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found

    def fit_base(self, prepared: Prepared[Prompt], folder: Path | None) -> None:
        """Refuse a reward model of another base."""
        source = reward_of(prepared.recipe.ppo, folder)
        if source is not None:
            source.require_base(prepared.recipe.model, prepared.hashes["base"])

    def settle(
        self, resolved: Resolved[PPORecipe], examples: Sequence[tuple[Prompt, Tree]]
    ) -> Resolved[PPORecipe]:
        """Fill what depends on the kind of advantages, the reward and the number of prompts."""
        options = resolved.recipe.ppo
        samples = samples_of(options)
        why = f"advantages are {options.advantage}"
        resolved = resolve_auto(resolved, "ppo.samples", samples, why)
        horizon = HORIZON * options.rollouts
        resolved = resolve_auto(resolved, "ppo.kl_horizon", horizon, f"{HORIZON} rounds")
        kind = "policy" if options.reward is None else "reward"
        reason = "there is no reward model" if options.reward is None else "its states are computed anyway"
        resolved = resolve_auto(resolved, "ppo.value", kind, reason)
        epochs = round(ROUNDS * options.rollouts / samples / max(1, len(examples)), 2)
        return resolve_auto(resolved, "train.epochs", epochs, f"{ROUNDS} rounds")

    def steps(self, recipe: PPORecipe, examples: int) -> int:
        """Optimiser steps of whole rounds."""
        together = recipe.ppo.passes * minibatches(recipe)
        if recipe.train.max_steps is not None:
            return together * max(1, recipe.train.max_steps // together)
        assert recipe.train.epochs != "auto"
        rounds = recipe.train.epochs * examples * samples_of(recipe.ppo) / recipe.ppo.rollouts
        return together * max(1, round(rounds))

    def count(self, recipe: PPORecipe, examples: int) -> int:
        """Answers in one epoch."""
        return examples * samples_of(recipe.ppo)

    def forward_passes(self, recipe: PPORecipe) -> float:
        """Sampling, and scoring under policy, reference and reward model, once for all passes over an answer."""
        return (3 + (recipe.ppo.reward is not None)) / recipe.ppo.passes

    def trees(self, recipe: PPORecipe, examples: Sequence[tuple[Prompt, Tree]]) -> list[Tree]:
        """The prompts with answers of the greatest length, for the plan."""
        answer = Leaf((0,) * recipe.ppo.max_new_tokens, (True,) * recipe.ppo.max_new_tokens)
        leaves = (answer,) * samples_of(recipe.ppo)
        trees = [Tree(tree.key, tree.root, tree.root_trained, leaves) for _, tree in examples]
        return passes.laid_out(trees, share_prompts=recipe.speed.share_prompts)

    def plan(self, prepared: Prepared[Prompt]) -> str:
        """Rewards, advantages and the weight of the KL."""
        options = prepared.recipe.ppo
        sources = [name for name in (options.reward, options.reward_fn, *options.rules) if name is not None]
        adaptive = f" towards {options.target_kl:g} nats" if options.target_kl is not None else ""
        return (
            f"reward: {', '.join(sources)} · {options.advantage}, {options.samples} to a prompt, "
            f"{options.rollouts} a round, {options.passes} passes · KL {options.kl:g}{adaptive}"
        )

    def build(
        self, backbone: Backbone, prepared: Prepared[Prompt], run: Run, budget: TokenBudget, view: View
    ) -> PPO:
        """Attach the reward model, start the reward function, and make the stage."""
        recipe: PPORecipe = prepared.recipe
        source = reward_of(recipe.ppo, run.path)
        model_reward = None
        if source is not None:
            source = source.keep(run)
            attach(backbone, Role.REWARD, source.adapter)
            model_reward = source.model_reward(recipe.ppo, prepared.renderer, view)
        collector = Collector(
            backbone,
            prepared.renderer,
            recipe.ppo,
            model_reward=model_reward,
            text_rewards=rewards.text_rewards(recipe.ppo),
            budget=budget,
            share_prompts=recipe.speed.share_prompts,
        )
        columns = {str(place): row for place, row in prepared.read.table.rows}

        def asked(examples: Sequence[tuple[Prompt, Tree]]) -> list[Asked]:
            return [Asked(row, tree.root, columns.get(str(row.source), {})) for row, tree in examples]

        held_out = asked(prepared.held_out)
        asks = asks_of([one.row for one in held_out]) if scores_by_rule(recipe) else None
        if recipe.ppo.rule_score == "on" and asks is None:
            raise UserError(
                "ppo.rule_score is on, and a held-out prompt is not from the built-in world.",
                remedy="Leave ppo.rule_score out.",
            )
        pairs = held_out_pairs(recipe, source, prepared.renderer, view)

        def tell(tripped: Tripped) -> None:
            run.event("guard", tripped.text, asdict(tripped))
            view.warn(f"guard {tripped.guard}, {tripped.action.replace('_', ' ')}: {tripped.text}")

        return PPO(
            backbone,
            recipe,
            asked(prepared.train),
            collector,
            HeldOut(held_out, pairs, asks, recipe.train.seed),
            tell=tell,
            budget=budget,
        )

    def prove(self, stage: PPO, run: Run, view: View) -> None:
        """Measure the start, and show that the first answers come from the reference: KL 0."""
        with view.bar("start", SAMPLED * len(stage.held_out.asked), "answers") as bar:
            start = stage.begin(bar.advance)
        if start:
            run.log_metrics(
                {"step": 0, "epoch": 0.0, **{f"eval/{name}": value for name, value in start.items()}}
            )
        stage.window(0)
        apart = stage.start_difference
        record = run.record["reference"]
        assert isinstance(record, dict)
        run.update("reference", {**record, "proof": {"kl": apart}})
        view.section("proof", f"KL to the reference 0 (log-probs at most {apart:.1e} nats apart)", note="ok")
        if stage.guards is not None and stage.guards.blind:
            view.section("guards", "cannot see in this run:", *stage.guards.blind)

    def measure(self, stage: PPO, prepared: Prepared[Prompt], run: Run, view: View) -> None:
        """Held-out prompts before and after, samples over time, answers, and what the guards did."""
        preference = None
        if stage.held_out.asked:
            now = stage.held_out.measure(stage.collector, stage.rounds * stage.steps_per_round)
            if stage.start_preference:
                preference = preference_record(stage.start_preference, now.by_prompt["preference"])
            after = stage.held_out.rows()
            found = [
                {"source": str(one.row.source), "category": one.row.category, "before": before, "after": late}
                for one, before, late in zip(stage.held_out.asked, stage.start_rows, after, strict=True)
            ]
            run.write_rows("held_out.jsonl", found)
        for source in stage.collector.text_rewards:
            source.close()
        run.write_rows("samples.jsonl", stage.samples_over_time)
        told = answers.before_and_after(
            stage.backbone,
            prepared.renderer,
            [row for row, _ in prepared.held_out],
            prepared.kind.prompt,
            stage.budget,
            view,
        )
        run.write_rows("answers.jsonl", told)
        run.update(
            "ppo",
            {
                "guards": [asdict(one) for one in stage.tripped],
                "blind": [] if stage.guards is None else stage.guards.blind,
                "rolled_back_to": stage.rolled_back_to,
                "ended": stage.ended,
                "rounds": stage.rounds,
                "preference": preference,
            },
        )

    def show(self, found: Verdict, run: Run, view: View) -> None:
        """A few answers."""
        answers.show(read(run.path).answers, view)

    def next(self, folder: Path) -> str:
        """Talk to it."""
        return f"lite-align chat {folder}"


def samples_of(options: PPOOptions) -> int:
    """Answers to each prompt."""
    if options.samples != "auto":
        return options.samples
    return 1 if options.advantage == "gae" else SAMPLES


def scores_by_rule(recipe: PPORecipe) -> bool:
    """Whether held-out answers are scored by the rule of the built-in world."""
    wish = recipe.ppo.rule_score
    return wish == "on" or (wish == "auto" and recipe.model.name == TINY)


def require_sound(source: RewardSource, options: PPOOptions) -> None:
    """Refuse a reward model whose mistakes a policy would learn.

    Raises:
        UserError: its held-out accuracy is too low, or its scores go with length, and `ppo.force` is off.
    """
    measured = scores.measured(source.held_out)
    if options.force or source.kept:
        return
    problems: list[str] = []
    if not measured:
        problems.append("no held-out pair was scored, so nobody knows what its scores are worth")
    else:
        found = scores.measure(measured)
        if found.accuracy.value < reward_judge.LEAST_ACCURACY:
            problems.append(
                f"it ranks {100 * found.accuracy.value:.0f} % of held-out pairs right, below "
                f"{100 * reward_judge.LEAST_ACCURACY:.0f} %"
            )
        if found.length is not None and abs(found.length.pearson) > reward_judge.MOST_CORRELATION:
            problems.append(
                f"its scores go with length (correlation {found.length.pearson:+.2f}, at most "
                f"±{reward_judge.MOST_CORRELATION} is allowed)"
            )
    if problems:
        raise UserError(
            f"The reward model {source.name} is too weak to optimise for.",
            details=problems,
            remedy=f"Train it on more or better pairs (lite-align report {source.name}), or give --force.",
        )
