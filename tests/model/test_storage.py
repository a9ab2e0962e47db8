from pathlib import Path

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit

from lite_align.model.backbone import Backbone, Role
from lite_align.model.load import load_model
from lite_align.model.storage import HostEmbedding, unnest_scales, weights_sha256
from lite_align.recipe import LoraOptions, ModelOptions, SpeedOptions
from tests.model.test_backbone import BATCH, gradients, loss, move


def load(folder: Path | str, quantization: str, **speed: str):
    options = ModelOptions.model_validate(
        {"name": str(folder), "quantization": quantization, "dtype": "float32"}
    )
    return load_model(options, device="cpu", speed=SpeedOptions.model_validate(speed))


def trained(
    folder: Path | str, quantization: str, **speed: str
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probs and gradients of a moved adapter."""
    it = Backbone(load(folder, quantization, **speed), LoraOptions(rank=4, alpha=8.0), seed=0)
    move(it, 1)
    value = loss(it)
    value.backward()
    return it.leaf_logps(BATCH).detach(), gradients(it)


def test_unnested_scales_are_the_same_numbers(tiny_llama: Path):
    nested, plain = load(tiny_llama, "nf4").model, load(tiny_llama, "nf4").model
    layers = [module for module in plain.modules() if isinstance(module, Linear4bit)]
    assert all(module.weight.quant_state.nested for module in layers)
    assert unnest_scales(plain) == len(layers) == 14
    assert unnest_scales(plain) == 0
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    for module, other in zip(layers, (m for m in nested.modules() if isinstance(m, Linear4bit))):
        state = module.weight.quant_state
        assert not state.nested
        assert state.absmax.dtype == torch.float32
        assert state.absmax.numel() == module.in_features * module.out_features // 64
        rows = x if module.in_features == 64 else torch.cat((x, x), 1)
        assert torch.equal(module(rows), other(rows))


def test_unnested_scales_train_the_same_bit_by_bit(tiny_llama: Path):
    logps, expected = trained(tiny_llama, "nf4")
    again, found = trained(tiny_llama, "nf4", unnest_scales="on")
    assert torch.equal(again, logps)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_an_embedding_on_the_host_trains_the_same_bit_by_bit(tiny_llama: Path):
    logps, expected = trained(tiny_llama, "none")
    again, found = trained(tiny_llama, "none", offload_embeddings="on")
    assert torch.equal(again, logps)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_an_offloaded_embedding_reads_the_ids_of_the_host(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch):
    """No copy of ids from the device in a packed pass; without them on the host they are fetched."""
    loaded = load(tiny_llama, "none", offload_embeddings="on")
    fetched = []
    own = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: (fetched.append(self.dtype), own(self))[1])
    it = Backbone(loaded, LoraOptions(rank=4), seed=0)
    fetched.clear()
    with torch.no_grad():
        expected = it.leaf_logps(BATCH)
    assert torch.int64 not in fetched
    assert loaded.embedding is not None
    with loaded.embedding.reading(BATCH.host_ids[:, :3]), torch.no_grad():  # of another batch
        rows = loaded.model.get_input_embeddings()(BATCH.input_ids)
    assert fetched.count(torch.int64) == 1
    assert torch.equal(rows, torch.nn.functional.embedding(BATCH.input_ids, loaded.embedding.module.weight))
    with torch.no_grad():
        assert torch.equal(it.leaf_logps(BATCH), expected)


def test_an_offloaded_embedding_comes_back_to_generate(tiny_llama: Path):
    plain = Backbone(load(tiny_llama, "none"), LoraOptions(rank=4), seed=0)
    it = Backbone(load(tiny_llama, "none", offload_embeddings="on"), LoraOptions(rank=4), seed=0)
    prompts = [[5, 6, 7], [8, 9]]
    arguments = {"stop_ids": frozenset({2}), "max_new_tokens": 6}
    with it.role(Role.POLICY):
        assert it.generate(prompts, **arguments) == plain.generate(prompts, **arguments)
        assert it.sample(prompts, **arguments) == plain.sample(prompts, **arguments)
    embedding = it.loaded.embedding
    assert embedding is not None
    kept = embedding.module.weight.data.data_ptr()
    with pytest.raises(RuntimeError, match="stop"), embedding.on_device():
        raise RuntimeError("stop")
    assert embedding.module.weight.data.data_ptr() == kept


def test_a_tied_embedding_stays_on_the_device():
    loaded = load("tiny", "none", offload_embeddings="on")
    assert loaded.embedding is not None
    assert loaded.embedding.tied
    assert any("stays on the device" in note for note in loaded.notes)
    assert isinstance(loaded.embedding, HostEmbedding)
    logps, expected = trained("tiny", "none")
    again, found = trained("tiny", "none", offload_embeddings="on")
    assert torch.equal(again, logps)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_an_offloaded_embedding_changes_no_hash(tiny_llama: Path):
    plain, moved = load(tiny_llama, "none"), load(tiny_llama, "none", offload_embeddings="on")
    assert weights_sha256(plain.model) == weights_sha256(moved.model)
    assert plain.device == moved.device == torch.device("cpu")
