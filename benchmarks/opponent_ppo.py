"""The opponent of the PPO benchmark: four models from transformers and peft, with the best settings and their reasons.

No library that is installed here trains PPO on one GPU with an adapter (TRL has removed it), so the opponent is
`plain_ppo`, held and driven as those libraries did: policy, reference, reward and value model each have a copy of the
base, answers come from `model.generate`.
"""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import machine, opponent, workload
from benchmarks.opponent import VARIANTS, Flag, Variant
from benchmarks.plain_ppo import Models, PlainPPO, Rollout, Settings
from benchmarks.sides import Side, Work, parts
from benchmarks.workload import ALPHA, BATCH, NEW_TOKENS, PASSES, PPO_RATE, RANK, ROLLOUTS

FLAGS = {
    "attn_implementation": Flag(
        "eager", "a fifth faster than sdpa, whose backward pass in bf16 is slow on a CPU"
    ),
    "gradient_checkpointing": Flag(False, "nothing is computed twice; the memory is there"),
    "generation_rows": Flag(ROLLOUTS, "all prompts of a round in one batch: fewest passes"),
    "use_cache": Flag(True, "in generation each token is computed once"),
    "answers_alone": Flag(True, "the head sees the answers, not the prompts (logits_to_keep)"),
    "sorted_by_length": Flag(True, "prompts of like length stand in one minibatch: least padding"),
    "forward_rows": Flag(BATCH, "more rows without gradients would hold more logits and gain no time"),
    "dropout": Flag(0.0, "as here; ratios must be 1 before the first update"),
    "train_mode": Flag(
        True, "in eval mode bitsandbytes packs 4-bit weights for single tokens: slower for rows"
    ),
    "lean_collection": Flag(True, "no graph is kept where nothing is trained"),
}
"""What the opponent does, and why that is the best or the same for both."""


def sides(precision: str) -> dict[str, Side]:
    """All variants for a precision, by name."""
    named = {f"four models, {name(variant)}": variant for variant in VARIANTS[precision]}
    return {text: Side("benchmarks.opponent_ppo", asdict(variant)) for text, variant in named.items()}


def name(variant: Variant) -> str:
    """How a variant holds the base, in words."""
    return variant.name.removeprefix("TRL, ")


def load(variant: Variant, folder: str) -> nn.Module:
    """A frozen copy of the base."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32 if variant.base == "fp32" else torch.bfloat16,
        attn_implementation=FLAGS["attn_implementation"].value,
        quantization_config=opponent.quantization() if variant.base == "nf4" else None,
    )
    return model.requires_grad_(False).train(FLAGS["train_mode"].value)


def with_adapter(base: nn.Module) -> nn.Module:
    """A model with a trained adapter of the shape that both sides have."""
    from peft import LoraConfig, get_peft_model

    shape = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=FLAGS["dropout"].value,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, shape).train(FLAGS["train_mode"].value)


def four_models(variant: Variant, folder: str) -> Models:
    """Policy, reference, reward and value model, each with a copy of the base of its own."""
    policy = with_adapter(load(variant, folder))
    size = policy.config.hidden_size
    head = nn.Linear(size, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return Models(
        policy=policy,
        reference=load(variant, folder),
        reward=with_adapter(load(variant, folder)).requires_grad_(False),
        reward_head=torch.randn(size) / (size + 1) ** 0.5,
        value=with_adapter(load(variant, folder)),
        value_head=head,
    )


def precision(variant: Variant) -> AbstractContextManager[Any]:
    """The context of every pass."""
    return torch.autocast("cpu", torch.bfloat16) if variant.autocast else nullcontext()


@torch.no_grad()
def sample(model: nn.Module, prompts: Sequence[Sequence[int]], stop: int, settings: Settings) -> Rollout:
    """One answer to every prompt, drawn from the policy itself."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    attended = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    output = model.generate(
        input_ids=ids,
        attention_mask=attended,
        do_sample=True,
        temperature=settings.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=stop,
        pad_token_id=0,
        use_cache=FLAGS["use_cache"].value,
    )
    answers = [until(row, stop) for row in output[:, longest:].tolist()]
    return Rollout(prompts, answers, range(len(prompts)))


def until(row: Sequence[int], stop: int) -> list[int]:
    """A row up to its first stop token, which is kept."""
    return list(row[: row.index(stop) + 1] if stop in row else row)


def prompts_of(work: Work) -> tuple[list[list[int]], int]:
    """The prompts as token ids, as the template asks for an answer, and the stop token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(work.model)
    rows = workload.read_rows(Path(work.rows))
    made = [
        tokenizer.apply_chat_template(
            row["prompt"], tokenize=True, add_generation_prompt=True, return_dict=False
        )
        for row in rows
    ]
    return made, tokenizer.eos_token_id


def minibatches(rollout: Rollout) -> list[range]:
    """The minibatches of a round: neighbours, which are of like length, in every pass."""
    return [
        range(start, min(start + BATCH, len(rollout.prompts)))
        for _ in range(PASSES)
        for start in range(0, len(rollout.prompts), BATCH)
    ]


def measure(work: Work, settings: dict[str, Any]) -> dict[str, float]:
    """Rounds over all prompts: CPU seconds an episode by part, and memory at the peak above the start."""
    import peft  # noqa: F401  what is imported is counted on neither side
    import transformers
    import transformers.models.llama.modeling_llama

    transformers.logging.set_verbosity_error()
    variant = Variant(**settings)
    prompts, stop = prompts_of(work)
    if FLAGS["sorted_by_length"].value:
        prompts = [
            prompt
            for start in range(0, len(prompts), ROLLOUTS)
            for prompt in sorted(prompts[start : start + ROLLOUTS], key=len)
        ]
    held = machine.resident_bytes()
    machine.reset_peak()
    torch.manual_seed(42)
    # Nothing is skipped on either side, however far the policy moves.
    own = Settings(learning_rate=PPO_RATE, value_learning_rate=PPO_RATE, stop_ids=(stop,), update_kl=None)
    trainer = PlainPPO(
        four_models(variant, work.model),
        own,
        precision=partial(precision, variant),
        forward_rows=FLAGS["forward_rows"].value,
    )
    rounds, tokens = [], 0
    for start in range(0, len(prompts), ROLLOUTS):
        clock = [time.process_time()]
        with precision(variant):
            rollout = sample(trainer.models.policy, prompts[start : start + ROLLOUTS], stop, own)
        clock.append(time.process_time())
        experience = trainer.score(rollout)
        clock.append(time.process_time())
        trainer.learn(experience, minibatches(rollout))
        clock.append(time.process_time())
        rounds.append([after - before for before, after in zip(clock, clock[1:])])
        tokens += sum(map(len, rollout.answers))
    return {
        **parts(rounds, ROLLOUTS),
        "tokens_per_example": tokens / len(prompts),
        "memory": machine.peak_bytes() - held,
    }
