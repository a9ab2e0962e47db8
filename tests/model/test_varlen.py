import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from lite_align.data.forest import Batch, batch
from lite_align.data.types import Leaf, Tree
from lite_align.errors import ModelError
from lite_align.model import varlen
from lite_align.model.tiled import TiledPlan
from lite_align.model.varlen import EXACT, FLASH, VarlenCall, VarlenPlan, flash_is_usable, fold


def forest(shapes: list[tuple[int, list[int]]], pad_to: int = 1) -> Batch:
    """Trees of a root length and leaf lengths."""
    trees = []
    for key, (root, sizes) in enumerate(shapes):
        leaves = tuple(Leaf((1,) * size, (True,) * size) for size in sizes)
        trees.append(Tree(key, (1,) * root, (False,) * root, leaves))
    return batch(trees, pad_to=pad_to)


def tensors(row: Batch, dtype=torch.float64, heads=(4, 2, 2)):
    generator = torch.Generator().manual_seed(0)
    count = row.input_ids.shape[1]
    return [torch.randn(count, head, 8, generator=generator, dtype=dtype).requires_grad_() for head in heads]


def as_models_make_them(inputs):
    """The same numbers in the memory layout of projections that a model has split into heads and transposed."""
    return [x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for x in inputs]


SHARED = [(5, [4, 7]), (1, [3]), (9, [2, 6, 1, 12])]
APART = [(4, [3]), (2, [5])]


def gradients(out, inputs):
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.autograd.grad((out * weight.to(out.dtype)).sum(), inputs)


@pytest.mark.parametrize("heads", [(4, 2, 2), (4, 4, 4), (3, 1, 1)], ids=str)
@pytest.mark.parametrize("window", [0, 1, 3, 8, 99])
@pytest.mark.parametrize("shapes", [SHARED, APART], ids=["shared", "apart"])
def test_equals_tiles(shapes, window, heads):
    # The tiles stand against the definition of attention in test_tiled.py.
    row = forest(shapes, pad_to=8)
    expected_inputs = tensors(row, heads=heads)
    expected = TiledPlan.of(row).attend(*expected_inputs, 0.37, window, 0.0)
    wanted = gradients(expected, expected_inputs)
    for inputs in (tensors(row, heads=heads), as_models_make_them(tensors(row, heads=heads))):
        out = VarlenPlan.of(row).attend(*inputs, 0.37, window, 0.0)
        assert (out - expected).abs().max() < 1e-12
        for one, other in zip(gradients(out, inputs), wanted):
            assert (one - other).abs().max() < 1e-12


def test_equals_tiles_in_fp32_where_prompts_are_long():
    row = forest([(150, [40, 70, 1]), (1, [200])])
    inputs = tensors(row, torch.float32)
    exact = tensors(row)
    with torch.no_grad():
        for one, other in zip(exact, inputs):
            one.copy_(other)
    expected = TiledPlan.of(row).attend(*exact, 0.37, 0, 0.0)
    out = VarlenPlan.of(row).attend(*inputs, 0.37, 0, 0.0)
    assert (out - expected).abs().max() < 1e-5
    for one, other in zip(gradients(out, inputs), gradients(expected, exact)):
        assert (one - other).norm() < 1e-6 * other.norm()


def test_the_kernel_by_hand():
    # Two queries at the end of three keys, all scores 0: the first sees two keys, the second all three.
    call = VarlenCall(torch.tensor([0, 2]), torch.tensor([0, 3]), 256, 256, 1.0, 0)
    query, key = torch.zeros(2, 1, 1), torch.zeros(3, 1, 1)
    value = torch.tensor([3.0, 6.0, 9.0])[:, None, None]
    out, lse = EXACT.forward(query, key, value, call)
    assert out.flatten().tolist() == pytest.approx([4.5, 6.0])
    assert lse.flatten().tolist() == pytest.approx([math.log(2), math.log(3)])
    # A window of two keys, the query's own included.
    out, lse = EXACT.forward(query, key, value, call._replace(window=2))
    assert out.flatten().tolist() == pytest.approx([4.5, 7.5])
    assert lse.flatten().tolist() == pytest.approx([math.log(2), math.log(2)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_only_rounds_inputs_and_results(dtype):
    row = forest(SHARED)
    inputs = [x.detach().to(dtype).requires_grad_() for x in tensors(row)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    out = VarlenPlan.of(row).attend(*inputs, 0.37, 0, 0.0)
    expected = TiledPlan.of(row).attend(*exact, 0.37, 0, 0.0)
    assert out.dtype == dtype
    bound = 4 * torch.finfo(dtype).eps
    assert (out - expected).norm() < bound * expected.norm()
    for one, other in zip(gradients(out, inputs), gradients(expected, exact)):
        assert one.dtype == dtype
        assert (one - other).norm() < bound * other.norm()


def test_a_softcap_is_refused():
    row = forest(SHARED)
    with pytest.raises(ModelError, match="cap"):
        VarlenPlan.of(row).attend(*tensors(row), 1.0, 0, 30.0)


def test_the_plan_by_hand():
    # Root a b, leaves c d and e: keys a b c d | a b e, so a and b stand twice among the gathered ones.
    plan = VarlenPlan.of(forest([(2, [2, 1])]))
    assert plan.gathered.tolist() == [0, 1, 2, 3, 0, 1, 4]
    assert plan.order.tolist() == [0, 4, 1, 5, 2, 3, 6]
    assert plan.bounds.tolist() == [0, 2, 4, 5, 6, 7]
    assert (plan.cu_q.tolist(), plan.cu_k.tolist()) == ([0, 4, 5], [0, 4, 7])
    assert (plan.max_q, plan.max_k) == (256, 256)


SIZES = st.lists(
    st.tuples(st.integers(0, 9), st.lists(st.integers(1, 9), min_size=1, max_size=4)), min_size=1, max_size=3
)


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(1, 8))
def test_folding_sums_the_copies_of_each_key(shapes, pad_to):
    row = forest(shapes, pad_to)
    plan = VarlenPlan.of(row)
    copies = torch.randn(len(row.kv_index), 2, 3, dtype=torch.float64)
    expected = torch.zeros(row.input_ids.shape[1], 2, 3, dtype=torch.float64)
    for copy, place in zip(copies, row.kv_index.tolist()):
        expected[place] += copy
    assert torch.allclose(fold(copies, plan.order, plan.bounds), expected, atol=1e-12)


@pytest.mark.parametrize(("dtype", "small"), [(torch.bfloat16, 2.0**-9), (torch.float16, 2.0**-12)])
def test_folding_adds_in_fp32(dtype, small):
    # Added one by one to 1, all 16 small numbers would be lost: half a step of bf16 at 1 is 2^-8, of fp16 2^-11.
    plan = VarlenPlan.of(forest([(1, [1] * 17)]))
    copies = torch.full((len(plan.order), 1, 1), small, dtype=dtype)
    copies[0] = 1.0
    assert fold(copies, plan.order, plan.bounds)[0].item() == 1 + 16 * small


def test_gathered_keys_are_not_kept_for_the_backward():
    row = forest([(20, [3, 4, 5])])
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        VarlenPlan.of(row).attend(*tensors(row), 0.37, 0, 0.0)
    tokens = row.input_ids.shape[1]
    assert len(row.kv_index) > tokens
    floats = sorted(tuple(x.shape) for x in saved if x.is_floating_point())
    # query and output, key and value, log-sum-exp
    assert floats == sorted([(tokens, 4, 8)] * 2 + [(tokens, 2, 8)] * 2 + [(4, tokens)])


def test_the_log_sum_exp_has_no_gradient():
    # Its gradient is not computed, so nothing may ask for it and silently get zero.
    row = forest(SHARED)
    out, lse = torch.ops.lite_align.varlen_attention(*tensors(row), *VarlenPlan.of(row)[1:], 0.37, 0)
    assert out.requires_grad
    assert not lse.requires_grad


def test_checkpointing_changes_nothing():
    row = forest(SHARED)
    plan = VarlenPlan.of(row)
    inputs = tensors(row)
    plain = plan.attend(*inputs, 0.37, 3, 0.0)
    again = checkpoint(plan.attend, *inputs, 0.37, 3, 0.0, use_reentrant=False)
    assert torch.equal(plain, again)
    for one, other in zip(gradients(plain, inputs), gradients(again, inputs)):
        assert torch.equal(one, other)


@pytest.mark.parametrize("shapes", [SHARED, APART], ids=["shared", "apart"])
def test_the_operators_pass_the_checks_of_torch(shapes):
    row = forest(shapes)
    plan = VarlenPlan.of(row)
    operators = torch.ops.lite_align
    for inputs in (tensors(row, torch.float32), as_models_make_them(tensors(row, torch.float32))):
        torch.library.opcheck(operators.varlen_attention.default, (*inputs, *plan[1:], 0.37, 3))
        query, key, value = (x.detach() for x in inputs)
        out, lse = operators.varlen_attention(query, key, value, *plan[1:], 0.37, 3)
        torch.library.opcheck(
            operators.varlen_attention_backward.default,
            (out, query, key, value, *plan[1:6], out, lse, *plan[6:], 0.37, 3),
        )


def test_operations_are_counted():
    # One tree: a root of 6, leaves of 2 and 4: 12 tokens, segments of 8 and 4 with 8 and 10 keys: 9 on average.
    row = forest([(6, [2, 4])])
    query, key, value = tensors(row, torch.float32)
    with FlopCounterMode(display=False) as counter:
        out = VarlenPlan.of(row).attend(query, key, value, 0.37, 0, 0.0)
    assert counter.get_total_flops() == 2 * 2 * 4 * 12 * 9 * 8
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 5 * 2 * 4 * 12 * 9 * 8


# What the CUDA path asks of torch: its operators have shapes without a device, and their names can be replaced.


def on_meta(row: Batch):
    sizes = [(row.input_ids.shape[1], 8, 64), (len(row.kv_index), 2, 64)]
    query, key = (torch.empty(size, dtype=torch.bfloat16, device="meta") for size in sizes)
    call = VarlenCall(row.cu_q.to("meta"), row.cu_k.to("meta"), 256, 256, 0.125, 0)
    return query, key, key.clone(), call


@pytest.mark.parametrize("window", [0, 16])
def test_torch_takes_the_arguments_of_the_flash_kernels(window):
    query, key, value, call = on_meta(forest(SHARED))
    call = call._replace(window=window)
    out, lse = FLASH.forward(query, key, value, call)
    assert out.shape == query.shape
    assert (lse.shape, lse.dtype) == ((8, len(query)), torch.float32)
    gradients = FLASH.backward(out, query, key, value, out, lse, call)
    assert [x.shape for x in gradients] == [query.shape, key.shape, value.shape]


def test_the_flash_kernels_are_told_window_and_order(monkeypatch):
    calls = []

    def forward(q, k, v, cu_q, cu_k, max_q, max_k, dropout, causal, debug, *, scale, **window):
        calls.append(("forward", max_q, max_k, dropout, causal, debug, scale, window))
        return q, torch.empty(8, len(q)), None, None, None

    def backward(
        g, q, k, v, o, lse, cu_q, cu_k, max_q, max_k, dropout, causal, seed, offset, *, scale, **window
    ):
        calls.append(("backward", max_q, max_k, dropout, causal, scale, window))
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
        return q, k, v

    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", forward)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_backward", backward)
    query, key, value, call = on_meta(forest(SHARED))
    for window in (0, 16):
        out, lse = FLASH.forward(query, key, value, call._replace(window=window))
        FLASH.backward(out, query, key, value, out, lse, call._replace(window=window))
    everything = {"window_size_left": -1, "window_size_right": 0}
    # A window of W keys, the query's own included, leaves W - 1 to the left of it.
    sliding = {"window_size_left": 15, "window_size_right": 0}
    assert calls == [
        ("forward", 256, 256, 0.0, True, False, 0.125, everything),
        ("backward", 256, 256, 0.0, True, 0.125, everything),
        ("forward", 256, 256, 0.0, False, False, 0.125, sliding),
        ("backward", 256, 256, 0.0, False, 0.125, sliding),
    ]


@pytest.mark.parametrize("warn_only", [None, True, False])
def test_the_order_of_sums_is_fixed_for_one_call_only(monkeypatch, warn_only):
    def broken(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(torch.ops.aten, "_flash_attention_backward", broken)
    query, key, value, call = on_meta(forest(SHARED))
    torch._C._set_deterministic_algorithms(warn_only is not None, warn_only=bool(warn_only))
    try:
        with pytest.raises(RuntimeError, match="out of memory"):
            FLASH.backward(query, query, key, value, query, query, call)
        assert torch.are_deterministic_algorithms_enabled() == (warn_only is not None)
        assert torch.is_deterministic_algorithms_warn_only_enabled() == bool(warn_only)
        assert torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch._C._set_deterministic_algorithms(False)


def test_a_torch_without_flash_attention_is_noticed(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    assert flash_is_usable()
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    assert not flash_is_usable()


def test_cuda_tensors_take_the_flash_kernels():
    class OnCuda:
        is_cuda = True

    assert varlen._kernel(OnCuda()) is FLASH
    assert varlen._kernel(torch.zeros(1)) is EXACT
