"""What a policy says to held-out prompts: sampled with the same random numbers every time, and measured in many ways.

The reward is what is optimised, so it proves nothing alone. Beside it stand the KL, length, variety, the share of
held-out pairs whose chosen answer the policy prefers, and, for prompts of the built-in world, the score by its rule.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from torch import Tensor

from lite_align.assets import world
from lite_align.data.types import Prompt, Tree
from lite_align.evaluate.text import distinct_n, repeated_ngrams
from lite_align.losses import ppo
from lite_align.model.backbone import Role
from lite_align.stages import passes
from lite_align.stages.guards import UNSAFE, Measured
from lite_align.stages.rollouts import Asked, Collector, Rollout, seed_of

SAMPLES = 2
"""Answers to each held-out prompt at every evaluation."""

MOST_PROMPTS = 128
"""Held-out prompts that are answered; the first ones where there are more."""

SHOWN = 8
"""Prompts of which an answer is kept at every evaluation."""


class HeldOut:
    """Held-out prompts and pairs.

    Args:
        asked: prompts; the first `MOST_PROMPTS` are answered.
        pairs: trees of held-out pairs, leaf 0 the chosen answer; none where there are no pairs.
        asks: the questions of the built-in world behind the prompts, if answers are to be scored by its rule.
        seed: of the sampling.
    """

    def __init__(
        self, asked: Sequence[Asked], pairs: Sequence[Tree], asks: Sequence[world.Ask] | None, seed: int
    ) -> None:
        self.asked = list(asked)[:MOST_PROMPTS]
        self.pairs = list(pairs)
        self.asks = None if asks is None else list(asks)[:MOST_PROMPTS]
        self.seed = seed_of(seed, "held out")
        self.rollout: Rollout | None = None

    @property
    def categories(self) -> list[str | None]:
        """Of the prompts."""
        return [one.row.category for one in self.asked]

    def measure(
        self, collector: Collector, step: int, advance: Callable[[int], None] | None = None
    ) -> Measured:
        """Sample answers from the policy and measure them; the rollout stays for `rows` and `samples`.

        Raises:
            TrainingStopped: too few answers have a reward.
        """
        answers = collector.sample(self.asked, SAMPLES, self.seed, advance)
        self.rollout = rollout = collector.score(self.asked, answers, SAMPLES)
        collector.require_rewards(rollout)
        by_prompt = {
            "reward": self._means([math.nan if score is None else score for score in rollout.scores]),
            "length": self._means(rollout.ragged.lengths),
        }
        metrics = {"reward": fmean(value for value in by_prompt["reward"] if math.isfinite(value))}
        metrics |= {
            name.removeprefix("objective/").removeprefix("text/"): v for name, v in measures(rollout).items()
        }
        if self.pairs:
            by_prompt["preference"] = self._preferences(collector)
            metrics["preference_accuracy"] = fmean(by_prompt["preference"])
        if self.asks is not None:
            scored = self._by_rule()
            by_prompt["rule_score"] = self._means([one.total for one in scored])
            by_prompt["refused"] = self._means([one.refused for one in scored])
            metrics |= self._rule_metrics(by_prompt["rule_score"], by_prompt["refused"])
        return Measured(step, metrics, by_prompt, self.categories)

    def _means(self, values: Sequence[float]) -> list[float]:
        """Means over the answers to each prompt, of those that are there."""
        groups = [values[n : n + SAMPLES] for n in range(0, len(values), SAMPLES)]
        kept = [[value for value in group if math.isfinite(value)] for group in groups]
        return [fmean(group) if group else math.nan for group in kept]

    def _by_rule(self) -> list[world.Score]:
        rollout, asks = self.rollout, self.asks
        assert rollout is not None
        assert asks is not None
        return [
            world.score(asks[n // SAMPLES], text, ended=stopped)
            for n, (text, stopped) in enumerate(zip(rollout.texts, rollout.stopped, strict=True))
        ]

    def _rule_metrics(self, scores: Sequence[float], refused: Sequence[float]) -> dict[str, float]:
        categories = self.categories
        found = {"rule_score": fmean(scores)}
        for name in sorted({category for category in categories if category is not None}):
            found[f"rule_score/{name}"] = fmean(s for s, c in zip(scores, categories) if c == name)
        for name, unsafe in ((UNSAFE, True), ("other", False)):
            group = [r for r, c in zip(refused, categories) if (c == UNSAFE) == unsafe]
            if group:
                found[f"refusal/{name}"] = fmean(group)
        return found

    def _preferences(self, collector: Collector) -> list[float]:
        """1 for every held-out pair whose chosen answer the policy finds likelier, 0.5 for a tie."""
        logps = passes.leaf_logps(
            collector.backbone, Role.POLICY, self.pairs, collector.budget, where="the evaluation"
        )
        return [float(chosen > rejected) + 0.5 * (chosen == rejected) for chosen, rejected in logps]

    # Of the last measurement.

    def rows(self) -> list[dict[str, Any]]:
        """Figures of every prompt, means over its answers, for held_out.jsonl."""
        rollout = self.rollout
        assert rollout is not None
        kl = rollout.ragged.padded(ppo.k1(rollout.logps, rollout.reference_logps)).sum(1).tolist()
        columns: dict[str, list[float]] = {
            "reward": self._means([math.nan if score is None else score for score in rollout.scores]),
            "kl": self._means(kl),
            "tokens": self._means(rollout.ragged.lengths),
            "stopped": self._means([float(stopped) for stopped in rollout.stopped]),
        }
        if self.asks is not None:
            columns["rule_score"] = self._means([one.total for one in self._by_rule()])
        return [
            {name: values[n] if math.isfinite(values[n]) else None for name, values in columns.items()}
            for n in range(len(self.asked))
        ]

    def samples(self, step: int) -> list[dict[str, Any]]:
        """The first answer to a few prompts, for samples.jsonl."""
        rollout = self.rollout
        assert rollout is not None
        kl = rollout.ragged.padded(ppo.k1(rollout.logps, rollout.reference_logps)).sum(1).tolist()
        scored = None if self.asks is None else self._by_rule()
        found = []
        for number, one in list(enumerate(self.asked))[:SHOWN]:
            n = number * SAMPLES
            row: dict[str, Any] = {
                "step": step,
                "prompt": one.row.messages[-1].content,
                "category": one.row.category,
                "answer": rollout.texts[n],
                "tokens": rollout.ragged.lengths[n],
                "stopped": rollout.stopped[n],
                "reward": rollout.scores[n],
                "kl": kl[n],
            }
            found.append(row if scored is None else {**row, "rule_score": scored[n].total})
        return found


def asks_of(prompts: Sequence[Prompt]) -> list[world.Ask] | None:
    """The questions of the built-in world behind prompts; None if one is not from there."""
    found = [world.find(row.messages[-1].content) if len(row.messages) == 1 else None for row in prompts]
    known = [ask for ask in found if ask is not None]
    return known if len(known) == len(found) else None


def measures(rollout: Rollout) -> dict[str, float]:
    """Figures of a rollout besides its reward, by their names in rows of training."""
    count, kl = len(rollout.answers), ppo.k1(rollout.logps, rollout.reference_logps)
    sums: Mapping[str, Tensor] = {
        "objective/kl": kl.sum() / count,
        "objective/kl_k3": ppo.k3(rollout.logps, rollout.reference_logps).sum() / count,
        "objective/entropy": rollout.entropies.mean(),
    }
    return {
        **{name: float(value) for name, value in sums.items()},
        "objective/length": fmean(rollout.ragged.lengths),
        "objective/stop_rate": fmean(map(float, rollout.stopped)),
        "text/distinct_2": distinct_n(rollout.texts, 2),
        "text/repeated_3grams": fmean(repeated_ngrams(text, 3) for text in rollout.texts),
    }
