"""Loading: choices, refusals, and the facts about 4-bit layers that everything after rests on."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from torch import nn
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from lite_align.errors import ModelError
from lite_align.model import attention, load
from lite_align.model.storage import weights_sha256
from lite_align.recipe import ModelOptions, SpeedOptions

# Embedding and head 2 * 384 * 64, final norm 64; a layer: q and o 64 * 64, k and v 64 * 32, three 64 * 128, 2 norms.
TINY_LLAMA = 2 * 384 * 64 + 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64)


@pytest.fixture
def copy(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


def change(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def loaded(folder: Path, **options: str) -> load.Loaded:
    return load.load_model(ModelOptions.model_validate({"name": str(folder), **options}), device="cpu")


@pytest.mark.parametrize(
    ("gib", "name"),
    [
        (80, "Qwen/Qwen2.5-7B-Instruct"),
        (15.6, "Qwen/Qwen2.5-7B-Instruct"),
        (11.7, "Qwen/Qwen3-4B-Instruct-2507"),
        (8, "Qwen/Qwen2.5-1.5B-Instruct"),
        (4, "Qwen/Qwen2.5-0.5B-Instruct"),
    ],
)
def test_auto_takes_the_largest_model_that_fits(gib: float, name: str):
    choice = load.choose(ModelOptions(), device="cuda", memory=int(gib * 2**30))
    assert choice.name == name
    assert f"{gib:.0f} GiB" in choice.reason


def test_auto_without_a_gpu_is_the_built_in_model_and_a_given_name_stays():
    assert load.choose(ModelOptions(), device="cpu").name == "tiny"
    assert load.choose(ModelOptions(name="mine"), device="cuda").name == "mine"


def test_the_built_in_model_loads_in_4_bits():
    tiny = load.load_model(ModelOptions(name="tiny", quantization="nf4"), device="cpu")
    assert tiny.parameters == load.parameter_count("tiny")
    assert tiny.tokenizer.chat_template


def test_parameters_are_counted_without_weights(copy: Path):
    (copy / "model.safetensors").unlink()
    assert load.parameter_count(str(copy)) == TINY_LLAMA
    change(copy, tie_word_embeddings=True)
    assert load.parameter_count(str(copy)) == TINY_LLAMA - 384 * 64


def test_defaults_on_a_cpu(tiny_llama: Path):
    it = loaded(tiny_llama)
    assert (it.quantization, it.dtype, it.parameters) == ("none", torch.float32, TINY_LLAMA)
    assert it.model.config._attn_implementation == attention.NAME
    assert it.model.training
    assert not any(parameter.requires_grad for parameter in it.model.parameters())
    assert it.notes == []
    assert set(it.identity) == {"base", "quantization", "dtype", "attention", "libraries"}


@pytest.mark.parametrize(("quantization", "kind"), [("nf4", Linear4bit), ("int8", Linear8bitLt)])
def test_quantised_layers_are_those_of_the_blocks_and_the_rest_keeps_its_dtype(
    tiny_llama: Path, quantization: str, kind: type
):
    it = loaded(tiny_llama, quantization=quantization, dtype="bfloat16")
    blocks = [m for m in it.model.get_submodule("model.layers").modules() if isinstance(m, nn.Linear)]
    assert len(blocks) == 2 * 7
    assert all(isinstance(module, kind) for module in blocks)
    # prepare_model_for_kbit_training would make all of these fp32.
    assert it.model.get_input_embeddings().weight.dtype == torch.bfloat16
    assert it.model.get_output_embeddings().weight.dtype == torch.bfloat16
    assert it.model.get_submodule("model.norm").weight.dtype == torch.bfloat16


def test_nf4_is_doubly_quantised_and_computes_in_the_dtype(tiny_llama: Path):
    for dtype, expected in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        it = loaded(tiny_llama, quantization="nf4", dtype=dtype)
        layer = it.model.get_submodule("model.layers.0.mlp.up_proj")
        assert layer.weight.quant_state.nested
        assert layer.weight.quant_state.quant_type == "nf4"
        assert layer(torch.ones(1, 64, dtype=expected)).dtype == expected
        assert layer.compute_dtype == expected


def embedding_gradient(model) -> torch.Tensor:
    """Gradient of the logits with respect to the embedded tokens: it passes through every layer."""
    embedded = torch.randn(1, 8, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = model(inputs_embeds=embedded, use_cache=False).logits
    (logits * torch.linspace(-1, 1, logits.numel()).view(logits.shape)).sum().backward()
    return embedded.grad


def test_gradients_survive_an_eval_forward(tiny_llama: Path):
    it = loaded(tiny_llama, quantization="nf4")
    layers = [module for module in it.model.modules() if isinstance(module, Linear4bit)]
    assert layers
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)
    before = embedding_gradient(it.model)
    it.model.eval()
    with torch.no_grad():
        it.model(input_ids=torch.arange(8)[None])
    it.model.train()
    assert torch.equal(embedding_gradient(it.model), before)


def test_dropout_is_switched_off_and_said(copy: Path):
    change(copy, attention_dropout=0.1)
    it = loaded(copy)
    assert it.model.config.attention_dropout == 0
    assert it.notes == ["attention_dropout 0.1 of the model's config is set to 0"]
    assert attention.can_share(it.model.config)


def test_dropout_modules_are_switched_off(tmp_path: Path, tokenizer):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=384, n_positions=64, n_embd=64, n_layer=1, n_head=2, resid_pdrop=0.3)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = loaded(tmp_path).model
    modules = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    assert modules
    assert all(module.p == 0 for module in modules)


def test_a_configuration_is_not_changed_by_loading(tiny_llama: Path):
    config = AutoConfig.from_pretrained(tiny_llama)
    before = config.to_dict()
    load.count_parameters(config)
    assert config.to_dict() == before


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}, "code from its own repository"),
        ({"model_type": "own"}, "does not know"),
        ({"model_type": "vit"}, "not a causal language model"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "already quantised"),
        ({"num_hidden_layers": 3}, "weights of .* do not belong"),
        ({"hidden_size": "wide"}, "cannot be used"),
    ],
)
def test_models_that_cannot_be_used(copy: Path, values: dict, message: str):
    change(copy, **values)
    with pytest.raises(ModelError, match=message) as caught:
        loaded(copy)
    assert caught.value.remedy


def test_sizes_that_4_bits_on_a_cpu_cannot_take(copy: Path):
    change(copy, intermediate_size=130)
    with pytest.raises(ModelError, match="130 inputs") as caught:
        loaded(copy, quantization="nf4")
    assert "model.quantization=none" in caught.value.remedy


# The last one is JSON with a merge of unknown tokens, for which `tokenizers` raises a bare Exception.
BROKEN_MERGE = (
    '{"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}'
)


@pytest.mark.parametrize("content", ["{}", '{"version": "1.0"', BROKEN_MERGE])
def test_a_tokenizer_that_cannot_be_read(copy: Path, content: str):
    (copy / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match="tokenizer"):
        loaded(copy)


def test_truncated_weights(copy: Path):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be loaded"):
        loaded(copy)


def test_the_hash_of_weights_in_memory_sees_every_layer(tiny_llama: Path):
    it = loaded(tiny_llama, quantization="nf4")
    before = weights_sha256(it.model)
    assert before == weights_sha256(loaded(tiny_llama, quantization="nf4").model)
    it.model.get_submodule("model.layers.1.mlp.down_proj").weight.data[5] ^= 1
    changed = weights_sha256(it.model)
    assert changed != before
    it.model.get_submodule("model.layers.1.mlp.down_proj").weight.data[5] ^= 1
    assert weights_sha256(it.model) == before
    it.model.get_submodule("model.layers.1.mlp.down_proj").weight.quant_state.absmax[0] += 1
    assert weights_sha256(it.model) not in (before, changed)


def test_transformers_is_as_loud_afterwards_as_before(tiny_llama: Path, capfd: pytest.CaptureFixture[str]):
    before = (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled())
    loaded(tiny_llama)
    assert capfd.readouterr() == ("", "")
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before


def test_subnormal_numbers_are_flushed_on_a_cpu(tiny_llama):
    try:
        torch.set_flush_denormal(False)
        assert (torch.full((64,), 1e-30) * 1e-12).abs().sum() > 0  # subnormal, and kept
        load.load_model(ModelOptions(name=str(tiny_llama)), device="cpu")
        assert (torch.full((64,), 1e-30) * 1e-12).abs().sum() == 0
    finally:
        torch.set_flush_denormal(True)


def test_a_model_is_placed_as_the_recipe_asks(tiny_llama: Path):
    options = ModelOptions(name=str(tiny_llama), quantization="nf4")

    def nested(loaded: load.Loaded) -> set[bool]:
        layers = [m for m in loaded.model.modules() if isinstance(m, Linear4bit)]
        return {layer.weight.quant_state.nested for layer in layers}

    as_it_is = load.read(options, device="cpu")
    assert load.place(as_it_is, SpeedOptions()) is as_it_is
    assert nested(as_it_is) == {True}
    placed = load.place(as_it_is, SpeedOptions(unnest_scales="on", offload_embeddings="on"))
    assert nested(placed) == {False}
    assert placed.embedding is not None
