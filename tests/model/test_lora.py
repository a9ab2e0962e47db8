"""Adapters: equal to PEFT's in value, gradient and file, with fp32 masters."""

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Phi3Config

from lite_align.errors import ModelError
from lite_align.model import lora
from lite_align.model.load import load_model, skeleton
from lite_align.recipe import LoraOptions, ModelOptions

# PeftModel (peft 0.21) still asks for a name that transformers 5.23 renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

IDS = torch.arange(24)[None] * 7 % 384
SEVEN = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def base(folder: Path, quantization: str = "none", dtype: str = "float32"):
    options = ModelOptions.model_validate({"name": str(folder), "quantization": quantization, "dtype": dtype})
    return load_model(options, device="cpu").model


def adapted(model, options: LoraOptions | None = None, *, adapter: str = "policy", seed: int = 0):
    """Attach an adapter and give B random values, so that it does something."""
    options = options or LoraOptions(rank=4, alpha=6.0)
    targets = lora.find_targets(model, options) if not lora.layers(model) else SEVEN
    config = lora.attach(model, adapter, targets, options, base_name="base", seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for name, parameter in lora.parameters(model, adapter):
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1, generator=generator)
    return config


def logits_and_gradients(model, ids: torch.Tensor = IDS):
    """Logits, and the gradient of every adapter weight for an arbitrary function of them."""
    model.zero_grad()
    logits = model(input_ids=ids, use_cache=False).logits
    weights = torch.linspace(-1, 1, logits.numel()).view(logits.shape)
    (logits.float() * weights).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), gradients


# Rounding of 2^-24 (fp32) and 2^-9 (bf16) on the way through two layers and back.
@pytest.mark.parametrize(
    ("quantization", "dtype", "tolerance"),
    [
        ("none", "float32", 1e-5),
        ("nf4", "float32", 1e-5),
        ("none", "bfloat16", 2e-2),
        ("nf4", "bfloat16", 2e-2),
    ],
)
def test_values_and_gradients_equal_pefts(tiny_llama: Path, quantization: str, dtype: str, tolerance: float):
    ours = base(tiny_llama, quantization, dtype)
    adapted(ours)
    stock = base(tiny_llama, quantization, dtype)
    config = LoraConfig(r=4, lora_alpha=6, target_modules=SEVEN, task_type="CAUSAL_LM")
    peft_model = get_peft_model(stock, config, adapter_name="policy")
    peft_model.load_state_dict(
        {f"base_model.model.{n}": p for n, p in ours.named_parameters() if "lora_" in n}, strict=False
    )
    logits, gradients = logits_and_gradients(ours)
    expected, peft_gradients = logits_and_gradients(peft_model)
    assert (logits - expected).abs().max() <= tolerance * expected.abs().max()
    assert len(gradients) == 2 * 7 * 2
    for name, gradient in gradients.items():
        other = peft_gradients[f"base_model.model.{name}"]
        assert gradient.dtype == torch.float32
        assert (gradient - other).norm() <= tolerance * other.norm(), name


def test_one_layer_by_hand(tiny_llama: Path):
    """W = 0 leaves (alpha / r) B A x: with A = ones / 64, B = 2, alpha 6, r 4 and x = 1: 6 / 4 * 4 * 2 * 1 = 12."""
    model = base(tiny_llama)
    adapted(model)
    layer = model.get_submodule("model.layers.0.self_attn.q_proj")
    layer.base_layer.weight.data.zero_()
    layer.lora_A["policy"].weight.data.fill_(1 / 64)
    layer.lora_B["policy"].weight.data.fill_(2.0)
    assert torch.allclose(layer(torch.ones(2, 3, 64)), torch.full((2, 3, 64), 12.0))


def test_a_new_adapter_changes_nothing_and_is_fp32(tiny_llama: Path):
    model = base(tiny_llama, "nf4", "bfloat16")
    before = model(input_ids=IDS, use_cache=False).logits
    lora.attach(model, "policy", SEVEN, LoraOptions(), base_name="base", seed=0)
    assert torch.equal(model(input_ids=IDS, use_cache=False).logits, before)
    named = lora.parameters(model, "policy")
    assert len(named) == 2 * 7 * 2
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for _, parameter in named)
    assert not any(p.requires_grad for n, p in model.named_parameters() if "lora_" not in n)
    a = torch.cat([p.flatten() for n, p in named if "lora_A" in n and p.shape[1] == 64])
    # Uniform within 1 / sqrt(64): mean 0, standard deviation 0.125 / sqrt(3).
    assert a.abs().max() <= 0.125
    assert a.std().item() == pytest.approx(0.125 / 3**0.5, rel=0.05)


def test_the_start_depends_on_the_seed_alone(tiny_llama: Path):
    state = torch.get_rng_state()
    starts = []
    for seed in (1, 1, 2):
        model = base(tiny_llama)
        lora.attach(model, "policy", SEVEN, LoraOptions(), base_name="base", seed=seed)
        starts.append(lora.tensors(model, "policy"))
    assert all(torch.equal(starts[0][name], starts[1][name]) for name in starts[0])
    assert not all(torch.equal(starts[0][name], starts[2][name]) for name in starts[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_second_adapter_leaves_the_first_as_it_was(tiny_llama: Path):
    model = base(tiny_llama)
    adapted(model)
    for _, parameter in lora.parameters(model, "policy"):
        parameter.requires_grad_(False)
    before = lora.tensors(model, "policy")
    adapted(model, adapter="other", seed=5)
    assert not any(parameter.requires_grad for _, parameter in lora.parameters(model, "policy"))
    assert all(parameter.requires_grad for _, parameter in lora.parameters(model, "other"))
    after = lora.tensors(model, "policy")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_dropout_acts_in_training_and_not_in_eval(tiny_llama: Path):
    model = base(tiny_llama)
    adapted(model, LoraOptions(rank=4, dropout=0.5))
    model.train()
    first, second = (model(input_ids=IDS, use_cache=False).logits for _ in range(2))
    assert not torch.equal(first, second)
    model.eval()
    first, second = (model(input_ids=IDS, use_cache=False).logits for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_peft_alone_reads_what_is_written(tiny_llama: Path, tmp_path: Path, quantization: str):
    model = base(tiny_llama, quantization)
    config = adapted(model, LoraOptions(rank=4, alpha=6.5))
    lora.save_adapter(model, "policy", config, tmp_path)
    other = PeftModel.from_pretrained(base(tiny_llama, quantization), str(tmp_path))
    expected = model(input_ids=IDS, use_cache=False).logits
    logits = other(input_ids=IDS, use_cache=False).logits
    assert (logits - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "base"
    assert sorted(file.name for file in tmp_path.iterdir()) == [lora.CONFIG_FILE, lora.WEIGHTS_FILE]


def test_we_read_what_peft_writes(tiny_llama: Path, tmp_path: Path):
    peft_model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_llama),
        LoraConfig(r=4, lora_alpha=6, target_modules=SEVEN, init_lora_weights=False),
    )
    peft_model.save_pretrained(tmp_path)
    model = base(tiny_llama)
    adapted(model)
    config, values = lora.read_adapter(tmp_path)
    lora.set_tensors(model, "policy", values)
    assert (config["r"], config["lora_alpha"]) == (4, 6)
    expected = peft_model(input_ids=IDS, use_cache=False).logits
    assert torch.allclose(model(input_ids=IDS, use_cache=False).logits, expected, atol=1e-5)


def test_file_modes_follow_the_umask(tiny_llama: Path, tmp_path: Path):
    model = base(tiny_llama)
    config = adapted(model)
    before = os.umask(0o027)
    try:
        lora.save_adapter(model, "policy", config, tmp_path / "new")
    finally:
        os.umask(before)
    for file in (tmp_path / "new").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_tensors_must_fit_exactly(tiny_llama: Path):
    model = base(tiny_llama)
    adapted(model)
    good = lora.tensors(model, "policy")
    first, second, third, *_ = good
    bad = {name: value + 1 for name, value in good.items() if name != first}
    bad |= {"more": torch.zeros(1), second: torch.zeros(3, 3), third: torch.full_like(good[third], torch.nan)}
    with pytest.raises(ModelError) as caught:
        lora.set_tensors(model, "policy", bad)
    text = "\n".join(caught.value.details)
    assert f"missing: {first}" in text
    assert "unknown: more" in text
    assert f"{second} has the shape (3, 3)" in text
    assert f"{third} is not finite" in text
    assert all(torch.equal(value, good[name]) for name, value in lora.tensors(model, "policy").items())


@pytest.mark.parametrize(
    "change", [{"bias": "all"}, {"use_dora": True}, {"peft_type": "IA3"}, {"modules_to_save": ["lm_head"]}]
)
def test_adapters_that_cannot_be_continued(tiny_llama: Path, tmp_path: Path, change: dict):
    model = base(tiny_llama)
    lora.save_adapter(model, "policy", adapted(model), tmp_path)
    path = tmp_path / lora.CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ModelError, match="not a plain LoRA adapter"):
        lora.read_adapter(tmp_path)


def test_a_folder_without_an_adapter_and_a_broken_one(tmp_path: Path):
    with pytest.raises(ModelError, match="no adapter that can be read"):
        lora.read_adapter(tmp_path)
    (tmp_path / lora.CONFIG_FILE).write_text("{}")
    (tmp_path / lora.WEIGHTS_FILE).write_bytes(b"broken")
    with pytest.raises(ModelError, match="no adapter that can be read"):
        lora.read_adapter(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / lora.WEIGHTS_FILE)
    assert load_file(tmp_path / lora.WEIGHTS_FILE)


def test_targets(tiny_llama: Path):
    model = base(tiny_llama)
    assert lora.find_targets(model, LoraOptions()) == SEVEN
    assert lora.find_targets(model, LoraOptions(targets="auto")) == SEVEN
    assert lora.find_targets(model, LoraOptions(targets=("v_proj", "q_proj"))) == ["q_proj", "v_proj"]
    assert lora.find_targets(model, LoraOptions(targets=("q_proj", "lm_head"))) == ["lm_head", "q_proj"]
    with pytest.raises(ModelError, match="no linear layer qproj") as caught:
        lora.find_targets(model, LoraOptions(targets=("qproj", "v_proj")))
    assert "q_proj" in caught.value.details[0]


def test_fused_projections_get_their_own_names():
    config = Phi3Config(
        vocab_size=64, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, pad_token_id=0
    )
    model = skeleton(config)
    fused = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
    assert lora.find_targets(model, LoraOptions(), fused) == sorted(fused)
    assert lora.find_targets(model, LoraOptions(targets="auto")) == sorted(fused)
    with pytest.raises(ModelError, match="none of the default layers"):
        lora.find_targets(model, LoraOptions(), ("Wqkv",))


def test_an_adapter_that_is_taken_away_leaves_the_others_and_makes_room(tiny_llama: Path):
    model = base(tiny_llama)
    adapted(model, adapter="policy")
    adapted(model, adapter="reward", seed=3)

    def as_reward() -> torch.Tensor:
        for layer in lora.layers(model):
            layer._active_adapter = ["reward"]
        return model(input_ids=IDS).logits

    before = as_reward()
    lora.detach(model, "policy")
    assert lora.parameters(model, "policy") == []
    assert torch.equal(as_reward(), before)
    adapted(model, LoraOptions(rank=2, alpha=2.0), adapter="policy", seed=9)
    assert {len(p) for name, p in lora.parameters(model, "policy") if "lora_A" in name} == {2}
    assert torch.equal(as_reward(), before)


def test_a_model_whose_only_adapter_is_taken_away_is_the_base_again(tiny_llama: Path):
    model = base(tiny_llama)
    plain = model(input_ids=IDS, use_cache=False).logits
    adapted(model)
    assert not torch.equal(model(input_ids=IDS, use_cache=False).logits, plain)
    lora.detach(model, "policy")
    assert not [name for name, _ in model.named_parameters() if "lora_" in name]
    assert torch.equal(model(input_ids=IDS, use_cache=False).logits, plain)
    assert lora.find_targets(model, LoraOptions()) == SEVEN
    fresh = base(tiny_llama)
    for one in (model, fresh):
        adapted(one, LoraOptions(rank=2, alpha=6.0), seed=3)
    expected = fresh(input_ids=IDS, use_cache=False).logits
    assert torch.equal(model(input_ids=IDS, use_cache=False).logits, expected)
