"""Recomputation of some blocks and compiled blocks: the same numbers, fewer saved bytes, a known number of graphs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from lite_align.data import forest
from lite_align.model.backbone import Backbone
from lite_align.model.blocks import RECOMPUTED
from lite_align.model.load import load_model
from lite_align.recipe import LoraOptions, ModelOptions
from tests.model.test_backbone import BATCH, assert_close, backbone, gradients, loss, move, sequences

# The compiler of torch 2.13 warns about its own code while it traces, and would take that for an error of ours.
pytestmark = pytest.mark.filterwarnings("ignore")

PARTITIONED = "aot_eager_decomp_partition"
"""Traces and divides graphs as inductor does, and writes no C++."""


def saved_bytes(it: Backbone) -> int:
    """What a forward pass over BATCH keeps for its backward pass, weights left out."""
    own = {p.untyped_storage().data_ptr() for p in it.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = it.hidden(BATCH)
    assert hidden.requires_grad
    return sum(kept.values())


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    before = {name: getattr(torch._functorch.config, name) for name in RECOMPUTED}
    assert all(before.values())
    yield
    for name, value in before.items():
        setattr(torch._functorch.config, name, value)
    torch._dynamo.reset()


def batches() -> list[forest.Batch]:
    """Six batches of different numbers of trees and tokens."""
    shapes = [[(4 + n, 3 + key, 5 + 2 * n) for key in range(1 + n % 3)] for n in range(6)]
    return [
        forest.batch([forest.grow(key, sequences(*shape, seed=key)) for key, shape in enumerate(row)])
        for row in shapes
    ]


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("blocks", [0, 1, 2, 5])
def test_recomputing_some_blocks_changes_no_bit(tiny_llama: Path, quantization: str, blocks: int):
    it = backbone(tiny_llama, quantization)
    loss(it).backward()
    expected = gradients(it)
    it.recompute(blocks)
    assert it.blocks.recomputed == min(blocks, len(it.blocks)) == min(blocks, 2)
    loss(it).backward()
    found = gradients(it)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_every_recomputed_block_saves_the_same(tiny_llama: Path):
    it = backbone(tiny_llama)
    kept = []
    for blocks in (0, 1, 2):
        it.recompute(blocks)
        kept.append(saved_bytes(it))
    assert kept[0] > kept[1] > kept[2]
    # The first block reads the embedding, which needs no gradient: its norm saves a little less than the second's.
    first, second = kept[0] - kept[1], kept[1] - kept[2]
    assert 0.8 < first / second <= 1.0


@pytest.mark.slow
def test_compiled_blocks_equal_plain_ones(tiny_llama: Path, fresh_compiler: None):
    it = backbone(tiny_llama, "nf4")
    plain = []
    for batch in batches():
        it.leaf_logps(batch).sum().backward()
        plain.append((it.leaf_logps(batch).detach(), gradients(it)))
    it.recompute(1)  # one of two: compiled with and without
    it.blocks.compile(backend=PARTITIONED)
    for batch, (logps, expected) in zip(batches(), plain):
        found = it.leaf_logps(batch)
        found.sum().backward()
        assert torch.allclose(found, logps, atol=1e-4)
        assert_close(gradients(it), expected, 1e-5)
    assert not counters["graph_break"]


def test_generation_is_not_compiled(tiny_llama: Path, fresh_compiler: None):
    it = backbone(tiny_llama)
    expected = it.generate([[5, 6, 7]], stop_ids=frozenset({2}), max_new_tokens=5)
    it.blocks.compile(backend="aot_eager")
    assert it.generate([[5, 6, 7]], stop_ids=frozenset({2}), max_new_tokens=5) == expected
    assert counters["stats"]["unique_graphs"] == 0


@pytest.mark.slow
def test_the_real_compiler_saves_activations_and_no_product_is_made_twice(
    tiny_llama: Path, fresh_compiler: None
):
    options = ModelOptions.model_validate(
        {"name": str(tiny_llama), "quantization": "nf4", "dtype": "bfloat16"}
    )
    it = Backbone(load_model(options, device="cpu"), LoraOptions(rank=4, alpha=8.0), seed=0)
    move(it, 1)
    loss(it).backward()
    expected, eager = gradients(it), saved_bytes(it)
    products = count_products(it)
    assert products["aten::mm"] > 0
    assert products["lite_align::tiled_attention"] == 2  # one a layer
    it.blocks.compile()
    loss(it).backward()
    assert_close(gradients(it), expected, 5e-2)  # bf16: fused kernels round less often
    assert saved_bytes(it) < 0.75 * eager
    assert count_products(it) == products


def count_products(it: Backbone) -> dict[str, int]:
    """How often a forward and a backward pass call each kind of matrix product and attention."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as found:
        loss(it).backward()
    it.model.zero_grad()
    wanted = (
        *("bitsandbytes::gemm_4bit", "bitsandbytes::dequantize_4bit", "lite_align::tiled_attention"),
        *("aten::mm", "aten::addmm", "aten::bmm"),
    )
    return {event.key: event.count for event in found.key_averages() if event.key in wanted}
