"""A plain PPO of four models, from transformers, peft and torch alone: opponent of the benchmark, oracle of a test.

It is written from the papers (`plain_losses` names them) and shares nothing with lite_align: rows are padded, each
role is a model of its own, and log-probs come from whole logits. Speed is what the common libraries offer;
`opponent_ppo` has the settings.

Shape letters: N episodes, T answer columns (padded), H hidden, V vocabulary.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.plain_losses import (
    clipped_policy,
    clipped_value,
    explained_variance,
    gae,
    k3,
    leave_one_out,
    masked_mean,
    over_groups,
    shaped,
    standard_score,
    whitened,
)


@dataclass(frozen=True)
class Settings:
    """What the mathematics needs to know; the names are those of the recipe's blocks `ppo` and `train`.

    `reward_mean` and `reward_std` are those of the reward model's scores; `target_kl` None keeps `kl` as it is.
    """

    advantage: str = "gae"
    kl_in: str = "reward"
    kl: float = 0.05
    target_kl: float | None = 6.0
    kl_horizon: float = 1600.0
    temperature: float = 1.0
    clip: float = 0.2
    gae_lambda: float = 0.95
    value_weight: float = 0.1
    missing_stop: float = -1.0
    reward_clip: float = 5.0
    reward_mean: float = 0.0
    reward_std: float = 1.0
    update_kl: float | None = None
    stop_ids: Collection[int] = ()
    learning_rate: float = 1e-5
    value_learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-5
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0


@dataclass(frozen=True)
class Rollout:
    """Sampled episodes.

    Args:
        prompts: N prompts as token ids.
        answers: N answers, the stop token included where there is one.
        groups: N numbers; episodes of one prompt have the same one.
        scores: (N,) of the episodes; NaN where none could be had; None: the reward model gives them.
    """

    prompts: Sequence[Sequence[int]]
    answers: Sequence[Sequence[int]]
    groups: Sequence[int]
    scores: Tensor | None = None


class Rows(NamedTuple):
    """Padded episodes: prompts on the left, answers on the right, so that all answers begin in one column."""

    ids: Tensor
    attended: Tensor
    answers: Tensor
    """(N, T) bool, whether a column of the answers is a token."""

    @property
    def targets(self) -> Tensor:
        """(N, T) int64, the answers' tokens."""
        return self.ids[:, -self.answers.shape[1] :]


@dataclass
class Experience:
    """What is known of a rollout before the first update; tensors are (N, T), 0 behind the answers, scores (N,).

    `tokens` says where the answers are, `mask` which tokens take part: those of answers that have a score.
    """

    rollout: Rollout
    tokens: Tensor
    mask: Tensor
    old: Tensor
    entropy: Tensor
    reference: Tensor
    values: Tensor
    scores: Tensor
    rewards: Tensor
    advantages: Tensor
    returns: Tensor


@dataclass
class Models:
    """The four models.

    Args:
        policy: with a trained adapter.
        reference: frozen, a copy of its own.
        reward: with a frozen adapter.
        reward_head: (H,), read at the last token.
        value: the model on whose last hidden states the values are read: one of its own, or one of the others.
        value_head: (..., H) to (..., 1).
    """

    policy: nn.Module
    reference: nn.Module
    reward: nn.Module
    reward_head: Tensor
    value: nn.Module
    value_head: nn.Module


# Models.


def padded(rollout: Rollout, numbers: Sequence[int]) -> Rows:
    """Put some episodes of a rollout into rows; the padding is token 0 and masked."""
    prompts = [list(rollout.prompts[n]) for n in numbers]
    answers = [list(rollout.answers[n]) for n in numbers]
    before, after = max(map(len, prompts)), max(map(len, answers))
    ids = [
        [0] * (before - len(prompt)) + prompt + answer + [0] * (after - len(answer))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    places = torch.arange(before + after)
    starts = torch.tensor([[before - len(prompt)] for prompt in prompts])
    ends = torch.tensor([[before + len(answer)] for answer in answers])
    attended = (places >= starts) & (places < ends)
    return Rows(torch.tensor(ids), attended, attended[:, before:])


def hidden_states(model: nn.Module, rows: Rows) -> Tensor:
    """Last hidden states (N, columns, H), with whatever adapter the model has."""
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    positions = (rows.attended.cumsum(1) - 1).clamp(min=0)
    decoder = inner.get_decoder()
    return decoder(
        input_ids=rows.ids, attention_mask=rows.attended.long(), position_ids=positions, use_cache=False
    ).last_hidden_state


def before_answers(hidden: Tensor, rows: Rows) -> Tensor:
    """The hidden states (N, T, H) of the columns that predict the answers."""
    # A product on the CPU takes fifteen times as long over rows that do not lie end to end.
    return hidden[:, -rows.answers.shape[1] - 1 : -1].contiguous()


class Chosen(NamedTuple):
    """Of every token of the answers, (N, T): its log-prob, and the entropy of the distribution it was chosen from."""

    logps: Tensor
    entropy: Tensor | None = None


def token_logps(model: nn.Module, rows: Rows, temperature: float, *, entropy: bool = False) -> Chosen:
    """Log-probs of the answers' tokens, and entropies where they are asked for; the head sees the answers alone.

    One episode after the other, as TRL does, so that its logits stay in the cache of the processor.
    """
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    logits = inner.get_output_embeddings()(before_answers(hidden_states(model, rows), rows))
    logps, entropies = [], []
    for row, targets in zip(logits, rows.targets, strict=True):
        distribution = (row.float() / temperature if temperature != 1 else row.float()).log_softmax(-1)
        logps.append(distribution.gather(1, targets[:, None])[:, 0])
        if entropy:
            entropies.append(-(distribution.exp() * distribution).sum(-1))
    return Chosen(torch.stack(logps), torch.stack(entropies) if entropy else None)


def trained(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that have a gradient."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


class PlainPPO:
    """Four models, one optimiser, and rounds of score and learn over given rollouts.

    Args:
        models: the four models; what is trained in `policy`, `value` and `value_head` is what has a gradient.
        settings: of the mathematics.
        precision: makes the context of every forward pass, such as autocast.
        forward_rows: episodes a pass without gradients.

    Attributes:
        beta: weight of the KL, moved by the controller.
    """

    def __init__(
        self,
        models: Models,
        settings: Settings,
        *,
        precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
        forward_rows: int = 8,
    ) -> None:
        self.models = models
        self.settings = settings
        self.precision = precision
        self.forward_rows = forward_rows
        self.beta = settings.kl
        self.policy_parameters = trained(models.policy)
        shared = {id(parameter) for parameter in self.policy_parameters}
        candidates = [*trained(models.value), *trained(models.value_head)] if self.has_values else []
        self.value_parameters = [parameter for parameter in candidates if id(parameter) not in shared]
        groups: list[dict[str, Any]] = [{"params": self.policy_parameters, "lr": settings.learning_rate}]
        if self.value_parameters:
            groups.append({"params": self.value_parameters, "lr": settings.value_learning_rate})
        self.optimizer = torch.optim.AdamW(
            groups, betas=settings.betas, eps=settings.epsilon, weight_decay=settings.weight_decay
        )

    @property
    def has_values(self) -> bool:
        """Whether advantages need a value of every token."""
        return self.settings.advantage == "gae"

    def update(self, rollout: Rollout, order: Sequence[Sequence[int]]) -> dict[str, float]:
        """One round over a rollout, a minibatch for every item of `order`; returns what is logged."""
        return self.learn(self.score(rollout), order)

    # Score.

    def score(self, rollout: Rollout) -> Experience:
        """Log-probs, values, scores and advantages of a rollout, before the first update."""
        with torch.no_grad():
            rows = list(self._passes(rollout))
            chosen = [self.logps(self.models.policy, batch, entropy=True) for batch in rows]
            old = self._columns(rollout, [each.logps for each in chosen])
            entropy = self._columns(rollout, [each.entropy for each in chosen if each.entropy is not None])
            reference = self._columns(
                rollout, [self.logps(self.models.reference, batch).logps for batch in rows]
            )
            values = torch.zeros_like(old)
            if self.has_values:
                values = self._columns(rollout, [self.values(batch) for batch in rows])
            raw = torch.cat([self.rewards(batch) for batch in rows])
        scores = self.finished(rollout, raw) if rollout.scores is None else rollout.scores.float()
        lengths = torch.tensor([len(answer) for answer in rollout.answers])
        tokens = torch.arange(old.shape[1]) < lengths[:, None]
        old, reference, values = (
            each.where(tokens, torch.zeros_like(each)) for each in (old, reference, values)
        )
        known = scores.isfinite()
        mask = tokens & known[:, None]
        rewards = torch.zeros_like(old)
        beta = self.beta if self.settings.kl_in == "reward" else 0.0
        rewards[known] = shaped(scores[known], (old - reference)[known], mask[known], beta)
        advantages, returns = self.advantages(rewards, values, mask, rollout.groups)
        return Experience(
            rollout, tokens, mask, old, entropy, reference, values, scores, rewards, advantages, returns
        )

    def finished(self, rollout: Rollout, raw: Tensor) -> Tensor:
        """Scores (N,) from the reward model's (N,): standardised and clipped, or that of a missing stop."""
        own = self.settings
        scores = ((raw - own.reward_mean) / own.reward_std).clamp(-own.reward_clip, own.reward_clip)
        stopped = torch.tensor([answer[-1] in own.stop_ids for answer in rollout.answers])
        return scores.where(stopped, torch.full_like(scores, own.missing_stop))

    def advantages(
        self, rewards: Tensor, values: Tensor, mask: Tensor, groups: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Advantages (N, T), ready for the loss, and returns (N, T)."""
        kind = self.settings.advantage
        if kind == "gae":
            plain = gae(rewards, values, self.settings.gae_lambda).where(mask, torch.zeros_like(rewards))
            return whitened(plain, mask), plain + values
        known = mask.any(1)
        of = leave_one_out if kind == "rloo" else standard_score
        each = torch.zeros_like(rewards[:, 0])
        numbers = [group for group, counts in zip(groups, known.tolist(), strict=True) if counts]
        each[known] = over_groups(rewards.sum(1)[known], numbers, of)
        spread = each[:, None].expand_as(rewards).where(mask, torch.zeros_like(rewards))
        totals = rewards.sum(1, keepdim=True).expand_as(rewards).where(mask, torch.zeros_like(rewards))
        return (whitened(spread, mask) if kind == "rloo" else spread), totals

    def _passes(self, rollout: Rollout) -> Iterator[Rows]:
        for start in range(0, len(rollout.prompts), self.forward_rows):
            yield padded(rollout, range(start, min(start + self.forward_rows, len(rollout.prompts))))

    def _columns(self, rollout: Rollout, parts: Sequence[Tensor]) -> Tensor:
        """Parts of fewer columns below each other: (N, T)."""
        longest = max(map(len, rollout.answers))
        return torch.cat([nn.functional.pad(part, (0, longest - part.shape[1])) for part in parts])

    # Forward passes.

    def logps(self, model: nn.Module, rows: Rows, *, entropy: bool = False) -> Chosen:
        """Log-probs (N, T) of the answers under a model."""
        with self.precision():
            return token_logps(model, rows, self.settings.temperature, entropy=entropy)

    def values(self, rows: Rows) -> Tensor:
        """Values (N, T) of the states in which the answers' tokens were chosen."""
        with self.precision():
            hidden = before_answers(hidden_states(self.models.value, rows), rows)
        return self.models.value_head(hidden.float())[..., 0]

    def rewards(self, rows: Rows) -> Tensor:
        """Raw scores (N,) of the reward model, read at the last token."""
        with self.precision():
            hidden = hidden_states(self.models.reward, rows)
        last = rows.attended.long().cumsum(1).argmax(1)
        return hidden[torch.arange(len(last)), last].float() @ self.models.reward_head.float()

    # Learn.

    def learn(self, experience: Experience, order: Sequence[Sequence[int]]) -> dict[str, float]:
        """One optimiser step for every minibatch, then the controller's; returns what is logged.

        Means over steps count every token once, that of the gradient's norm every step.
        """
        steps: list[dict[str, float]] = []
        skipped = 0
        for number, chosen in enumerate(order):
            numbers = [n for n in chosen if experience.mask[n].any()]
            if not numbers:
                continue
            steps.append(self.step(experience, numbers))
            limit = self.settings.update_kl
            if limit is not None and steps[-1]["policy/approx_kl"] > 1.5 * limit:
                skipped = len(order) - number - 1
                break
        tokens = sum(step["tokens"] for step in steps)
        means = {
            name: sum(step[name] * step["tokens"] for step in steps) / tokens
            for name in steps[0]
            if name not in ("tokens", "grad_norm")
        }
        norm = sum(step["grad_norm"] for step in steps) / len(steps)
        logged = {**self.objectives(experience), **means, "grad_norm": norm}
        logged |= {"policy/skipped": float(skipped), "objective/beta": self.beta}
        self.control(logged["objective/kl"], len(experience.scores))
        return logged

    def step(self, experience: Experience, numbers: Sequence[int]) -> dict[str, float]:
        """Forward, backward and one optimiser step over some episodes; means over their tokens."""
        own = self.settings
        rows = padded(experience.rollout, numbers)
        mask, columns = rows.answers, rows.answers.shape[1]
        old, reference, values, advantages, returns = (
            each[list(numbers), :columns]
            for each in (
                experience.old,
                experience.reference,
                experience.values,
                experience.advantages,
                experience.returns,
            )
        )
        self.optimizer.zero_grad()
        now = self.logps(self.models.policy, rows).logps
        policy, outside = clipped_policy(now - old, advantages, own.clip)
        found = {
            "policy/loss": masked_mean(policy, mask),
            "policy/clip_fraction": masked_mean(outside.float(), mask),
            "policy/approx_kl": masked_mean(k3((now - old).detach()), mask),
        }
        loss = found["policy/loss"]
        if own.kl_in == "loss":
            loss = loss + self.beta * masked_mean(k3(reference - now), mask)
        loss.backward()
        total = float(loss.detach())
        if self.has_values:
            # After the policy's backward pass, so that one graph is held at a time.
            value, far = clipped_value(self.values(rows), values, returns, own.clip)
            found["value/loss"] = masked_mean(value, mask)
            found["value/clip_fraction"] = masked_mean(far.float(), mask)
            loss = own.value_weight * found["value/loss"]
            loss.backward()
            total += float(loss.detach())
        norm = nn.utils.clip_grad_norm_(self.policy_parameters, own.max_grad_norm)
        if self.value_parameters:
            nn.utils.clip_grad_norm_(self.value_parameters, own.max_grad_norm)
        self.optimizer.step()
        return {
            **{name: float(value.detach()) for name, value in found.items()},
            "loss": total,
            "grad_norm": float(norm),
            "tokens": float(mask.sum()),
        }

    def objectives(self, experience: Experience) -> dict[str, float]:
        """What is known of the rollout itself: the reward of answers that have one, the rest of all answers."""
        tokens, scores = experience.tokens, experience.scores
        k1 = experience.old - experience.reference
        found = {
            "objective/reward": scores[scores.isfinite()].mean(),
            "objective/kl": k1.sum(1).mean(),
            "objective/kl_k3": k3(-k1).sum(1).mean(),
            "objective/entropy": masked_mean(experience.entropy, tokens),
            "objective/length": tokens.sum(1).float().mean(),
        }
        if self.has_values:
            found["value/explained_variance"] = explained_variance(
                experience.values, experience.returns, experience.mask
            )
        return {name: float(value) for name, value in found.items()}

    def control(self, kl: float, episodes: int) -> None:
        """Move beta towards the target of the KL (1909.08593, section 2.2)."""
        own = self.settings
        if own.target_kl is not None:
            error = max(-0.2, min(0.2, kl / own.target_kl - 1))
            self.beta *= 1 + error * episodes / own.kl_horizon
