"""PPO, RLOO and GRPO: where prompts, the roles of the one base and the clipped update meet.

`PPO` is the stage that `train.fit` drives. A round is four numbered moves: collect answers (1), score them (2), turn
scores into advantages (3), learn in several optimiser steps (4). The first three happen at the first window of a round;
each window is a minibatch of that round's answers.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lite_align.data import forest
from lite_align.errors import TrainingStopped
from lite_align.losses import ppo
from lite_align.model.backbone import Backbone, Role
from lite_align.model.value_head import Kind, ValueHead
from lite_align.recipe import PPORecipe
from lite_align.stages import passes
from lite_align.stages.advantages import LARGEST_START, Columns, columns, kl_in, require_right_kl, told
from lite_align.stages.guards import Guards, Measured, Tripped
from lite_align.stages.held_out import HeldOut
from lite_align.stages.rollouts import Asked, Collector, Rollout, seed_of
from lite_align.stages.stage import Stage
from lite_align.train.engine import Group, Loss, Window
from lite_align.train.faults import TokenBudget

KL_RAISE, RATE_CUT, LEAST_KL_WEIGHT = 1.5, 0.5, 0.01
"""What guards multiply the weight of the KL and the learning rate with, and the least weight that is raised to."""

_OF_TRAINING = ("value/explained_variance", "rounds")
"""Figures that guards look at and that are no held-out figures."""


@dataclass(frozen=True)
class AnswerBatch:
    """Packed answers of one micro-batch; `places` (B,) int64 says where its tokens stand in the round's columns."""

    forest: forest.Batch
    answers: tuple[int, ...]
    places: Tensor

    @property
    def keys(self) -> tuple[int, ...]:
        """Numbers of the prompts in the round: the answers to one are never divided, so that it is the example."""
        return self.forest.keys

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return self.forest.tokens


class PPO(Stage[PPORecipe, AnswerBatch]):
    """The stage.

    Args:
        backbone: base with POLICY, REFERENCE, and REWARD where there is a reward model.
        recipe: with no "auto" left.
        prompts: to sample answers to.
        collector: samples and measures.
        held_out: prompts and pairs that the policy is measured on.
        tell: hears of every guard that tripped.
        budget: see `Stage`.
    """

    name = "ppo"

    def __init__(
        self,
        backbone: Backbone,
        recipe: PPORecipe,
        prompts: Sequence[Asked],
        collector: Collector,
        held_out: HeldOut,
        *,
        tell: Callable[[Tripped], None] = lambda tripped: None,
        budget: TokenBudget | None = None,
    ) -> None:
        super().__init__(backbone, recipe, budget=budget)
        options = recipe.ppo
        assert options.samples != "auto"
        self.options = options
        self.prompts = list(prompts)
        self.collector = collector
        self.held_out = held_out
        self.tell = tell
        self.samples = options.samples
        self.prompts_per_round = options.rollouts // options.samples
        self.minibatches = minibatches(recipe)
        self.steps_per_round = options.passes * self.minibatches
        self.kl_weight = self._next_kl_weight = options.kl
        self.value_head = value_head(backbone, recipe)
        self.guards: Guards | None = None
        self.rolled_back_to: int | None = None
        self.tripped: list[Tripped] = []
        self.good = backbone.adapter_tensors(self.role)
        self.samples_over_time: list[dict[str, Any]] = []
        self.start_rows: list[dict[str, Any]] = []
        self.start_preference: list[float] = []
        self.start_difference = 0.0
        self._round = self._measured = -1
        self._rollout: Rollout | None = None
        self._columns: Columns | None = None
        self._stopped = False
        self._first_step: int | None = None  # of the round that makes an update
        self._first = False
        self._explained: float | None = None
        self._row: dict[str, float] = {}
        self._learning_since, self._learned = time.perf_counter(), 0
        self._clear()

    @property
    def examples(self) -> int:
        """Prompts to sample answers to."""
        return len(self.prompts)

    def epoch(self, step: int) -> float:
        """Passes over the prompts finished after `step` updates."""
        return step / self.steps_per_round * self.prompts_per_round / self.examples

    @property
    def rounds(self) -> int:
        """Finished rounds, the current one included."""
        return self._round + 1

    def groups(self) -> list[Group]:
        """The value head, with a learning rate of its own."""
        if self.value_head is None:
            return []
        named = [(f"value.{name}", tensor) for name, tensor in self.value_head.named_parameters()]
        return [Group(named, self.options.value_learning_rate)]

    # 1 and 2: collect and score. 3: advantages.

    def begin_round(self, number: int) -> None:
        """Collect answers, score them, and turn scores into advantages; nothing is learned yet."""
        started = time.perf_counter()
        asked = self.asked(number)
        seed = seed_of(self.recipe.train.seed, "round", number)
        answers = self.collector.sample(asked, self.samples, seed)
        sampled = time.perf_counter()
        self.take(self.collector.score(asked, answers, self.samples, value_head=self.value_head), number)
        tokens = sum(len(one.ids) for one in answers)
        self._row["speed/generated_tokens_per_second"] = tokens / max(sampled - started, 1e-9)
        self._learning_since, self._learned = time.perf_counter(), 0

    def asked(self, number: int) -> list[Asked]:
        """The prompts of a round: all are asked once, in random order, before one is asked again."""
        found = []
        for place in range(number * self.prompts_per_round, (number + 1) * self.prompts_per_round):
            epoch, index = divmod(place, self.examples)
            found.append(self.prompts[forest.order(self.examples, self.recipe.train.seed, epoch)[index]])
        return found

    def take(self, rollout: Rollout, number: int) -> None:
        """Make a rollout what round `number` learns from.

        Raises:
            TrainingStopped: too few answers have a reward, all have the same one, or the KL cannot be right.
        """
        self.collector.require_rewards(rollout)
        self._round, self._rollout, self._stopped, self._first_step = number, rollout, False, None
        self.kl_weight = self._next_kl_weight
        self._columns = columns(rollout, self.recipe, self.kl_weight)
        apart = require_right_kl(rollout, number, self.backbone.dtype)
        if number == 0:
            self.start_difference = apart
        if number == 0 and (len(set(rollout.scores)) == 1 or not bool(self._columns.advantages.any())):
            raise TrainingStopped(
                "No answer of the first round is better than another to its prompt: there is nothing to learn from.",
                details=[f"{name}: {values[0]}" for name, values in rollout.sources.items()],
                remedy="Look at the reward: lite-align report shows samples; a rule that is always met tells nothing.",
            )
        self._row |= told(rollout, self._columns, self.kl_weight)
        self._explained = self._row.get("value/explained_variance")
        if self.options.target_kl is not None:
            assert self.options.kl_horizon != "auto"
            self._next_kl_weight = ppo.next_kl_weight(
                self.kl_weight,
                self._row["objective/kl"],
                self.options.target_kl,
                len(rollout.answers),
                self.options.kl_horizon,
            )

    # 4: learn.

    def window(self, step: int) -> Window[AnswerBatch]:
        """The minibatch of optimiser step `step`: of a new round's answers where one begins.

        It is empty, and no update is made, once the policy has moved too far from the one that sampled.
        """
        number, index = divmod(step, self.steps_per_round)
        if number != self._round:
            self.begin_round(number)
        rollout = self._rollout
        assert rollout is not None
        if index and self._measured == step - 1 and self._moved_too_far():
            self._stopped = True
        self._clear()
        self._measured = step
        answers = self.minibatch(number, index)
        weight = float(self._kept_tokens(answers))
        if self._stopped or not weight or not self._teaches(answers, number):
            self._row["policy/skipped"] = self._row.get("policy/skipped", 0.0) + 1
            return Window([], 0.0)
        self._first_step = step if self._first_step is None else self._first_step
        self._first = step == self._first_step
        trees = [rollout.trees[n // self.samples] for n in answers[:: self.samples]]
        packs = forest.pack(trees, self.budget.tokens)
        return Window([self.batch([trees[i] for i in pack]) for pack in packs], weight)

    def minibatch(self, number: int, index: int) -> list[int]:
        """The answers of a minibatch, those to a prompt side by side; every pass has an order of its own."""
        turn, part = divmod(index, self.minibatches)
        seed = seed_of(self.recipe.train.seed, "passes")
        order = forest.order(self.prompts_per_round, seed, number * self.options.passes + turn)
        size = self.recipe.train.batch_size // self.samples
        chosen = order[part * size : (part + 1) * size]
        return [n for group in chosen for n in range(group * self.samples, (group + 1) * self.samples)]

    def batch(self, trees: Sequence[Any]) -> AnswerBatch:
        """Pack trees of the round."""
        assert self._rollout is not None
        device = self.backbone.device
        batch = passes.to_batch(trees, device)
        answers = [n for key in batch.keys for n in range(key * self.samples, (key + 1) * self.samples)]
        places = torch.tensor(self._rollout.ragged.places(answers), dtype=torch.int64)
        return AnswerBatch(batch, tuple(answers), forest.upload(places, device))

    def loss(self, batch: AnswerBatch) -> Loss:
        """Policy loss and value loss of a micro-batch, summed over the tokens that take part."""
        rollout, own = self._rollout, self._columns
        assert rollout is not None
        assert own is not None

        def here(values: Tensor) -> Tensor:
            return values.index_select(0, batch.places)

        with self.backbone.role(Role.POLICY):
            states = self.backbone.states(batch.forest)
            by_token = self.backbone.state_logps(states, batch.forest.target, self.options.temperature)
        logps = by_token.index_select(0, batch.forest.term)
        old, kept = here(rollout.logps), here(own.kept)
        ratios = ppo.log_ratio(logps.detach(), old)
        if self._first:
            self._require_start(ratios)
        loss = ppo.policy_loss(logps, old, here(own.advantages), self.options.clip)
        far = ((ratios.exp() - 1).abs() > self.options.clip).float()
        sums = {
            "policy/loss": loss.detach(),
            "policy/clip_fraction": far,
            "policy/approx_kl": ppo.k3(old, logps.detach()),
        }
        if kl_in(self.recipe) == "loss":
            loss = loss + self.kl_weight * ppo.k3(logps, here(rollout.reference_logps))
        if self.value_head is not None:
            assert rollout.values is not None
            assert own.returns is not None
            read = (
                states.index_select(0, batch.forest.term) if rollout.states is None else here(rollout.states)
            )
            values, before = self.value_head(read), here(rollout.values)
            error = ppo.value_loss(values, before, here(own.returns), self.options.clip)
            moved = ((values.detach() - before).abs() > self.options.clip).float()
            sums |= {"value/loss": error.detach(), "value/clip_fraction": moved}
            loss = loss + self.options.value_weight * error
        sums["loss"] = loss.detach()
        self._kl = self._kl + (sums["policy/approx_kl"] * kept).sum()
        self._tokens = self._tokens + kept.sum()
        self._learned += batch.tokens
        return Loss(
            (loss * kept).sum(),
            {name: (values * kept).sum() for name, values in sums.items()},
            self._kept_tokens(batch.answers),
        )

    def _teaches(self, answers: Sequence[int], number: int) -> bool:
        """Whether a minibatch has a gradient at all: answers that are all as good as each other have none."""
        own, rollout = self._columns, self._rollout
        assert own is not None
        assert rollout is not None
        if self.value_head is not None or (number > 0 and kl_in(self.recipe) == "loss"):
            return True
        return bool(own.advantages[rollout.ragged.places(answers)].any())

    def _kept_tokens(self, answers: Sequence[int]) -> int:
        """Tokens of the answers that have a reward."""
        assert self._rollout is not None
        scores, lengths = self._rollout.scores, self._rollout.ragged.lengths
        return sum(lengths[n] for n in answers if scores[n] is not None)

    def _clear(self) -> None:
        """Forget what the minibatch before has measured."""
        self._kl = self._tokens = torch.zeros((), device=self.backbone.device)

    def _moved_too_far(self) -> bool:
        limit = self.options.update_kl
        return limit is not None and float(self._kl) > 1.5 * limit * float(self._tokens)

    def _require_start(self, ratios: Tensor) -> None:
        """Stop where the first minibatch of a round does not begin at the policy that sampled (LA601)."""
        worst, mean = float(ratios.abs().max()), float(ratios.abs().mean())
        self._row["policy/ratio_error"] = max(worst, self._row.get("policy/ratio_error", 0.0))
        if not mean <= LARGEST_START[self.backbone.dtype]:
            raise TrainingStopped(
                f"LA601: before the first update of a round, log-probs differ from those of the sampled answers by "
                f"{mean:.2g} nats a token in the mean ({worst:.2g} at most); they must be the same.",
                remedy="Nothing of this round was learned. Run lite-align doctor, and report it if that finds nothing.",
            )

    def measured(self) -> dict[str, float]:
        """The figures of the last round."""
        row, self._row = self._row, {}
        seconds = max(time.perf_counter() - self._learning_since, 1e-9)
        return {**row, "speed/learned_tokens_per_second": self._learned / seconds}

    # Held-out prompts and guards.

    def begin(self, advance: Callable[[int], None] | None = None) -> dict[str, float]:
        """Measure the start, which the guards compare everything with; returns the figures."""
        measured = self._look(0, advance)
        if measured is None:
            return {}
        self.guards = Guards(self.recipe.guards, measured, self.options.target_kl)
        self.start_rows = self.held_out.rows()
        self.start_preference = list(measured.by_prompt.get("preference", ()))
        return _of_held_out(measured)

    def evaluate(self) -> dict[str, float]:
        """Figures on held-out prompts; what the guards see is told, and done as the recipe says."""
        step = self.rounds * self.steps_per_round
        measured = self._look(step)
        if measured is None:
            return {}
        assert self.guards is not None
        for tripped in self.guards.look(measured):
            self.tripped.append(tripped)
            self.tell(tripped)
            self._act(tripped)
        if self.guards.good == step:
            self.good = self.backbone.adapter_tensors(self.role)
        return _of_held_out(measured)

    def _look(self, step: int, advance: Callable[[int], None] | None = None) -> Measured | None:
        if not self.held_out.asked:
            return None
        measured = self.held_out.measure(self.collector, step, advance)
        self.samples_over_time += self.held_out.samples(step)
        variance = self._explained
        training = {"rounds": float(self.rounds)} | ({} if variance is None else {_OF_TRAINING[0]: variance})
        return replace(measured, metrics={**measured.metrics, **training})

    def _act(self, tripped: Tripped) -> None:
        match tripped.action:
            case "raise_kl":
                self._next_kl_weight = max(self._next_kl_weight * KL_RAISE, LEAST_KL_WEIGHT)
            case "lower_rate":
                self.rate_factor *= RATE_CUT
            case "stop":
                self.ended = tripped.text
            case "roll_back":
                assert self.guards is not None
                self.ended = tripped.text
                self.rolled_back_to = self.guards.good
                self.backbone.set_adapter_tensors(self.role, self.good)
            case _:
                pass

    # State.

    def adapters(self) -> dict[str, dict[str, Tensor]]:
        """The policy, the last policy that was good, and the value head."""
        found = {**super().adapters(), "good": dict(self.good)}
        if self.value_head is not None:
            found["value"] = {
                name: t.detach().cpu().clone() for name, t in self.value_head.named_parameters()
            }
        return found

    def load_adapters(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Put a checkpoint's tensors back in place, exactly."""
        super().load_adapters(tensors)
        self.good = dict(tensors["good"])
        if self.value_head is not None:
            with torch.no_grad():
                for name, tensor in self.value_head.named_parameters():
                    tensor.copy_(tensors["value"][name])

    def state(self) -> dict[str, Any]:
        """What the next round needs besides tensors."""
        return {
            "round": self._round,
            "kl_weight": self._next_kl_weight,
            "rate_factor": self.rate_factor,
            "ended": self.ended,
            "rolled_back_to": self.rolled_back_to,
            "at_once": self.collector.at_once,
            "explained_variance": self._explained,
            "guards": None if self.guards is None else self.guards.state(),
            "tripped": [asdict(one) for one in self.tripped],
            "samples": self.samples_over_time,
            "start_rows": self.start_rows,
            "start_preference": self.start_preference,
            "start_difference": self.start_difference,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on between two rounds."""
        self._round = state["round"]
        self._next_kl_weight = state["kl_weight"]
        self.rate_factor, self.ended = state["rate_factor"], state["ended"]
        self.rolled_back_to, self.collector.at_once = state["rolled_back_to"], state["at_once"]
        self._explained = state["explained_variance"]
        if state["guards"] is not None:
            self.guards = Guards.resumed(self.recipe.guards, state["guards"], self.options.target_kl)
        self.tripped = [Tripped(**one) for one in state["tripped"]]
        self.samples_over_time = list(state["samples"])
        self.start_rows, self.start_difference = list(state["start_rows"]), state["start_difference"]
        self.start_preference = list(state["start_preference"])


def minibatches(recipe: PPORecipe) -> int:
    """Optimiser steps of one pass over a round's answers; the last one may be smaller."""
    return -(-recipe.ppo.rollouts // recipe.train.batch_size)


def value_head(backbone: Backbone, recipe: PPORecipe) -> ValueHead | None:
    """The value head that the advantages need, if they need one."""
    if recipe.ppo.advantage != "gae":
        return None
    assert recipe.ppo.value != "auto"
    kind = Kind.PROBE if recipe.ppo.value == "reward" else Kind.LINEAR
    size = backbone.model.config.get_text_config().hidden_size
    return ValueHead(kind, size, seed=recipe.train.seed, device=backbone.device)


def _of_held_out(measured: Measured) -> dict[str, float]:
    return {name: value for name, value in measured.metrics.items() if name not in _OF_TRAINING}
