"""Merging: the arithmetic of PEFT's own merge, the names and files of the base, and what cannot be merged."""

import json

import pytest
import torch
from safetensors.torch import load_file

from lite_align.errors import ModelError
from lite_align.export import merge
from lite_align.export.merge import Merge, checkpoint_names
from lite_align.recipe import LoraOptions
from lite_align.train.finished import read_finished
from tests import finished


def merged(run, base, out, *, dtype=torch.float32, unpack=False):
    backbone = read_finished(run).backbone("cpu")
    work = Merge(base, run / "adapters" / "policy", backbone, dtype, unpack=unpack)
    out.mkdir()
    ticks = []
    assert work.write(out, lambda: ticks.append(1)) == work.size()
    assert len(ticks) == work.tensors()
    return {n: t for file in sorted(out.glob("*.safetensors")) for n, t in load_file(file).items()}, backbone


def names(folder):
    return {file.name: sorted(load_file(file)) for file in sorted(folder.glob("*.safetensors"))}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard", ["5GB", "100KB"])
def test_merged_weights_are_those_of_peft_in_the_files_of_the_base(tmp_path, tokenizer, tied, shard):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = finished.model(tmp_path / "base", tokenizer, tied=tied, shard=shard)
    run = finished.run(tmp_path / "run", base)
    found, _ = merged(run, base, tmp_path / "out")
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), str(run / "adapters" / "policy")
    )
    expected = model.merge_and_unload().state_dict()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    assert names(tmp_path / "out") == names(base)
    assert ("lm_head.weight" in found) is not tied
    files = len(names(base))
    assert (files > 1) is (shard == "100KB")
    if files > 1:
        index, own = (json.loads((place / merge.INDEX).read_text()) for place in (tmp_path / "out", base))
        assert index["weight_map"] == own["weight_map"]
        assert index["metadata"]["total_size"] == own["metadata"]["total_size"]


def test_bf16_is_rounded_once_from_the_fp32_sum(tmp_path, tiny_llama):
    run = finished.run(tmp_path / "run", tiny_llama)
    exact, _ = merged(run, tiny_llama, tmp_path / "exact")
    rounded, _ = merged(run, tiny_llama, tmp_path / "rounded", dtype=torch.bfloat16)
    assert all(torch.equal(rounded[name], exact[name].bfloat16()) for name in exact)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_unpacked_weights_are_those_that_the_layers_compute_with(tmp_path, tiny_llama, quantization):
    run = finished.run(tmp_path / "run", tiny_llama, quantization=quantization)
    found, backbone = merged(run, tiny_llama, tmp_path / "out", unpack=True)
    own = load_file(tiny_llama / "model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    layer = backbone.model.get_submodule(name)
    identity = torch.eye(64)
    with torch.no_grad():
        # The layer applied to each unit vector gives its weight, adapter included.
        computed = layer(identity).t()
    tolerance = 1e-5 if quantization == "nf4" else 0.02  # int8 layers round their inputs as well
    torch.testing.assert_close(found[f"{name}.weight"], computed, rtol=0, atol=tolerance)
    assert torch.equal(found["lm_head.weight"], own["lm_head.weight"])
    assert torch.equal(found["model.norm.weight"], own["model.norm.weight"])
    other, _ = merged(run, tiny_llama, tmp_path / "other")
    assert (other[f"{name}.weight"] - found[f"{name}.weight"]).abs().max() > 1e-4


def test_a_checkpoint_that_is_stored_in_nf4_loses_its_scales(tmp_path, tiny_llama, tokenizer):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    packed = tmp_path / "packed"
    options = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    AutoModelForCausalLM.from_pretrained(tiny_llama, quantization_config=options).save_pretrained(packed)
    tokenizer.save_pretrained(packed)
    run = finished.run(tmp_path / "run", packed, quantization="nf4")
    found, _ = merged(run, packed, tmp_path / "out", unpack=True)
    assert sorted(found) == sorted(load_file(tiny_llama / "model.safetensors"))
    assert {value.dtype for value in found.values()} == {torch.float32}


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_a_head_that_is_the_embedding_is_not_merged(tmp_path, tokenizer):
    base = finished.model(tmp_path / "base", tokenizer, tied=True)
    lora = LoraOptions(rank=4, alpha=8.0, targets=("q_proj", "lm_head"))
    run = finished.run(tmp_path / "run", base, lora=lora)
    with pytest.raises(ModelError, match="shares its weights with the embedding"):
        merged(run, base, tmp_path / "out")


def test_names_with_and_without_the_prefix_of_the_body():
    modules = {"model.layers.0.q"}
    assert checkpoint_names(modules, {"model.layers.0.q.weight"}, "model", "layers") == {
        "model.layers.0.q": "model.layers.0.q.weight"
    }
    assert checkpoint_names(modules, {"layers.0.q.weight"}, "model", "layers") == {
        "model.layers.0.q": "layers.0.q.weight"
    }
    with pytest.raises(ModelError, match="no weight of its own for 1 of the layers"):
        checkpoint_names(modules, {"layers.0.k.weight"}, "model", "layers")
