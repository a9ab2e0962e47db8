import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lite_align.data.forest import Batch, batch, grow
from lite_align.data.types import Rendered
from lite_align.model.tiled import TiledPlan, tile_size


def forest(shapes: list[tuple[int, list[int]]], pad_to: int = 1) -> Batch:
    """Trees of a root length and leaf lengths; the tokens differ, so that the roots are exactly these."""
    trees = []
    for key, (root, leaves) in enumerate(shapes):
        rows = [
            (*range(10, 10 + root), *range(100 * (n + 1), 100 * (n + 1) + size))
            for n, size in enumerate(leaves)
        ]
        if len(rows) == 1:
            root = len(rows[0]) - 1
        trees.append(grow(key, [Rendered(row, (False,) * len(row)) for row in rows]))
    return batch(trees, pad_to=pad_to)


def alone(row: Batch, query, key, value, scale, window=0, softcap=0.0):
    """Attend each leaf by itself, by the definition: (T, H, D), padding left at zero."""
    groups = query.shape[1] // key.shape[1]
    out = torch.zeros(*query.shape[:2], value.shape[2], dtype=query.dtype)
    for number, place in enumerate(row.leaf_positions()):
        q = query[place].transpose(0, 1)
        k, v = (x[place].transpose(0, 1).repeat_interleave(groups, 0) for x in (key, value))
        scores = q @ k.transpose(1, 2) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        size = len(place)
        distance = torch.arange(size)[:, None] - torch.arange(size)
        hidden = (distance < 0) | (distance >= (window or size))
        mixed = scores.masked_fill(hidden, -math.inf).softmax(-1) @ v
        own = row.segments[number].queries
        out = out.index_copy(0, place[-own:], mixed.transpose(0, 1)[-own:])
    return out


def tensors(row: Batch, heads=4, key_heads=2, size=8, value_size=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    count = row.input_ids.shape[1]
    shapes = [(count, heads, size), (count, key_heads, size), (count, key_heads, value_size)]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def compare(row: Batch, plan: TiledPlan, inputs, window=0, softcap=0.0, tolerance=1e-10):
    scale = 0.37
    expected = alone(row, *inputs, scale, window, softcap)
    got = plan.attend(*inputs, scale, window, softcap)
    real = row.tokens
    assert (got[:real] - expected[:real]).abs().max() < tolerance
    weight = torch.randn(expected[:real].shape, generator=torch.Generator().manual_seed(1)).to(expected.dtype)
    wanted = torch.autograd.grad((expected[:real] * weight).sum(), inputs)
    given = torch.autograd.grad((got[:real] * weight).sum(), inputs)
    for one, other in zip(given, wanted):
        assert (one - other).abs().max() < tolerance


SHAPES = [(5, [4, 7]), (1, [3]), (9, [2, 6, 1, 12])]


@pytest.mark.parametrize("tile", [1, 4, 96])
@pytest.mark.parametrize("window", [0, 1, 3, 8, 500])
@pytest.mark.parametrize("softcap", [0.0, 0.7])
def test_equal_to_every_leaf_alone(tile, window, softcap):
    row = forest(SHAPES, pad_to=8)
    compare(row, TiledPlan.of(row, tile), tensors(row), window, softcap)


@pytest.mark.parametrize(("heads", "key_heads", "value_size"), [(4, 4, 8), (6, 2, 8), (4, 1, 5)])
def test_head_groups_and_value_sizes(heads, key_heads, value_size):
    row = forest(SHAPES)
    compare(row, TiledPlan.of(row, 4), tensors(row, heads, key_heads, value_size=value_size))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.lists(st.integers(1, 9), min_size=1, max_size=4)),
        min_size=1,
        max_size=3,
    ),
    st.integers(1, 10),
    st.integers(0, 12),
)
def test_any_forest(shapes, tile, window):
    row = forest(shapes)
    compare(row, TiledPlan.of(row, tile), tensors(row), window)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2.0**-8)])
def test_narrow_inputs_keep_their_dtype_and_are_rounded_once(dtype, tolerance):
    row = forest(SHAPES)
    inputs = [x.detach().to(dtype).requires_grad_() for x in tensors(row)]
    expected = alone(row, *(x.double() for x in inputs), 0.37)
    out = TiledPlan.of(row).attend(*inputs, 0.37, 0, 0.0)
    assert out.dtype == dtype
    # One rounding of the result itself: half a step of the dtype, relative to each number.
    assert ((out - expected).abs() <= tolerance * expected.abs() + 1e-6).all()
    out.sum().backward()
    assert all(x.grad is not None and x.grad.dtype == dtype for x in inputs)


def test_numerical_gradients():
    row = forest([(2, [1, 2])])
    plan = TiledPlan.of(row, 2)
    inputs = tensors(row, 2, 1, 3, 2)
    assert torch.autograd.gradcheck(lambda *x: plan.attend(*x, 0.5, 0, 0.0), inputs)
    assert torch.autograd.gradcheck(lambda *x: plan.attend(*x, 0.5, 2, 1.5), inputs)


def test_a_tile_reads_no_key_that_its_window_hides():
    # Root of 6, leaf of 4 with a window of 3: the leaf's first query, position 6, sees positions 4 to 6.
    row = forest([(6, [4, 4])])
    plan = TiledPlan.of(row)
    query, key, value = (x.detach() for x in tensors(row))
    before = plan.attend(query, key, value, 0.37, 3, 0.0)
    key[:4], value[:4] = math.nan, math.nan
    after = plan.attend(query, key, value, 0.37, 3, 0.0)
    assert torch.equal(before[10:], after[10:])


def test_the_op_passes_the_checks_of_torch():
    # Fake tensors, autograd registration and dynamic shapes: what torch.compile relies on.
    row = forest([(3, [2, 4])])
    plan = TiledPlan.of(row)
    inputs = tensors(row, dtype=torch.float32)
    op = torch.ops.lite_align.tiled_attention.default
    torch.library.opcheck(op, (*inputs, plan.tiles, 0.5, 0, 0.0))


@pytest.mark.parametrize(("heads", "tile"), [(1, 192), (4, 192), (6, 128), (8, 96), (32, 96)])
def test_fewer_heads_have_larger_tiles(heads, tile):
    assert tile_size(heads) == tile
