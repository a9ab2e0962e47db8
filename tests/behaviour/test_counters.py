"""What a step does, counted: tokens, matrix products, unpacked weights, saved bytes, graphs.

A small Llama through the real parts. Every expectation is worked out by hand, so a shortcut that no longer works is
seen here without a clock.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters as dynamo

from benchmarks.counters import DEQUANTISATIONS, PRODUCTS, Operations, saved_bytes
from lite_align.data import forest
from lite_align.data.types import Rendered, Tree
from lite_align.model.backbone import Backbone, Role
from lite_align.model.blocks import RECOMPUTED
from lite_align.model.load import load_model
from lite_align.recipe import LoraOptions, ModelOptions, SpeedOptions
from lite_align.stages import passes
from lite_align.stages.dpo import DPO
from tests.stages import small

# Of tiny_llama, and the adapter's rank.
LAYERS, HIDDEN, FEED_FORWARD, QUERY, KEY_VALUE, RANK = 2, 64, 128, 64, 32, 8
LINEARS = 7 * LAYERS  # q, k, v, o, gate, up, down
STILL = 3  # q, k and v of the first block: what they read needs no gradient

# (prompt, chosen, rejected, how many tokens the answers begin alike with)
SHAPES = ((20, 5, 10, 2), (7, 3, 4, 0), (12, 1, 30, 0))
SHARED = (20 + 5 + 10 - 2) + (7 + 3 + 4) + (12 + 1 + 30)
APART = (2 * 20 + 5 + 10) + (2 * 7 + 3 + 4) + (2 * 12 + 1 + 30)
TRAINED = (5 + 10 - 2) + (3 + 4) + (1 + 30)  # tokens that the answers of a pair share stand in the row once


@pytest.fixture(autouse=True)
def no_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches end with their last answer: counts by token are those of the rows."""
    monkeypatch.setattr(passes, "PAD_TO", 1)


def tree(key: int, prompt: int, chosen: int, rejected: int, alike: int) -> Tree:
    """A pair of known lengths."""
    root = tuple(range(5, 5 + prompt))
    begin = tuple(range(300, 300 + alike))
    answers = [
        begin + tuple(range(first, first + n - alike)) for first, n in ((100, chosen), (200, rejected))
    ]
    return forest.grow(key, [Rendered(root + ids, (False,) * prompt + (True,) * len(ids)) for ids in answers])


@dataclass(frozen=True)
class Run:
    """A stage with one micro-batch of the three pairs, and what its passes do."""

    stage: DPO
    batch: forest.Batch

    def forward(self) -> Operations:
        with Operations() as done:
            self.stage.loss(self.batch)
        return done

    def backward(self) -> Operations:
        total = self.stage.loss(self.batch).total
        with Operations() as done:
            total.backward()
        return done

    def reference(self) -> Operations:
        with Operations() as done, torch.no_grad(), self.stage.backbone.role(Role.REFERENCE):
            self.stage.backbone.leaf_logps(self.batch)
        return done


def run(folder: Path, quantization: str = "none", **speed: object) -> Run:
    """The three pairs on a model with shortcuts as the recipe sets them, changed by name."""
    switches = SpeedOptions.model_validate(speed)
    options = ModelOptions.model_validate(
        {"name": str(folder), "quantization": quantization, "dtype": "float32"}
    )
    loaded = load_model(options, device="cpu", speed=switches)
    it = Backbone(loaded, LoraOptions(rank=RANK, alpha=16.0), seed=0, speed=switches)
    grown = [tree(key, *shape) for key, shape in enumerate(SHAPES)]
    trees = passes.laid_out(grown, share_prompts=switches.share_prompts)
    pairs = small.as_pairs(small.rows(len(SHAPES)))
    stage = small.split(it, small.pair_set(it, pairs, trees), small.recipe(), 0)
    (batch,) = stage.window(0).batches
    return Run(stage, batch)


@pytest.mark.parametrize(("shared", "tokens"), [(True, SHARED), (False, APART)])
def test_a_prompt_is_computed_once_and_nothing_is_padded(tiny_llama: Path, shared: bool, tokens: int):
    batch = run(tiny_llama, share_prompts=shared).batch
    assert batch.tokens == batch.input_ids.shape[1] == tokens
    # Only positions that predict a trained token reach the head: apart, common beginnings count twice.
    assert len(batch.target) == (TRAINED if shared else TRAINED + 2)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("fused", [True, False])
def test_products_of_a_micro_batch(tiny_llama: Path, quantization: str, fused: bool):
    it = run(tiny_llama, quantization, fused_lora=fused)
    forward, backward = it.forward(), it.backward()
    # A linear layer: its base, A and B. The frozen head: logits, and the gradient of the log-probs from them.
    assert forward.total(PRODUCTS) == 3 * LINEARS + 2
    # A linear layer: gradients of A, of B and of what lies between; of its input through the base and through A.
    assert backward.total(PRODUCTS) == 5 * LINEARS - 2 * STILL
    assert it.reference().total(PRODUCTS) == LINEARS + 1
    # Fused, B comes in the same product as the sum with the base.
    assert forward.counts["addmm"] == (LINEARS if fused else 0)


def test_the_fused_adapter_leaves_out_scaling_and_adding(tiny_llama: Path):
    fused, plain = (run(tiny_llama, fused_lora=choice).forward().counts for choice in (True, False))
    assert plain["mul"] - fused["mul"] == plain["add"] - fused["add"] == LINEARS


def test_the_models_own_head_needs_one_product_more(tiny_llama: Path):
    """Logits, the logits again in the backward pass, and the gradient from them."""
    it = run(tiny_llama, frozen_head=False)
    assert it.forward().total(PRODUCTS) == 3 * LINEARS + 1
    assert it.backward().total(PRODUCTS) == 5 * LINEARS - 2 * STILL + 2


def test_weights_are_unpacked_once_a_product_of_the_backward_pass(tiny_llama: Path):
    it = run(tiny_llama, "nf4", unnest_scales="on")
    assert it.forward().counts["gemm_4bit"] == it.reference().counts["gemm_4bit"] == LINEARS
    assert it.forward().total(DEQUANTISATIONS) == it.reference().total(DEQUANTISATIONS) == 0
    backward = it.backward().counts
    assert backward["dequantize_4bit"] == LINEARS - STILL
    assert backward["dequantize_blockwise"] == 0
    nested = run(tiny_llama, "nf4", unnest_scales="off").backward().counts
    assert nested["dequantize_4bit"] == nested["dequantize_blockwise"] == LINEARS - STILL


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_saved_bytes_of_a_token(tiny_llama: Path, quantization: str):
    it = run(tiny_llama, quantization)
    saved = saved_bytes(it.stage.backbone.model, lambda: it.stage.loss(it.batch)) / SHARED
    # In fp32: gate, its activation, up and their product; what both norms read and give; queries, keys, values and
    # the attention's output; what lies between A and B.
    layer = 4 * (4 * FEED_FORWARD + 4 * HIDDEN + 2 * QUERY + 2 * KEY_VALUE + 7 * RANK)
    # What the last norm reads and gives, and the gradients of the log-probs by the hidden states.
    end = 4 * (2 * HIDDEN + HIDDEN * TRAINED / SHARED)
    # What the first norm reads needs no gradient.
    assert saved == pytest.approx(LAYERS * layer + end - 4 * HIDDEN, rel=0.02)


# Compiled blocks.


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    dynamo.clear()
    before = {name: getattr(torch._functorch.config, name) for name in RECOMPUTED}
    yield
    for name, value in before.items():
        setattr(torch._functorch.config, name, value)
    torch._dynamo.reset()


def packs() -> list[forest.Batch]:
    """Rows of one to three pairs, all different."""
    shapes = [SHAPES[:1], SHAPES[1:], SHAPES, SHAPES[::-1], SHAPES[1:2], SHAPES * 3]
    return [forest.batch([tree(key, *shape) for key, shape in enumerate(row)]) for row in shapes]


# The compiler of torch 2.13 warns about its own code while it traces, and would take that for an error of ours.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_one_graph_for_each_role(tiny_llama: Path, fresh_compiler: None):
    it = run(tiny_llama).stage.backbone
    it.blocks.compile(backend="aot_eager")
    for batch in packs():
        it.leaf_logps(batch).sum().backward()
    # Two for POLICY: what the first block reads needs no gradient.
    assert dynamo["stats"]["unique_graphs"] == 2
    for batch in packs():
        with torch.no_grad(), it.role(Role.REFERENCE):
            it.leaf_logps(batch)
    assert dynamo["stats"]["unique_graphs"] == 3
    for batch in packs():
        it.leaf_logps(batch).sum().backward()
    assert dynamo["stats"]["unique_graphs"] == 3
    it.fix_reference("adapter")
    for batch in packs():
        with torch.no_grad(), it.role(Role.REFERENCE):
            it.leaf_logps(batch)
    assert dynamo["stats"]["unique_graphs"] == 4
    assert not dynamo["graph_break"]
