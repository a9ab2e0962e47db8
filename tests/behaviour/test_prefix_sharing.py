"""Packed trees against separate, unpadded rows on transformers' own attention: log-probs and LoRA gradients."""

import copy
import random
from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from lite_align.data.forest import Batch, batch, grow
from lite_align.data.types import Rendered
from lite_align.model import attention
from lite_align.model.attention import Kernel, KernelKind, can_share

# transformers 5.23 renamed what peft 0.21 and transformers 5.17 call so; drop this with both.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`(is_gradient_checkpointing|gradient_checkpointing_enable)` is deprecated:FutureWarning"
)

WINDOW = 6  # shorter than most roots, so that windows end in the root, and in the leaf

SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}

ARCHITECTURES = {
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "qwen2, window": Qwen2Config(**SIZES, **SLIDING, use_sliding_window=True),
    "qwen3": Qwen3Config(**SIZES, head_dim=16),
    "mistral, window": MistralConfig(**SIZES, sliding_window=WINDOW),
    "gemma2, window, softcap": Gemma2Config(
        **SIZES, **SLIDING, head_dim=16, query_pre_attn_scalar=16, attn_logit_softcapping=2.0
    ),
    "gemma3, window": Gemma3TextConfig(**SIZES, **SLIDING, head_dim=16, query_pre_attn_scalar=16),
    "phi3": Phi3Config(**SIZES),
    "granite": GraniteConfig(**SIZES, logits_scaling=4.0, attention_multiplier=0.2),
    "cohere": CohereConfig(**SIZES, logit_scale=0.25),
    "cohere2, window": Cohere2Config(**SIZES, **SLIDING, logit_scale=0.25),
    "olmo2": Olmo2Config(**SIZES),
    "smollm3": SmolLM3Config(**SIZES),
}


def forest(leaf_counts: tuple[int, ...] = (1, 2, 4), pad_to: int = 16) -> tuple[list[list[Rendered]], Batch]:
    """Trees of these numbers of leaves, with roots of 5 to 20 and leaves of 1 to 14 tokens."""
    source = random.Random(0)
    groups = []
    for count in leaf_counts:
        prompt = [source.randrange(3, 128) for _ in range(source.randint(5, 20))]
        answers = [[source.randrange(3, 128) for _ in range(source.randint(1, 14))] for _ in range(count)]
        groups.append(
            [
                Rendered((*prompt, *answer), (False,) * len(prompt) + (True,) * len(answer))
                for answer in answers
            ]
        )
    return groups, batch([grow(n, group) for n, group in enumerate(groups)], pad_to=pad_to)


def model_of(config, implementation: str):
    """A model with random LoRA on all linear layers, the same for every implementation."""
    attention.register()
    torch.manual_seed(0)
    # from_config writes the implementation into the config that it is given.
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=implementation)
    torch.manual_seed(1)
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, lora_dropout=0.0)
    return get_peft_model(model, lora).train()


def gradients(model) -> dict[str, torch.Tensor]:
    found = {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    assert found
    assert all(gradient.abs().max() > 0 for gradient in found.values())
    return found


def pull_apart(leaf_logps: torch.Tensor) -> torch.Tensor:
    """A loss in which every leaf has its own weight and sign."""
    weights = torch.linspace(-1.0, 1.3, len(leaf_logps))
    return (weights * leaf_logps).sum()


def separate(config, groups: list[list[Rendered]]):
    """Log-probs of trained tokens, leaf by leaf, and LoRA gradients, from rows of their own."""
    model = model_of(config, "eager")
    tokens, leaves = [], []
    for sequence in (sequence for group in groups for sequence in group):
        ids = torch.tensor([sequence.ids])
        logps = model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        logps = logps.gather(1, ids[0, 1:, None])[:, 0][torch.tensor(sequence.trained[1:])]
        tokens.append(logps.detach())
        leaves.append(logps.sum())
    pull_apart(torch.stack(leaves)).backward()
    return torch.cat(tokens), gradients(model)


def forward(model, row: Batch, the_plan) -> torch.Tensor:
    """Logits at the predicting positions."""
    return model(
        input_ids=row.input_ids,
        position_ids=row.position_ids,
        attention_mask=the_plan.mask,
        use_cache=False,
        plan=the_plan,
        logits_to_keep=row.predict,
    ).logits[0]


def packed(config, row: Batch, the_plan, prepare: Callable = lambda model: None):
    """The same from one packed row."""
    model = model_of(config, attention.NAME)
    prepare(model)
    logps = forward(model, row, the_plan).log_softmax(-1).gather(1, row.target[:, None])[:, 0]
    pull_apart(row.leaf_sum(logps)).backward()
    return logps.detach().index_select(0, row.term), gradients(model)


def differences(expected, got) -> tuple[float, float]:
    """Largest absolute difference of log-probs, and relative difference of all gradients together."""
    (logps, gradient), (other_logps, other_gradient) = expected, got
    assert gradient.keys() == other_gradient.keys()
    flat = torch.cat([gradient[name].flatten() for name in gradient])
    other = torch.cat([other_gradient[name].flatten() for name in gradient])
    return (logps - other_logps).abs().max().item(), ((flat - other).norm() / flat.norm()).item()


def plan_of(kind: KernelKind, row: Batch):
    return attention.plan(row, Kernel(kind, torch.float32, (WINDOW,)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_kernel_equals_separate_rows(name):
    config = ARCHITECTURES[name]
    assert can_share(config)
    groups, row = forest()
    expected = separate(config, groups)
    for kind in KernelKind:
        if kind is KernelKind.VARLEN and "softcap" in name:
            continue  # `choose` never gives it to such a model
        logps, gradient = differences(expected, packed(config, row, plan_of(kind, row)))
        assert logps <= 1e-5, kind
        assert gradient <= 1e-4, kind


@pytest.mark.parametrize("kind", list(KernelKind))
def test_gradient_checkpointing_changes_nothing(kind):
    config = ARCHITECTURES["mistral, window"]
    groups, row = forest()

    def checkpoint(model) -> None:
        model.gradient_checkpointing_enable({"use_reentrant": False})

    logps, gradient = differences(
        separate(config, groups), packed(config, row, plan_of(kind, row), checkpoint)
    )
    assert logps <= 1e-5
    assert gradient <= 1e-4


@pytest.mark.parametrize("kind", list(KernelKind))
def test_a_broken_plan_is_noticed(kind):
    # A test of the test above: the second leaf of each tree also sees the first, which stands before it.
    config = ARCHITECTURES["llama"]
    groups, row = forest((2, 2))
    segments = tuple(
        segment._replace(shared_stop=segment.start) if segment.shared_stop > segment.shared_start else segment
        for segment in row.segments
    )
    keys = [
        torch.cat(
            (
                torch.arange(segment.shared_start, segment.shared_stop),
                torch.arange(segment.start, segment.stop),
            )
        )
        for segment in segments
    ]
    cu_k = torch.tensor([0, *(len(key) for key in keys)]).cumsum(0).to(torch.int32)
    broken = copy.copy(row)
    for field, value in {
        "segments": segments,
        "kv_index": torch.cat(keys),
        "cu_k": cu_k,
        "max_k": max(map(len, keys)),
    }.items():
        object.__setattr__(broken, field, value)
    logps, gradient = differences(separate(config, groups), packed(config, row, plan_of(kind, broken)))
    assert logps > 1e-3
    assert gradient > 1e-3


@pytest.mark.parametrize("kind", list(KernelKind))
@pytest.mark.parametrize("name", ["llama", "mistral, window"])
def test_no_leaf_sees_its_sibling_and_no_tree_its_neighbour(name, kind):
    _, row = forest((2, 4, 1))
    model = model_of(ARCHITECTURES[name], attention.NAME).get_base_model().model.eval()
    the_plan = plan_of(kind, row)

    def hidden(ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(
                input_ids=ids,
                position_ids=row.position_ids,
                attention_mask=the_plan.mask,
                use_cache=False,
                plan=the_plan,
            ).last_hidden_state[0]

    before = hidden(row.input_ids)
    places = row.leaf_positions()
    for number in (1, 3):  # the last leaf of the first tree, a middle leaf of the second
        own = places[number][-row.segments[number].queries :]
        changed = row.input_ids.clone()
        changed[0, own] = (changed[0, own] + 1) % 128
        after = hidden(changed)
        elsewhere = torch.ones(len(before), dtype=torch.bool)
        elsewhere[own] = False
        assert torch.equal(before[elsewhere], after[elsewhere])
        assert not torch.equal(before[own[-1]], after[own[-1]])
