"""Collect and score: answers sampled from the policy, and all that is measured of them before anything is learned.

Shape letters: G prompts, N answers (G times the samples of a prompt, those of a prompt side by side), R tokens of all
answers one after the other, H hidden. An answer ends with its stop token, if it has one.
"""

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lite_align.data import forest
from lite_align.data.render import Renderer
from lite_align.data.types import Prompt, Rendered, Tree
from lite_align.model.backbone import Backbone, Role
from lite_align.model.sampler import Sampled
from lite_align.model.value_head import Kind, ValueHead
from lite_align.recipe import PPOOptions
from lite_align.stages import passes, rewards
from lite_align.stages.episodes import Episode, TextReward
from lite_align.stages.scoring import Ids
from lite_align.train.faults import Shortage, Size, TokenBudget, attempt

MODEL = "model"
"""Name of the reward model among the sources of rewards."""


@dataclass(frozen=True)
class Asked:
    """A prompt: its row, its token ids, and the columns that its row has in the file."""

    row: Prompt
    ids: Ids
    columns: Mapping[str, Any]


@dataclass(frozen=True)
class ModelReward:
    """How the scores of REWARD count: in standard deviations of the reward run's own answers, clipped.

    Attributes:
        mean, deviation: of the scores, as the reward run measured them.
        weight: in the sum.
        clip: standard deviations.
        suffix: tokens after an answer, at the last of which the score is read; none: at its stop token.
        stop: the stop token that answers had when the scores were learned.
    """

    mean: float
    deviation: float
    weight: float
    clip: float
    suffix: Ids
    stop: int

    def value(self, score: float) -> float:
        """A score as it counts."""
        return max(-self.clip, min(self.clip, (score - self.mean) / self.deviation))

    def read(self, answer: Ids, *, stopped: bool) -> Ids:
        """An answer as it is scored: with the stop token that REWARD knows, up to where the score is read."""
        return (*answer[:-1], self.stop, *self.suffix) if stopped else (*answer, *self.suffix)


@dataclass(frozen=True)
class Ragged:
    """Values of all tokens of N answers, (R,) one answer after the other; `lengths` are theirs."""

    lengths: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """R."""
        return sum(self.lengths)

    @property
    def ends(self) -> tuple[int, ...]:
        """Where the last tokens stand."""
        return tuple(end - 1 for end in itertools.accumulate(self.lengths))

    def places(self, answers: Sequence[int]) -> list[int]:
        """Where the tokens of some answers stand, in the order given."""
        stops = [end + 1 for end in self.ends]
        return [place for one in answers for place in range(stops[one] - self.lengths[one], stops[one])]

    def padded(self, values: Tensor) -> Tensor:
        """(R,) as (N, T), answers at the left and zeros behind."""
        return torch.nn.utils.rnn.pad_sequence(list(values.split(self.lengths)), batch_first=True)

    def flat(self, padded: Tensor) -> Tensor:
        """(N, T) as (R,)."""
        return torch.cat([row[:length] for row, length in zip(padded, self.lengths, strict=True)])


@dataclass(frozen=True)
class Rollout:
    """Answers with all that was measured of them.

    Attributes:
        asked: the G prompts.
        samples: answers to each.
        answers: the N answers.
        texts: of them.
        stopped: whether each ended with a stop token.
        trees: one a prompt, as they are computed; the answers are the leaves.
        ragged: their lengths.
        logps: (R,) of the policy, by the pass that also trains, without gradients.
        reference_logps: (R,) of REFERENCE.
        entropies: (R,) of the policy, nats.
        values: (R,) of VALUE; None without a value head.
        states: (R, H) that VALUE reads; None where it reads the policy's own, or there is none.
        sources: value of every source of rewards for every answer, by name; None where it could not be had.
        scores: the reward of every answer; None where it could not be had.
        errors: rewards that could not be had.
    """

    asked: tuple[Asked, ...]
    samples: int
    answers: tuple[Sampled, ...]
    texts: tuple[str, ...]
    stopped: tuple[bool, ...]
    trees: tuple[Tree, ...]
    ragged: Ragged
    logps: Tensor
    reference_logps: Tensor
    entropies: Tensor
    values: Tensor | None
    states: Tensor | None
    sources: Mapping[str, Sequence[float | None]]
    scores: tuple[float | None, ...]
    errors: int

    def of(self, answer: int) -> Asked:
        """The prompt of an answer."""
        return self.asked[answer // self.samples]


class Collector:
    """Samples answers and measures them.

    Args:
        backbone: with POLICY, REFERENCE, and REWARD where there is a reward model.
        renderer: of its tokenizer.
        options: of the recipe, with no "auto" left.
        model_reward: how the scores of REWARD count; None without a reward model.
        text_rewards: further sources of rewards.
        budget: tokens of a pass.
        share_prompts: whether the answers to a prompt share its computation.

    Attributes:
        at_once: answers that are sampled together; fewer once memory ran out.
    """

    def __init__(
        self,
        backbone: Backbone,
        renderer: Renderer,
        options: PPOOptions,
        *,
        model_reward: ModelReward | None,
        text_rewards: Sequence[TextReward],
        budget: TokenBudget,
        share_prompts: bool,
    ) -> None:
        self.backbone = backbone
        self.renderer = renderer
        self.options = options
        self.model_reward = model_reward
        self.text_rewards = list(text_rewards)
        self.budget = budget
        self.share_prompts = share_prompts
        self.at_once = options.rollouts

    # 1. Collect.

    def sample(
        self,
        asked: Sequence[Asked],
        samples: int,
        seed: int,
        advance: Callable[[int], None] | None = None,
        *,
        role: Role = Role.POLICY,
    ) -> list[Sampled]:
        """Answers of a role, those to a prompt side by side; sampled again in smaller batches without memory.

        What is sampled depends on the seed and the places of prompt and answer alone, not on the batch.
        """
        options = self.options

        def drawn() -> list[list[Sampled]]:
            with self.backbone.role(role):
                return self.backbone.sample(
                    [one.ids for one in asked],
                    samples=samples,
                    stop_ids=self.renderer.stop_ids,
                    max_new_tokens=options.max_new_tokens,
                    temperature=options.temperature,
                    top_k=options.top_k,
                    top_p=options.top_p,
                    seed=seed,
                    batch_size=self.at_once,
                    advance=advance,
                )

        while isinstance(found := attempt(drawn), Shortage):
            longest = max(len(one.ids) for one in asked) + options.max_new_tokens
            size = Size(self.at_once * longest, self.at_once)
            self.budget.apart(size.tokens).lower(found, "the sampling of answers", [size])
            self.at_once //= 2
        return [answer for answers in found for answer in answers]

    # 2. Score.

    def score(
        self,
        asked: Sequence[Asked],
        answers: Sequence[Sampled],
        samples: int,
        *,
        value_head: ValueHead | None = None,
    ) -> Rollout:
        """Measure answers under every role, each in packed passes without gradients."""
        ragged = Ragged(tuple(len(one.ids) for one in answers))
        stopped = tuple(one.ids[-1] in self.renderer.stop_ids for one in answers)
        texts = tuple(self.text(one.ids) for one in answers)
        trees = self._trees(asked, [(one.ids, len(one.ids)) for one in answers], samples)
        measure = partial(self._measure, ragged=ragged, samples=samples)
        kind = None if value_head is None else value_head.kind
        linear = value_head if kind is Kind.LINEAR else None
        policy = measure(Role.POLICY, trees, partial(self._policy, linear))
        reference = measure(Role.REFERENCE, trees, self._logps)
        sources: dict[str, Sequence[float | None]] = {}
        weights: dict[str, float] = {}
        states, values = None, policy.get("values")
        if (model := self.model_reward) is not None:
            read = [model.read(a.ids, stopped=s) for a, s in zip(answers, stopped, strict=True)]
            scored = self._trees(asked, list(zip(read, ragged.lengths)), samples)
            reward = measure(Role.REWARD, scored, partial(self._reward, kind is Kind.PROBE))
            at_ends = reward["scores"][list(ragged.ends)].tolist()
            sources[MODEL], weights[MODEL] = at_ends, model.weight
            if value_head is not None and (states := reward.get("states")) is not None:
                values = value_head(states).detach()
        episodes = [
            Episode(asked[n // samples].row.messages, text, length, stop, asked[n // samples].columns)
            for n, (text, length, stop) in enumerate(zip(texts, ragged.lengths, stopped, strict=True))
        ]
        for source in self.text_rewards:
            sources[source.name], weights[source.name] = source(episodes), source.weight
        return Rollout(
            tuple(asked),
            samples,
            tuple(answers),
            texts,
            stopped,
            tuple(trees),
            ragged,
            policy["logps"],
            reference["logps"],
            policy["entropies"],
            values,
            states,
            sources,
            self._scores(sources, weights, stopped),
            sum(source.errors.take() for source in self.text_rewards),
        )

    def require_rewards(self, rollout: Rollout) -> None:
        """Stop where too few answers have a reward, with what the sources tell of it. Raises TrainingStopped."""
        tells = [line for source in self.text_rewards for line in source.errors.tell()]
        rewards.require_enough(rollout.scores, tells)

    def text(self, ids: Ids) -> str:
        """An answer as people read it."""
        return str(self.backbone.loaded.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def _trees(self, asked: Sequence[Asked], answers: Sequence[tuple[Ids, int]], samples: int) -> list[Tree]:
        """The answers to each prompt in one tree; of every answer so many first tokens are measured."""

        def written(prompt: Ids, ids: Ids, own: int) -> Rendered:
            trained = (False,) * len(prompt) + (True,) * own + (False,) * (len(ids) - own)
            return Rendered(prompt + ids, trained)

        trees = [
            forest.grow(n, [written(one.ids, *answer) for answer in answers[n * samples : (n + 1) * samples]])
            for n, one in enumerate(asked)
        ]
        return passes.laid_out(trees, share_prompts=self.share_prompts)

    @torch.no_grad()
    def _measure(
        self,
        role: Role,
        trees: Sequence[Tree],
        work: Callable[[forest.Batch], dict[str, Tensor]],
        *,
        ragged: Ragged,
        samples: int,
    ) -> dict[str, Tensor]:
        """What `work` measures of every token under a role, (R, …) in the order of the answers."""

        def on_pack(pack: list[Tree]) -> dict[str, Tensor]:
            with self.backbone.role(role):
                return work(passes.to_batch(pack, self.backbone.device))

        found: dict[str, Tensor] = {}
        packs = forest.pack(trees, self.budget.tokens)
        where = f"the scoring under {role}"
        for pack, results in passes.in_packs(trees, packs, on_pack, self.budget, where=where):
            answers = [n for tree in pack for n in range(tree * samples, (tree + 1) * samples)]
            places = torch.tensor(ragged.places(answers), device=self.backbone.device)
            for name, values in results.items():
                whole = found.setdefault(name, values.new_zeros(ragged.tokens, *values.shape[1:]))
                whole.index_copy_(0, places, values)
        return found

    def _policy(self, value_head: ValueHead | None, batch: forest.Batch) -> dict[str, Tensor]:
        """Log-probs, entropies and, with a head on the policy's own states, values: (R,) of the batch each."""
        states = self.backbone.states(batch)
        logps, entropies = self.backbone.state_statistics(states, batch.target, self.options.temperature)
        found = {"logps": logps, "entropies": entropies}
        if value_head is not None:
            found["values"] = value_head(states)
        return {name: values.index_select(0, batch.term) for name, values in found.items()}

    def _logps(self, batch: forest.Batch) -> dict[str, Tensor]:
        states = self.backbone.states(batch)
        logps = self.backbone.state_logps(states, batch.target, self.options.temperature)
        return {"logps": logps.index_select(0, batch.term)}

    def _reward(self, with_states: bool, batch: forest.Batch) -> dict[str, Tensor]:
        """The score of its answer at every token, and the states before the tokens: (R,) and (R, H) of the batch."""
        hidden = self.backbone.hidden(batch)
        found = {"scores": self.backbone.scores_of(hidden, batch).index_select(0, batch.leaf)}
        if with_states:
            found["states"] = hidden.index_select(0, batch.predict).index_select(0, batch.term)
        return found

    def _scores(
        self,
        sources: Mapping[str, Sequence[float | None]],
        weights: Mapping[str, float],
        stopped: Sequence[bool],
    ) -> tuple[float | None, ...]:
        """Rewards: the weighted sum, or what an answer without a stop token gets; None where there is no source."""
        counted = dict(sources)
        if self.model_reward is not None:
            counted[MODEL] = [
                None if score is None else self.model_reward.value(score) for score in sources[MODEL]
            ]
        if not counted:
            return (None,) * len(stopped)
        summed = rewards.total(counted, weights)
        return tuple(
            self.options.missing_stop if score is not None and not stop else score
            for score, stop in zip(summed, stopped, strict=True)
        )


def seed_of(*parts: object) -> int:
    """A seed below 2^63 that depends on all parts."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8]) >> 1
