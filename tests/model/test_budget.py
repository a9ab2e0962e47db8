"""Predicted memory: counted by hand, against what autograd really saves, and monotone where it must be."""

from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from lite_align.data import forest
from lite_align.data.types import Rendered
from lite_align.model import budget
from lite_align.model.backbone import Backbone
from lite_align.model.load import load_model
from lite_align.recipe import LoraOptions, ModelOptions
from tests.model.shapes import LLAMA_8B

GB = 1e9
# A layer: q and o 4096 * 4096, k and v 4096 * 1024, three 4096 * 14336.
LAYER_8B = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336
SMALL = budget.Sizes(
    layers=4,
    hidden=256,
    key_value=128,
    query=256,
    feed_forward=768,
    vocabulary=2048,
    tied=False,
    block_weights=3_000_000,
    other_weights=1_000_000,
    adapter_inputs_outputs=20_000,
)


@pytest.fixture(scope="module")
def size_8b() -> budget.Sizes:
    return budget.sizes(LLAMA_8B)


def test_sizes_of_an_8b_model(size_8b: budget.Sizes):
    assert size_8b.block_weights == 32 * LAYER_8B == 6_979_321_856
    # Embedding, head, and 65 norms.
    assert size_8b.other_weights == 2 * 128256 * 4096 + 65 * 4096
    assert size_8b.adapter_inputs_outputs == 32 * (2 * 8192 + 2 * 5120 + 3 * 18432)
    assert (size_8b.query, size_8b.key_value, size_8b.layers) == (4096, 1024, 32)


def test_parts_of_an_8b_model_by_hand(size_8b: budget.Sizes):
    """NF4 with double quantisation is 4.127 bits a weight; 41.9M adapter weights take 20 bytes each."""
    layout = budget.Layout("nf4", 16, 4096, recomputed=32)
    memory = budget.predict_memory(size_8b, layout)
    assert memory.weights / GB == pytest.approx(3.60, abs=0.01)
    assert memory.embeddings / GB == pytest.approx(2.10, abs=0.01)
    assert memory.adapter / GB == pytest.approx(0.84, abs=0.01)
    # 32 block inputs of 8 kB, and one layer in full: 4 * 28 + 2 * 16 + 2 * 8 + 2 * 8 + 2 * 2 kB.
    assert memory.activations == 4096 * (32 * 8192 + 4 * 28672 + 2 * 16384 + 4 * 8192 + 2 * 2048)
    # Three gradients of 28 kB and two of 8 a token, and one matrix of 4096 * 14336 in bf16: more than the logits.
    assert memory.working == 4096 * (3 * 28672 + 2 * 8192) + 2 * 4096 * 14336
    assert memory.total / GB == pytest.approx(8.7, rel=0.1)


def test_what_each_lever_does_to_an_8b_model(size_8b: budget.Sizes):
    start = budget.Layout("nf4", 16, 4096)
    before = budget.predict_memory(size_8b, start)

    def after(**changes: object) -> budget.Memory:
        return budget.predict_memory(size_8b, replace(start, **changes))

    # Unpacked scales: 4.5 bits in place of 4.127. The embedding on the host: 128256 * 4096 * 2 bytes.
    assert after(unnested=True).weights - before.weights == pytest.approx(0.373 / 8 * 6_979_321_856, rel=1e-3)
    assert before.embeddings - after(offloaded=True).embeddings == 128256 * 4096 * 2
    # Compiled blocks: 12.5 units of 8 kB a token and block (see SPEED: 12.4 measured, 11.5 by hand at best).
    assert after(compiled=True).activations == 4096 * 32 * 12.5 * 8192
    # A block that recomputes keeps 1 unit; the first one adds the block that is in work.
    one, two = after(recomputed=1).activations, after(recomputed=2).activations
    assert one - before.activations == 4096 * 8192
    assert one - two == 4096 * (budget.saved_by_block(size_8b, start) - 8192)
    assert after(masked=True).working - before.working == 4096 * 4096 * 2


def test_a_tied_embedding_is_needed_on_the_device(size_8b: budget.Sizes):
    tied = replace(size_8b, tied=True)
    layout = budget.Layout("nf4", 16, 1024)
    there = budget.predict_memory(tied, replace(layout, offloaded=True))
    assert there == budget.predict_memory(tied, layout)


def test_a_cpu_holds_the_head_in_fp32_as_well(size_8b: budget.Sizes):
    layout = budget.Layout("none", 16, 1024, device="cpu")
    bf16 = budget.predict_memory(size_8b, layout)
    fp32 = budget.predict_memory(size_8b, replace(layout, dtype=torch.float32))
    norms = 65 * 4096
    assert bf16.embeddings == 2 * (2 * 128256 * 4096 + norms) + 4 * 128256 * 4096
    assert fp32.embeddings == 4 * (2 * 128256 * 4096 + norms)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(("quantization", "dtype"), [("nf4", "bfloat16"), ("none", "float32")])
def test_the_prediction_is_what_autograd_saves(tmp_path, tokenizer, quantization: str, dtype: str, dropout):
    config = LlamaConfig(
        vocab_size=384,
        hidden_size=128,
        intermediate_size=448,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    options = ModelOptions.model_validate(
        {"name": str(tmp_path), "quantization": quantization, "dtype": dtype}
    )
    it = Backbone(load_model(options, device="cpu"), LoraOptions(rank=4, dropout=dropout), seed=0)
    answers = [tuple(i % 300 for i in range(start, start + 150)) for start in (10, 90)]
    rows = [Rendered((1,) * 100 + ids, (False,) * 100 + (True,) * 150) for ids in answers]
    batch = forest.batch([forest.grow(0, rows)])
    own = {t.untyped_storage().data_ptr() for t in (*it.model.parameters(), *it.model.buffers())}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        it.hidden(batch)
    measured = sum(storage.nbytes() for storage in storages.values()) / batch.input_ids.shape[1]
    layout = budget.Layout(
        quantization, 4, 400, dtype=getattr(torch, dtype), device="cpu", dropout=dropout > 0
    )
    predicted = budget.saved_per_token(budget.sizes(config), layout)
    assert measured == pytest.approx(predicted, rel=0.12)


@given(
    tokens=st.integers(0, 10_000),
    more=st.integers(1, 5_000),
    rank=st.integers(1, 64),
    recomputed=st.integers(1, 3),
    quantization=st.sampled_from(["none", "nf4", "int8"]),
    device=st.sampled_from(["cuda", "cpu"]),
    compiled=st.booleans(),
)
def test_more_of_anything_is_more_memory(tokens, more, rank, recomputed, quantization, device, compiled):
    layout = budget.Layout(
        quantization, rank, tokens, recomputed=recomputed, device=device, compiled=compiled
    )

    def total(**changes: object) -> int:
        memory = budget.predict_memory(SMALL, replace(layout, **changes))
        assert memory.total == sum(asdict(memory).values())
        return memory.total

    assert total() < total(tokens=tokens + more)
    assert total() < total(rank=rank + 1)
    assert total(tokens=tokens + more, recomputed=recomputed + 1) < total(tokens=tokens + more)
    assert total(quantization="nf4") < total(quantization="nf4", unnested=True)
    assert total(quantization="nf4") < total(quantization="int8")


def test_a_head_size_of_its_own_counts():
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        head_dim=32,
    )
    assert budget.sizes(config).query == 4 * 32
