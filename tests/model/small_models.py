"""Small models of several kinds of attention, with random weights, in the way that sampling meets them."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, MistralConfig, PreTrainedModel

from lite_align.model import attention
from lite_align.model.load import load_model
from lite_align.recipe import ModelOptions

SIZES = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
CONFIGS = {
    "full": LlamaConfig(**SIZES),
    "sliding": MistralConfig(**SIZES, sliding_window=6),
    "both, capped": Gemma2Config(**SIZES, sliding_window=6, attn_logit_softcapping=2.0),
}


def from_config(kind: str) -> PreTrainedModel:
    attention.register()
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[kind], attn_implementation=attention.NAME)


def loaded(folder: Path | str, quantization: str) -> PreTrainedModel:
    options = ModelOptions.model_validate({"name": str(folder), "quantization": quantization})
    return load_model(options, device="cpu").model
