import copy
import subprocess
import sys

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    Gemma2Config,
    GptOssConfig,
    JambaConfig,
    Lfm2Config,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MptConfig,
    Qwen2Config,
    Qwen3NextConfig,
)

from lite_align.data.forest import batch, grow
from lite_align.data.types import Rendered
from lite_align.errors import ModelError
from lite_align.model import attention
from lite_align.model.attention import NAME, Kernel, KernelKind, can_share, choose, plan, shares_exactly
from lite_align.model.kernels import MaskedPlan, VarlenPlan
from lite_align.model.tiled import TiledPlan

SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def build(config, implementation=NAME):
    attention.register()
    torch.manual_seed(0)
    # from_config writes the implementation into the config that it is given.
    return AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=implementation).eval()


def row(pad_to=1):
    first = [
        Rendered((5, 6, 7, 8, 9), (False, False, False, True, True)),
        Rendered((5, 6, 7, 11), (False,) * 4),
    ]
    return batch([grow(0, first), grow(1, [Rendered((20, 21, 22), (False, True, True))])], pad_to=pad_to)


def hidden(model, row, the_plan, **kwargs):
    return model.model(
        input_ids=row.input_ids, position_ids=row.position_ids, use_cache=False, plan=the_plan, **kwargs
    ).last_hidden_state[0]


def test_leaves_equal_separate_rows():
    model = build(LlamaConfig(**SIZES))
    batch = row(pad_to=4)
    with torch.no_grad():
        together = hidden(model, batch, plan(batch), attention_mask=plan(batch).mask)
        for place in batch.leaf_positions():
            alone = model.model(input_ids=batch.input_ids[:, place], use_cache=False).last_hidden_state[0]
            assert (together[place] - alone).abs().max() < 1e-5


def test_the_stand_in_mask_only_saves_work():
    model, batch = build(LlamaConfig(**SIZES)), row()
    with torch.no_grad():
        with_mask = hidden(model, batch, plan(batch), attention_mask=plan(batch).mask)
        assert torch.equal(with_mask, hidden(model, batch, plan(batch)))


def test_a_built_in_implementation_misreads_restarted_positions():
    # The trap that the module warns of; the day transformers changes this, the warning can go.
    batch = row()
    place = batch.leaf_positions()[1]
    model = build(LlamaConfig(**SIZES), "sdpa")
    with torch.no_grad():
        together = model.model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
        alone = model.model(input_ids=batch.input_ids[:, place], use_cache=False)
    last = together.last_hidden_state[0, place[-1]] - alone.last_hidden_state[0, -1]
    assert last.abs().max() > 1e-3


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SIZES),
        MistralConfig(**SIZES, sliding_window=4),
        Gemma2Config(**SIZES, head_dim=8, sliding_window=4, attn_logit_softcapping=5.0),
    ],
    ids=lambda config: config.model_type,
)
@pytest.mark.filterwarnings("ignore:.*Casting complex values.*")
def test_without_a_plan_generation_is_ordinary(config):
    # Left padding, a cache and greedy decoding: tokens equal those of the stock implementation.
    ids = torch.tensor([[0, 0, 0, 5, 6, 7], [8, 9, 10, 11, 12, 13]])
    mask = (ids != 0).long()
    settings = {"max_new_tokens": 12, "do_sample": False, "attention_mask": mask, "eos_token_id": None}
    stock = build(config, "eager")
    ours = build(config)
    assert torch.equal(ours.generate(ids, **settings), stock.generate(ids, **settings))
    with torch.no_grad():
        one, other = ours(ids, attention_mask=mask).logits, stock(ids, attention_mask=mask).logits
    assert (one[mask.bool()] - other[mask.bool()]).abs().max() < 1e-5


def call(**kwargs):
    batch = row()
    query = torch.zeros(1, 4, batch.input_ids.shape[1], 8)
    given = {"plan": plan(batch), **kwargs}
    return attention.shared_prefix_attention(torch.nn.Module(), query, query, query, None, **given)


def test_what_the_kernels_lack_is_refused():
    for name in ("s_aux", "position_bias", "cache", "something_new"):
        with pytest.raises(ModelError, match=name):
            call(**{name: torch.zeros(1)})
    with pytest.raises(ModelError, match="dropout"):
        call(dropout=0.1)
    batch = row()
    two = torch.zeros(2, 4, batch.input_ids.shape[1], 8)
    with pytest.raises(ModelError, match="2 rows"):
        attention.shared_prefix_attention(torch.nn.Module(), two, two, two, None, plan=plan(batch))


def test_harmless_arguments_pass():
    out, weights = call(position_ids=torch.zeros(1), use_cache=False, s_aux=None)
    assert out.shape == (1, row().input_ids.shape[1], 4, 8)
    assert weights is None


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (MambaConfig(), "recurrent"),
        (JambaConfig(), "recurrent"),
        (FalconH1Config(), "recurrent"),
        (Qwen3NextConfig(), "recurrent"),
        (Lfm2Config(layer_types=["conv", "full_attention"], num_hidden_layers=2), "recurrent"),
        (Llama4TextConfig(), "chunked_attention"),
        (GptOssConfig(), "sinks"),
        (MptConfig(), "replaced"),
        (LlamaConfig(attention_dropout=0.1), "attention_dropout"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.model_type,
)
def test_models_that_cannot_share_say_why(config, reason):
    sharing = can_share(config)
    assert not sharing
    assert reason in sharing.reason


@pytest.mark.parametrize("config", [LlamaConfig(), Qwen2Config(), MistralConfig(), Gemma2Config()])
def test_models_that_can_share(config):
    assert can_share(config)


def test_a_configuration_that_is_no_language_model():
    from transformers import ViTConfig

    assert "causal language model" in can_share(ViTConfig()).reason


def test_the_cpu_takes_tiles():
    kernel = choose(LlamaConfig(), "cpu", torch.bfloat16)
    assert kernel.kind is KernelKind.TILED
    assert isinstance(plan(row(), kernel), TiledPlan)
    assert isinstance(plan(row()), TiledPlan)


@pytest.mark.parametrize(
    ("config", "dtype", "capability", "kind"),
    [
        (LlamaConfig(), torch.bfloat16, (8, 0), KernelKind.VARLEN),
        (LlamaConfig(), torch.float16, (12, 0), KernelKind.VARLEN),
        (LlamaConfig(), torch.float16, (7, 5), KernelKind.MASKED),
        (LlamaConfig(), torch.float32, (9, 0), KernelKind.MASKED),
        (LlamaConfig(head_dim=512), torch.bfloat16, (9, 0), KernelKind.MASKED),
        (LlamaConfig(head_dim=20), torch.bfloat16, (9, 0), KernelKind.MASKED),
        (Gemma2Config(), torch.bfloat16, (9, 0), KernelKind.TILED),
    ],
)
def test_cuda_takes_the_fastest_that_can_run(monkeypatch, config, dtype, capability, kind):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    kernel = choose(config, "cuda", dtype)
    assert kernel.kind is kind
    wanted = {KernelKind.VARLEN: VarlenPlan, KernelKind.MASKED: MaskedPlan, KernelKind.TILED: TiledPlan}
    assert isinstance(plan(row(), kernel), wanted[kind])


def test_the_masked_kernel_knows_the_window(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    kernel = choose(MistralConfig(sliding_window=77), "cuda", torch.float16)
    assert kernel == Kernel(KernelKind.MASKED, torch.float16, (77,))


def test_a_loaded_model_is_proved():
    model = build(LlamaConfig(**SIZES))
    assert shares_exactly(model.model, Kernel(KernelKind.TILED), 128, 1e-4)
    assert shares_exactly(model.model, Kernel(KernelKind.MASKED), 128, 1e-4)


def test_a_model_that_counts_places_in_the_row_is_found_out():
    class Places(torch.nn.Module):
        """Adds a vector for the place in the row, whatever the position ids say."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = build(LlamaConfig(**SIZES)).model

        def forward(self, **kwargs):
            out = self.inner(**kwargs)
            out.last_hidden_state = (
                out.last_hidden_state + torch.arange(kwargs["input_ids"].shape[1])[:, None]
            )
            return out

    assert not shares_exactly(Places(), Kernel(KernelKind.TILED), 128, 1e-4)


@pytest.mark.slow
def test_regional_compile_has_no_graph_break():
    # In a process of its own: Dynamo keeps state, and its first use warns about things of its own.
    script = """
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from lite_align.data.forest import batch, grow
from lite_align.data.types import Rendered
from lite_align.model import attention
attention.register()
torch.set_num_threads(1)
torch.manual_seed(0)
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                     num_attention_heads=4, num_key_value_heads=2)
model = AutoModelForCausalLM.from_config(config, attn_implementation=attention.NAME)
def rows(n):
    leaves = [Rendered((5, 6, 7, *range(10, 12 + n)), (False,) * (5 + n)),
              Rendered((5, 6, 7, *range(30, 34 + 2 * n)), (False,) * (7 + 2 * n))]
    return batch([grow(0, leaves), grow(1, leaves[:1] * (1 + n))], pad_to=2)
def hidden(row):
    plan = attention.plan(row)
    out = model.model(input_ids=row.input_ids, position_ids=row.position_ids, attention_mask=plan.mask,
                      use_cache=False, plan=plan).last_hidden_state
    return out.detach(), torch.autograd.grad(out.square().sum(), list(model.model.parameters()))
plain = [hidden(rows(n)) for n in range(4)]
for layer in model.model.layers:
    layer.compile(fullgraph=True, dynamic=True, backend="aot_eager")
for n, (out, gradients) in enumerate(plain):
    other, others = hidden(rows(n))
    assert (out - other).abs().max() < 1e-5
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(gradients, others))
print("graphs", torch._dynamo.utils.counters["stats"]["unique_graphs"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) <= 2
