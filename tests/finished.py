"""Finished run folders on a tiny model, made without training: an adapter whose weights are drawn."""

import json
from pathlib import Path
from typing import Any

import torch

from lite_align.model.backbone import Backbone, Role
from lite_align.model.folder import fingerprint
from lite_align.model.load import load_model
from lite_align.recipe import DPORecipe, LoraOptions, ModelOptions, to_dict

LORA = LoraOptions(rank=4, alpha=8.0)


def model(
    folder: Path, tokenizer: Any, *, tied: bool = False, shard: str = "5GB", positions: int = 512
) -> Path:
    """A folder with a random Llama of 2 layers, hidden 64, in one file or in shards."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=384,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        tie_word_embeddings=tied,
        initializer_range=0.1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size=shard)
    tokenizer.save_pretrained(folder)
    return folder


def move(backbone: Backbone, role: Role, size: float, seed: int = 1) -> None:
    """Draw an adapter anew, both matrices, so that it changes what the model says."""
    generator = torch.Generator().manual_seed(seed)
    values = backbone.adapter_tensors(role)
    drawn = {name: torch.randn(value.shape, generator=generator) * size for name, value in values.items()}
    backbone.set_adapter_tensors(role, drawn)


def run(
    folder: Path,
    base: Path,
    *,
    quantization: str = "none",
    dtype: str = "float32",
    size: float = 0.1,
    lora: LoraOptions = LORA,
    reference: bool = False,
    status: str = "finished",
) -> Path:
    """A run folder of stage dpo; with `reference`, one that went on from another adapter."""
    options = ModelOptions.model_validate({"name": str(base), "quantization": quantization, "dtype": dtype})
    recipe = DPORecipe(model=options, lora=lora)
    backbone = Backbone(load_model(options, device="cpu"), lora, seed=0)
    if reference:
        move(backbone, Role.POLICY, size, seed=2)
        backbone.save_adapter(Role.POLICY, folder / "adapters" / "reference")
    move(backbone, Role.POLICY, size)
    backbone.save_adapter(Role.POLICY, folder / "adapters" / "policy")
    record = {
        "schema": 1,
        "stage": "dpo",
        "status": status,
        "recipe": to_dict(recipe),
        "data": {"name": "/home/someone/rows.jsonl", "kept": 20},
        "hashes": {"base": fingerprint(base)},
        "verdict": {"word": "better", "sentences": ["The margin grew."], "warnings": []},
    }
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "answers.jsonl").write_text(
        json.dumps({"prompt": "hello world", "before": "a", "after": "b"}) + "\n"
    )
    return folder
