"""Models of known shapes with random NF4 weights, made on the device layer by layer: no disk, no bf16 copy."""

from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedConfig
from transformers.quantizers import AutoHfQuantizer

from benchmarks.gpu.job import Job
from benchmarks.gpu.limit import Card, floor_seconds
from lite_align.model.budget import sizes

SHAPES: dict[str, dict[str, Any]] = {
    "llama-3-8b": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    },
    "qwen2.5-7b": {
        "model_type": "qwen2",
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    },
}
"""The architectures of Llama-3-8B and Qwen2.5-7B."""

SMALL = {
    "vocab_size": 1024,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
"""The same architectures in a size that a CPU runs in seconds."""

STD = 0.02


def configuration(name: str, *, small: bool = False, layers: int | None = None) -> PreTrainedConfig:
    """The configuration of a shape, on request in CPU size or with fewer layers."""
    values = SHAPES[name] | (SMALL if small else {})
    if layers is not None:
        values = values | {"num_hidden_layers": min(layers, values["num_hidden_layers"])}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}
    kind = values["model_type"]
    return AutoConfig.for_model(kind, **{k: v for k, v in values.items() if k != "model_type"}, **special)


def floor(job: Job) -> dict[str, float] | None:
    """Least seconds for the measured rows of a job on its card: of the steps, and of an epoch."""
    if job.card is None:
        return None
    pairs = [pair.lengths for pair in job.rows()[1]]
    config = configuration(job.model, small=job.small, layers=job.layers)
    steps, epoch = floor_seconds(sizes(config), pairs, job.steps, Card(*job.card))
    return {"steps": steps, "epoch": epoch}


def random_nf4(config: PreTrainedConfig, device: torch.device, attention: str, *, seed: int = 0) -> Any:
    """A frozen causal language model: blocks in NF4 with double quantisation, everything else in bf16.

    Args:
        config: of the architecture; it gets the quantisation.
        device: where the weights are made.
        attention: name of the attention function.
        seed: of the weights; each device has its own random numbers.
    """
    torch.manual_seed(seed)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation=attention
        )
    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and module is not head:
            _replace(model, name, _linear(module, device))
    for name, parameter in list(model.named_parameters()):
        if parameter.is_meta:
            _replace(model, name, nn.Parameter(_values(parameter.shape, device), requires_grad=False))
    # Buffers are made by the module that owns them: the meta device holds no values.
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config).to(device)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    # What `from_pretrained` leaves behind; trainers and `save_pretrained` look for it.
    model.config.quantization_config = quantization
    model.quantization_method = quantization.quant_method
    model.hf_quantizer = AutoHfQuantizer.from_config(quantization)
    model.is_loaded_in_4bit = model.is_quantized = True
    return model.requires_grad_(False).train()


def _linear(module: nn.Linear, device: torch.device) -> Linear4bit:
    """An NF4 layer with random weights; a layer's bf16 weights live for a moment."""
    made = Linear4bit(
        module.in_features,
        module.out_features,
        bias=module.bias is not None,
        compute_dtype=torch.bfloat16,
        quant_type="nf4",
        device="meta",
    )
    weight = Params4bit(
        _values(module.weight.shape, device), requires_grad=False, quant_type="nf4", module=made
    )
    made.weight = weight._quantize(device)
    # Otherwise bitsandbytes repacks the weights on some CPUs for a kernel without gradients.
    made.support_avx512bf16_for_cpu = False
    return made


def _values(size: torch.Size, device: torch.device) -> torch.Tensor:
    """Ones for a norm's scale, random numbers for a matrix; biases count as scales: they cost the same."""
    values = torch.ones(size, dtype=torch.bfloat16, device=device)
    return values if len(size) == 1 else values.normal_(0, STD)


def _replace(model: nn.Module, name: str, value: nn.Module | nn.Parameter) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, value)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a checkpoint folder, for those that load nothing else."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
