"""Predicted memory: counted by hand, against what autograd really saves, and monotone where it must be."""

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

GB = 1e9
LLAMA_8B = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
)
# A layer: q and o 4096 * 4096, k and v 4096 * 1024, three 4096 * 14336.
LAYER_8B = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336
SMALL = budget.Sizes(
    layers=4,
    hidden=256,
    key_value=128,
    query=256,
    feed_forward=768,
    vocabulary=2048,
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
    """NF4 with double quantisation is 4.127 bits a weight; 41.9M adapter weights take 16 bytes each."""
    memory = budget.predict_memory(
        size_8b, quantization="nf4", rank=16, tokens_per_microbatch=4096, checkpointing=True
    )
    assert memory.weights / GB == pytest.approx(3.60, abs=0.01)
    assert memory.embeddings / GB == pytest.approx(2.10, abs=0.01)
    assert memory.adapter / GB == pytest.approx(0.67, abs=0.01)
    assert memory.scratch / GB == pytest.approx(0.12, abs=0.01)
    # 32 block inputs of 8 kB, and one layer in full: 4 * 28 + 2 * 16 + 2 * 8 + 2 * 8 + 2 * 2 kB.
    assert memory.activations == 4096 * (32 * 8192 + 4 * 28672 + 2 * 16384 + 4 * 8192 + 2 * 2048)
    assert memory.total / GB == pytest.approx(8.7, rel=0.1)


@pytest.mark.parametrize(("quantization", "dtype"), [("nf4", "bfloat16"), ("none", "float32")])
def test_the_prediction_is_what_autograd_saves(tmp_path, tokenizer, quantization: str, dtype: str):
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
    it = Backbone(load_model(options, device="cpu"), LoraOptions(rank=4), seed=0)
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
    element = getattr(torch, dtype).itemsize
    predicted = budget.saved_per_token(budget.sizes(config), checkpointing=False, element=element)
    assert measured == pytest.approx(predicted, rel=0.12)


@given(
    tokens=st.integers(0, 10_000),
    more=st.integers(1, 5_000),
    rank=st.integers(1, 64),
    quantization=st.sampled_from(["none", "nf4", "int8"]),
)
def test_more_of_anything_is_more_memory(tokens: int, more: int, rank: int, quantization: str):
    def total(n: int, r: int, recompute: bool, how: str = quantization) -> int:
        memory = budget.predict_memory(
            SMALL, quantization=how, rank=r, tokens_per_microbatch=n, checkpointing=recompute
        )
        assert memory.total == sum(
            (
                memory.weights,
                memory.embeddings,
                memory.adapter,
                memory.scratch,
                memory.head,
                memory.activations,
                memory.context,
            )
        )
        return memory.total

    assert total(tokens, rank, True) < total(tokens + more, rank, True)
    assert total(tokens, rank, True) < total(tokens, rank + 1, True)
    assert total(tokens + more, rank, True) < total(tokens + more, rank, False)
    assert total(tokens, rank, True, "nf4") < total(tokens, rank, True, "int8")


@pytest.mark.parametrize(
    ("gib", "checkpointing", "fits"),
    [(80, False, True), (24, True, True), (12, True, True), (7, True, False)],
)
def test_the_plan_for_an_8b_model(size_8b: budget.Sizes, gib: int, checkpointing: bool, fits: bool):
    free = gib * 2**30
    plan = budget.plan(size_8b, quantization="nf4", rank=16, free=free, longest=1500)
    assert (plan.checkpointing, plan.fits) == (checkpointing, fits)
    assert plan.tokens_per_microbatch >= 1500
    assert (plan.memory.total <= free) is fits
    if fits:
        assert plan.tokens_per_microbatch % 256 == 0
        assert plan.memory.total <= budget.MARGIN * free


def test_the_users_wish_about_recomputation_is_kept(size_8b: budget.Sizes):
    for wish in (False, True):
        plan = budget.plan(
            size_8b, quantization="nf4", rank=16, free=24 * 2**30, longest=512, checkpointing=wish
        )
        assert plan.checkpointing is wish
        assert plan.fits


def test_a_cpu_gets_a_constant_or_the_longest_example():
    plan = budget.plan(SMALL, quantization="none", rank=16, free=None, longest=100)
    assert (plan.tokens_per_microbatch, plan.checkpointing) == (budget.CPU_TOKENS, False)
    assert plan.memory.context == 0
    longer = budget.plan(SMALL, quantization="none", rank=16, free=None, longest=3000)
    assert longer.tokens_per_microbatch == 3000


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
