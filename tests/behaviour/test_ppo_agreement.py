"""Three rounds against a plain PPO of four models: same weights and answers, so the same figures and updates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from benchmarks import plain_ppo
from benchmarks.plain_ppo import Experience, Models, PlainPPO, Settings
from lite_align.data.render import Renderer
from lite_align.model.backbone import Backbone, Role
from lite_align.model.load import load_model
from lite_align.model.value_head import ValueHead
from lite_align.recipe import LoraOptions, ModelOptions, PPOOptions, PPORecipe
from lite_align.recipe.schema import PPOTrainOptions
from lite_align.stages import rows
from lite_align.stages.episodes import Errors, NoReward
from lite_align.stages.held_out import HeldOut
from lite_align.stages.ppo import PPO
from lite_align.stages.prompts import prompts
from lite_align.stages.rollouts import Asked, Collector, ModelReward
from lite_align.train.engine import Engine
from lite_align.train.faults import TokenBudget
from tests.stages import small

pytestmark = pytest.mark.slow

PROMPTS = Path(__file__).parents[2] / "data_samples" / "prompts.jsonl"
ROUNDS, ANSWERS, BATCH, NEW_TOKENS = 3, 8, 4, 24
POLICY, REWARD = LoraOptions(rank=4, alpha=8.0), LoraOptions(rank=2, alpha=4.0)
RATE = 1e-3
SCORES = ModelReward(mean=0.6, deviation=0.9, weight=1.0, clip=0.8, suffix=(), stop=2)
CASES: dict[str, dict[str, Any]] = {
    "gae, probe": {"value": "reward"},
    "gae, head on the policy": {"value": "policy", "value_learning_rate": 5e-4},
    "gae, KL in the loss": {"value": "reward", "kl_in": "loss"},
    "rloo": {"advantage": "rloo", "samples": 4},
    "grpo": {"advantage": "grpo", "samples": 4},
    "a round ends early": {"value": "reward", "update_kl": 5e-5},
}


@dataclass
class Both:
    """Ours, and the plain one with the same weights."""

    stage: PPO
    engine: Engine[Any]
    plain: PlainPPO
    logged: list[dict[str, float]] = field(default_factory=list)

    @property
    def head(self) -> ValueHead | None:
        return self.stage.value_head

    def order(self, number: int) -> list[list[int]]:
        return [self.stage.minibatch(number, index) for index in range(self.stage.steps_per_round)]

    def ours(self, number: int) -> dict[str, float]:
        """A round; round 0 would insist on a policy that is its reference."""
        first = self.stage.steps_per_round * number
        for step in range(first, first + self.stage.steps_per_round):
            window = self.stage.window(step)
            if window.batches:
                self.engine.update(window, self.stage.loss)
            else:
                self.engine.skip()
        self.logged.append({**self.engine.logged(), **self.stage.measured()})
        return self.logged[-1]

    def theirs(self, number: int) -> tuple[dict[str, float], Experience]:
        """The same round, on the answers that ours has sampled; answers whose reward is missing have NaN."""
        rollout = self.stage._rollout
        assert rollout is not None
        scores = None
        if None in rollout.scores:
            scores = torch.tensor([float("nan") if score is None else score for score in rollout.scores])
        given = plain_ppo.Rollout(
            [rollout.of(n).ids for n in range(ANSWERS)],
            [answer.ids for answer in rollout.answers],
            [n // rollout.samples for n in range(ANSWERS)],
            scores,
        )
        experience = self.plain.score(given)
        return self.plain.learn(experience, self.order(number)), experience


def moved(it: Backbone, role: Role, seed: int) -> None:
    """Random weights, other than 0 in all tensors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in it.parameters(role):
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.03)


def backbone() -> Backbone:
    """The built-in model in fp32; POLICY, its frozen REFERENCE and REWARD all differ."""
    options = ModelOptions.model_validate({"name": "tiny", "quantization": "none", "dtype": "float32"})
    it = Backbone(load_model(options, device="cpu"), POLICY, seed=0)
    moved(it, Role.POLICY, 1)
    it.fix_reference("adapter")
    it.add(Role.REWARD, REWARD)
    moved(it, Role.REWARD, 2)
    moved(it, Role.POLICY, 3)
    return it


def recipe(options: Mapping[str, Any]) -> PPORecipe:
    """Eight answers a round, two passes over them in minibatches of four, at a temperature other than 1."""
    settings = {
        "rollouts": ANSWERS,
        "samples": 1,
        "max_new_tokens": NEW_TOKENS,
        "passes": 2,
        "temperature": 1.2,
        "kl": 0.3,
        "target_kl": 0.5,
        "kl_horizon": 10,
        "update_kl": None,
        "clip": 0.05,
        **options,
    }
    train = small.train_options(batch_size=BATCH, learning_rate=RATE, adam_epsilon=1e-4, max_grad_norm=0.1)
    return PPORecipe(
        lora=POLICY,
        ppo=PPOOptions.model_validate(settings),
        train=PPOTrainOptions.model_validate(train.model_dump()),
    )


class Unsure:
    """A source of rewards that has none for some answers."""

    name = "unsure"
    weight = 0.5

    def __init__(self) -> None:
        self.errors = Errors(self.name)

    def __call__(self, episodes: Sequence[Any]) -> list[float | None]:
        for _ in range(2):
            self.errors.add(NoReward("unsure"))
        return [None if n in (1, 6) else float(n) for n in range(len(episodes))]

    def close(self) -> None:
        pass


def both(options: Mapping[str, Any], *, budget: int = 512, sources: Sequence[Any] = ()) -> Both:
    """Our stage on answers that are sampled once, and the plain one."""
    it, own = backbone(), recipe(options)
    renderer, kind = Renderer(it.loaded.tokenizer), prompts(NEW_TOKENS)
    read = rows.read(kind, own.data, str(PROMPTS))
    few = own.data.model_copy(update={"max_length": 256})
    rendered = rows.render(kind, read.rows[: ANSWERS // int(own.ppo.samples)], renderer, few)
    asked = [Asked(row, tree.root, {}) for row, tree in rendered.examples]
    shared = TokenBudget(budget)
    collector = Collector(
        it, renderer, own.ppo, model_reward=SCORES, text_rewards=sources, budget=shared, share_prompts=True
    )
    stage = PPO(it, own, asked, collector, HeldOut([], [], None, 0), budget=shared)
    answers = collector.sample(asked, stage.samples, 5)
    collector.sample = lambda *_, **__: answers
    stage.asked = lambda number: asked
    engine = Engine(Accelerator(cpu=True), it.parameters(Role.POLICY), own.train, 100, others=stage.groups())
    return Both(stage, engine, plain(stage, renderer))


def plain(stage: PPO, renderer: Renderer) -> PlainPPO:
    """Four models of transformers and PEFT with the weights of our roles."""
    it, own = stage.backbone, stage.recipe
    policy = adapted(it, Role.POLICY, POLICY)
    reward = adapted(it, Role.REWARD, REWARD).requires_grad_(False)
    options, train = own.ppo, own.train
    settings = Settings(
        advantage=options.advantage,
        kl_in=options.kl_in
        if options.kl_in != "auto"
        else "loss"
        if options.advantage == "grpo"
        else "reward",
        kl=options.kl,
        target_kl=options.target_kl,
        kl_horizon=float(options.kl_horizon),
        temperature=options.temperature,
        clip=options.clip,
        gae_lambda=options.gae_lambda,
        value_weight=options.value_weight,
        missing_stop=options.missing_stop,
        reward_clip=SCORES.clip,
        reward_mean=SCORES.mean,
        reward_std=SCORES.deviation,
        update_kl=options.update_kl,
        stop_ids=renderer.stop_ids,
        learning_rate=RATE,
        value_learning_rate=options.value_learning_rate,
        betas=(train.adam_beta1, train.adam_beta2),
        epsilon=train.adam_epsilon,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
    )
    head = nn.Linear(1, 1) if stage.value_head is None else copied(stage.value_head)
    models = Models(
        policy=policy,
        reference=adapted(it, Role.REFERENCE, POLICY).requires_grad_(False),
        reward=reward,
        reward_head=it.adapter_tensors(Role.REWARD)["score.weight"],
        value=policy if options.value == "policy" else reward,
        value_head=head,
    )
    return PlainPPO(models, settings, forward_rows=3)


def adapted(it: Backbone, role: Role, shape: LoraOptions) -> nn.Module:
    """A copy of the base with a role's adapter, by transformers and PEFT."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from lite_align.model.folder import locate

    base = AutoModelForCausalLM.from_pretrained(locate("tiny"), dtype=torch.float32)
    config = LoraConfig(
        r=shape.rank, lora_alpha=shape.alpha, target_modules=list(shape.targets), task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, config)
    values = it.adapter_tensors(role)
    with torch.no_grad():
        for name, parameter in trained(model).items():
            parameter.copy_(values[name])
    return model


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's weights by their names in PEFT's file."""
    return {n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}


def copied(head: ValueHead) -> nn.Module:
    """A value head as plain layers."""
    out = nn.Linear(len(head.weight), 1)
    out.weight.data, out.bias.data = head.weight.data[None].clone(), head.bias.data.clone()
    if head.hidden_weight is None or head.hidden_bias is None:
        return out
    inner = nn.Linear(head.hidden_weight.shape[1], len(head.hidden_weight))
    inner.weight.data, inner.bias.data = head.hidden_weight.data.clone(), head.hidden_bias.data.clone()
    return nn.Sequential(inner, nn.Tanh(), out)


def apart(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, float]:
    """How far figures are apart, each relative to what is larger, 1 or the figure."""
    return {name: abs(ours[name] - value) / max(1.0, abs(value)) for name, value in theirs.items()}


def columns(stage: PPO, experience: Experience) -> dict[str, tuple[Tensor, Tensor]]:
    """What each token has, in ours and in the plain one."""
    rollout, own = stage._rollout, stage._columns
    assert rollout is not None
    assert own is not None
    ours = {"log-probs": rollout.logps, "rewards": own.rewards, "advantages": own.advantages}
    theirs = {
        "log-probs": experience.old,
        "rewards": experience.rewards,
        "advantages": experience.advantages,
    }
    if rollout.values is not None and own.returns is not None:
        ours |= {"values": rollout.values, "returns": own.returns}
        theirs |= {"values": experience.values, "returns": experience.returns}
    kept = experience.mask
    return {name: (rollout.ragged.padded(ours[name])[kept], theirs[name][kept]) for name in ours}


def largest(of: Both, number: int) -> dict[str, float]:
    """A round of both: how far each figure, each column and the weights are apart."""
    ours = of.ours(number)
    theirs, experience = of.theirs(number)
    assert len(theirs) >= 12
    found = apart(ours, theirs)
    for name, (one, other) in columns(of.stage, experience).items():
        found[name] = float(((one - other).abs() / other.abs().clamp(min=1)).max())
    weights = trained(of.plain.models.policy)
    named = of.stage.backbone.adapter_tensors(Role.POLICY)
    assert weights.keys() == named.keys()
    found["adapter"] = max(float((weights[name].detach() - named[name]).abs().max()) for name in named)
    if of.head is not None:
        other = copied(of.head).state_dict()
        own = of.plain.models.value_head.state_dict()
        found["value head"] = max(float((own[name] - other[name]).abs().max()) for name in other)
    return found


def rounds(of: Both) -> list[dict[str, float]]:
    """Rounds in which everything agrees; what ours has logged."""
    for number in range(1, ROUNDS + 1):
        found = largest(of, number)
        assert max(found.values()) <= 1e-5, (number, found)
    return of.logged


@pytest.mark.parametrize("case", CASES)
def test_three_rounds_agree_with_a_plain_ppo(case: str):
    of = both(CASES[case])
    start = of.stage.backbone.adapter_tensors(Role.POLICY)
    logged = rounds(of)
    now = of.stage.backbone.adapter_tensors(Role.POLICY)
    # Much has happened: weights have moved far more than they may differ, and everything was clipped somewhere.
    assert all((now[name] - start[name]).abs().max() > 100 * 1e-5 for name in now)
    assert {row["objective/stop_rate"] for row in logged} <= {n / ANSWERS for n in range(1, ANSWERS)}
    assert max(row["policy/clip_fraction"] for row in logged) > 0
    assert max(row.get("value/clip_fraction", 1.0) for row in logged) > 0
    assert any(row["policy/skipped"] for row in logged) == (case == "a round ends early")
    assert len({row["objective/beta"] for row in logged}) == ROUNDS


def test_answers_without_a_reward_take_no_part():
    logged = rounds(both(CASES["gae, probe"], sources=[Unsure()]))
    assert [row["reward/errors"] for row in logged] == [2.0] * ROUNDS


def test_how_answers_fall_into_passes_changes_nothing():
    of = both(CASES["rloo"], budget=64)
    found = largest(of, 1)
    assert max(found.values()) <= 1e-5, found


# What must be noticed.


def unmasked(values: Tensor, mask: Tensor) -> Tensor:
    return values.mean()


def unshifted(values: Tensor, mask: Tensor) -> Tensor:
    return values * mask / values[mask].std(unbiased=False)


@pytest.mark.parametrize(("name", "wrong"), [("masked_mean", unmasked), ("whitened", unshifted)])
def test_wrong_mathematics_is_noticed(monkeypatch: pytest.MonkeyPatch, name: str, wrong: Any):
    monkeypatch.setattr(plain_ppo, name, wrong)
    assert max(largest(both(CASES["gae, probe"]), 1).values()) > 1e-3


def test_log_probs_at_another_temperature_are_noticed(monkeypatch: pytest.MonkeyPatch):
    own = plain_ppo.token_logps
    monkeypatch.setattr(
        plain_ppo, "token_logps", lambda model, rows, _, **more: own(model, rows, 0.7, **more)
    )
    assert max(largest(both(CASES["gae, probe"]), 1).values()) > 1e-3
