import copy
import subprocess
import sys

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    FalconH1Config,
    Gemma2Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
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
from lite_align.model.kernels import MaskedPlan
from lite_align.model.tiled import TiledPlan
from lite_align.model.varlen import VarlenPlan

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
    assert kernel.reason == "tiles, made for the CPU"
    assert isinstance(plan(row(), kernel), TiledPlan)
    assert isinstance(plan(row()), TiledPlan)


@pytest.fixture
def card(monkeypatch):
    """Pretend to have a card of a compute capability, and a torch that was built with flash attention."""

    def pretend(*capability, flash=True):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: flash)

    return pretend


BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.parametrize(
    ("config", "dtype", "capability", "kind", "reason"),
    [
        (LlamaConfig(), BF16, (8, 0), KernelKind.VARLEN, "bfloat16, compute capability 8.0"),
        (LlamaConfig(), FP16, (12, 0), KernelKind.VARLEN, "float16, compute capability 12.0"),
        (LlamaConfig(head_dim=256), BF16, (8, 9), KernelKind.VARLEN, "flash"),
        (LlamaConfig(head_dim=208), BF16, (9, 0), KernelKind.VARLEN, "flash"),
        (LlamaConfig(head_dim=208), BF16, (8, 9), KernelKind.MASKED, "208 cannot be trained"),
        (LlamaConfig(head_dim=208), BF16, (12, 0), KernelKind.MASKED, "208 cannot be trained"),
        (LlamaConfig(), FP16, (7, 5), KernelKind.MASKED, "compute capability 7.5 is below 8.0"),
        (LlamaConfig(), FP32, (9, 0), KernelKind.MASKED, "float32"),
        (LlamaConfig(head_dim=512), BF16, (9, 0), KernelKind.MASKED, "head size 512"),
        (Gemma4TextConfig(), BF16, (9, 0), KernelKind.MASKED, "head size 512"),
        (DeepseekV3Config(), BF16, (9, 0), KernelKind.MASKED, "values have a head size"),
        (LlamaConfig(head_dim=20), BF16, (9, 0), KernelKind.TILED, "head size 20"),
        (Gemma2Config(), BF16, (9, 0), KernelKind.TILED, "capped at 50"),
    ],
)
def test_cuda_takes_the_fastest_that_can_run(card, config, dtype, capability, kind, reason):
    card(*capability)
    kernel = choose(config, "cuda", dtype)
    assert kernel.kind is kind
    assert reason in kernel.reason
    wanted = {KernelKind.VARLEN: VarlenPlan, KernelKind.MASKED: MaskedPlan, KernelKind.TILED: TiledPlan}
    assert isinstance(plan(row(), kernel), wanted[kind])


def test_a_torch_without_flash_attention_takes_the_mask(card):
    card(9, 0, flash=False)
    kernel = choose(LlamaConfig(), "cuda", BF16)
    assert kernel.kind is KernelKind.MASKED
    assert "built without flash attention" in kernel.reason


@pytest.mark.parametrize(
    ("config", "windows"),
    [
        (MistralConfig(sliding_window=77), (77,)),
        (Gemma3TextConfig(sliding_window=77), (77,)),
        (LlamaConfig(), ()),
        (Qwen2Config(use_sliding_window=False, sliding_window=77), ()),
        # Windows are on, but begin behind the last layer.
        (
            Qwen2Config(use_sliding_window=True, sliding_window=77, num_hidden_layers=2, max_window_layers=2),
            (),
        ),
    ],
    ids=lambda value: value if isinstance(value, tuple) else value.model_type,
)
def test_the_masked_kernel_knows_the_windows(card, config, windows):
    card(7, 5)
    assert choose(config, "cuda", FP16) == Kernel(KernelKind.MASKED, FP16, windows)


def test_a_kernel_can_be_a_key_whatever_its_reason():
    one, other = Kernel(KernelKind.TILED, reason="this"), Kernel(KernelKind.TILED, reason="that")
    assert {one: 1}[other] == 1


def test_a_loaded_model_is_proved():
    model = build(LlamaConfig(**SIZES))
    for kind in KernelKind:
        assert shares_exactly(model.model, Kernel(kind), 128, 1e-4)


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
def test_regional_compile_makes_one_graph_for_each_kind_of_layer():
    # Six rows of different shapes through layers with and without a window, `fullgraph` in both passes.
    script = ["-m", "tests.model.compiled_layers", "cpu", "aot_eager", *KernelKind]
    done = subprocess.run([sys.executable, *script], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines()[-len(KernelKind) :]]
    assert [(kind, int(graphs)) for kind, graphs, _ in lines] == [(kind, 2) for kind in KernelKind]
    assert max(float(error) for _, _, error in lines) < 1e-6
