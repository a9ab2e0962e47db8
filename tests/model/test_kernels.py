import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lite_align.data.forest import Batch, batch
from lite_align.data.types import Leaf, Tree
from lite_align.errors import ModelError
from lite_align.model import kernels
from lite_align.model.kernels import MaskedPlan, VarlenCall, VarlenPlan, masked_attention
from lite_align.model.tiled import TiledPlan


def forest(shapes: list[tuple[int, list[int]]], pad_to: int = 1) -> Batch:
    """Trees of a root length and leaf lengths."""
    trees = []
    for key, (root, sizes) in enumerate(shapes):
        leaves = tuple(Leaf((1,) * size, (True,) * size) for size in sizes)
        trees.append(Tree(key, (1,) * root, (False,) * root, leaves))
    return batch(trees, pad_to=pad_to)


def varlen_on_the_cpu(query, key, value, call: VarlenCall):
    """Do what `flash` does on CUDA: bottom-right causal attention, segment by segment."""
    outs = []
    groups = query.shape[1] // key.shape[1]
    bounds_q, bounds_k = call.cu_q.tolist(), call.cu_k.tolist()
    for s in range(len(bounds_q) - 1):
        q = query[bounds_q[s] : bounds_q[s + 1]].transpose(0, 1)
        k, v = (x[bounds_k[s] : bounds_k[s + 1]].transpose(0, 1) for x in (key, value))
        k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
        size, keys = q.shape[1], k.shape[1]
        assert size <= call.max_q
        assert keys <= call.max_k
        ahead = torch.arange(keys) - (torch.arange(size)[:, None] + keys - size)
        hidden = (ahead > 0) | (ahead <= -(call.window or keys))
        scores = (q @ k.mT * call.scale).masked_fill(hidden, -math.inf)
        outs.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(outs)


def tensors(row: Batch, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    count = row.input_ids.shape[1]
    return [
        torch.randn(count, heads, 8, generator=generator, dtype=dtype).requires_grad_() for heads in (4, 2, 2)
    ]


SHAPES = [(5, [4, 7]), (1, [3]), (9, [2, 6, 1, 12])]


@pytest.mark.parametrize("window", [0, 1, 3, 8])
@pytest.mark.parametrize("shapes", [SHAPES, [(4, [3]), (2, [5])]], ids=["shared", "nothing shared"])
def test_varlen_and_mask_equal_tiles(window, shapes):
    row = forest(shapes, pad_to=8)
    plans = [
        VarlenPlan.of(row)._replace(kernel=varlen_on_the_cpu),
        MaskedPlan.of(row, torch.float64, (window,) if window else ()),
    ]
    expected_inputs = tensors(row)
    # The tiles stand against the definition of attention in test_tiled.py.
    expected = TiledPlan.of(row).attend(*expected_inputs, 0.37, window, 0.0)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=expected.dtype)
    (expected * weight).sum().backward()
    for plan in plans:
        inputs = tensors(row)
        out = plan.attend(*inputs, 0.37, window, 0.0)
        (out * weight).sum().backward()
        assert (out - expected).abs().max() < 1e-10
        for one, other in zip(inputs, expected_inputs):
            assert (one.grad - other.grad).abs().max() < 1e-10


@pytest.mark.parametrize("window", [0, 3])
def test_mask_with_softcap_equals_tiles(window):
    row = forest(SHAPES)
    expected_inputs, inputs = tensors(row), tensors(row)
    expected = TiledPlan.of(row).attend(*expected_inputs, 0.37, window, 0.7)
    out = MaskedPlan.of(row, torch.float64, (3,)).attend(*inputs, 0.37, window, 0.7)
    assert (out - expected).abs().max() < 1e-10
    out.square().sum().backward()
    expected.square().sum().backward()
    for one, other in zip(inputs, expected_inputs):
        assert (one.grad - other.grad).abs().max() < 1e-10


def test_the_mask_by_hand():
    # Root a b, leaves c d and e: positions 0 1 2 3 2; a window of 2 sees a position and the one before it.
    plan = MaskedPlan.of(forest([(2, [2, 1])]), torch.float32, (2,))
    assert (plan.mask[0, 0] == 0).int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    ((size, window),) = plan.windows
    assert size == 2
    assert (window[0, 0] == 0).int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 1, 0, 0, 1],
    ]
    assert set(plan.mask.flatten().tolist()) == {0.0, -math.inf}


def test_an_unknown_window_and_a_softcap_are_refused():
    row = forest(SHAPES)
    with pytest.raises(ModelError, match="window of 3"):
        MaskedPlan.of(row, torch.float64, (4,)).attend(*tensors(row), 1.0, 3, 0.0)
    with pytest.raises(ModelError, match="cap"):
        VarlenPlan.of(row).attend(*tensors(row), 1.0, 0, 30.0)


shapes = st.lists(
    st.tuples(st.integers(0, 9), st.lists(st.integers(1, 9), min_size=1, max_size=4)), min_size=1, max_size=3
)


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(1, 8))
def test_folding_sums_the_copies_of_each_key(shapes, pad_to):
    row = forest(shapes, pad_to)
    plan = VarlenPlan.of(row)
    copies = torch.randn(len(row.kv_index), 2, 3, dtype=torch.float64)
    folded = torch.ops.lite_align.fold_keys(copies, plan.order, plan.counts)
    expected = torch.zeros(row.input_ids.shape[1], 2, 3, dtype=torch.float64)
    for copy, place in zip(copies, row.kv_index.tolist()):
        expected[place] += copy
    assert torch.allclose(folded, expected, atol=1e-12)


def test_folding_adds_in_fp32():
    # 1 + 16 times 2^-9 is lost in bf16, whose step at 1 is 2^-7, unless the sum is held in fp32.
    row = forest([(1, [1] * 17)])
    plan = VarlenPlan.of(row)
    copies = torch.full((len(row.kv_index), 1, 1), 2.0**-9, dtype=torch.bfloat16)
    copies[0] = 1.0
    folded = torch.ops.lite_align.fold_keys(copies, plan.order, plan.counts)
    assert folded[0].item() == 1 + 16 * 2.0**-9


def test_the_ops_pass_the_checks_of_torch():
    row = forest([(3, [2, 4])])
    plan = VarlenPlan.of(row)
    key = tensors(row, torch.float32)[1]
    torch.library.opcheck(
        torch.ops.lite_align.gather_keys.default, (key, plan.gathered, plan.order, plan.counts)
    )


def test_flash_is_called_with_the_window_of_torch(monkeypatch):
    calls = []

    def fake(query, key, value, cu_q, cu_k, max_q, max_k, *, scale, window_size):
        calls.append((max_q, max_k, scale, window_size))
        return query

    monkeypatch.setattr(kernels, "_varlen_attn", fake)
    row = forest(SHAPES)
    plan = VarlenPlan.of(row)
    inputs = tensors(row)
    plan.attend(*inputs, 0.5, 0, 0.0)
    plan.attend(*inputs, 0.5, 16, 0.0)
    # A window of W keys, the query's own included, leaves W - 1 to the left of it.
    assert calls == [(256, 256, 0.5, (-1, 0)), (256, 256, 0.5, (15, 0))]


def test_attention_without_a_mask_sees_all_keys():
    query, key, value = (torch.randn(1, heads, 3, 4, dtype=torch.float64) for heads in (2, 1, 1))
    capped = masked_attention(query, key, value, None, 0.5, 1e6)
    assert torch.allclose(capped, masked_attention(query, key, value, None, 0.5, 0.0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("window", [0, 16])
def test_flash_equals_tiles(window):
    row = forest([(130, [40, 70]), (1, [33]), (9, [20, 6, 1, 120])], pad_to=64).to("cuda")
    exact = [x.detach().cuda() for x in tensors(row.to("cpu"))]
    expected_inputs = [x.clone().requires_grad_() for x in exact]
    expected = TiledPlan.of(row).attend(*expected_inputs, 0.37, window, 0.0)
    expected.square().sum().backward()
    inputs = [x.bfloat16().requires_grad_() for x in exact]
    out = VarlenPlan.of(row).attend(*inputs, 0.37, window, 0.0)
    out.float().square().sum().backward()
    assert (out - expected).abs().max() < 3e-2
    for one, other in zip(inputs, expected_inputs):
        assert (one.grad - other.grad).norm() < 2e-2 * other.grad.norm()
