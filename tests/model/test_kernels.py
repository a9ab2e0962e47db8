import math

import pytest
import torch

from lite_align.data.forest import Batch, batch
from lite_align.data.types import Leaf, Tree
from lite_align.errors import ModelError
from lite_align.model.kernels import MaskedPlan, masked_attention
from lite_align.model.tiled import TiledPlan


def forest(shapes: list[tuple[int, list[int]]], pad_to: int = 1) -> Batch:
    """Trees of a root length and leaf lengths."""
    trees = []
    for key, (root, sizes) in enumerate(shapes):
        leaves = tuple(Leaf((1,) * size, (True,) * size) for size in sizes)
        trees.append(Tree(key, (1,) * root, (False,) * root, leaves))
    return batch(trees, pad_to=pad_to)


def tensors(row: Batch, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    count = row.input_ids.shape[1]
    return [
        torch.randn(count, heads, 8, generator=generator, dtype=dtype).requires_grad_() for heads in (4, 2, 2)
    ]


SHAPES = [(5, [4, 7]), (1, [3]), (9, [2, 6, 1, 12])]


@pytest.mark.parametrize("softcap", [0.0, 0.7])
@pytest.mark.parametrize("window", [0, 1, 3, 8, 21])
@pytest.mark.parametrize("shapes", [SHAPES, [(4, [3]), (2, [5])]], ids=["shared", "nothing shared"])
def test_the_mask_equals_tiles(shapes, window, softcap):
    row = forest(shapes, pad_to=8)
    expected_inputs, inputs = tensors(row), tensors(row)
    # The tiles stand against the definition of attention in test_tiled.py.
    expected = TiledPlan.of(row).attend(*expected_inputs, 0.37, window, softcap)
    plan = MaskedPlan.of(row, torch.float64, (2, window) if window else (2,))
    out = plan.attend(*inputs, 0.37, window, softcap)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=expected.dtype)
    (expected * weight).sum().backward()
    (out * weight).sum().backward()
    assert (out - expected).abs().max() < 1e-10
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


def test_a_window_that_hides_nothing_costs_no_mask():
    # The longest list of keys is 9 + 12 = 21, which a window of 21 shows whole and one of 20 does not.
    plan = MaskedPlan.of(forest(SHAPES), torch.float32, (20, 21))
    masks = dict(plan.windows)
    assert masks[21] is plan.mask
    assert not torch.equal(masks[20], plan.mask)


def test_an_unknown_window_is_refused():
    row = forest(SHAPES)
    with pytest.raises(ModelError, match="window of 3"):
        MaskedPlan.of(row, torch.float64, (4,)).attend(*tensors(row), 1.0, 3, 0.0)


def test_attention_without_a_mask_sees_all_keys():
    query, key, value = (torch.randn(1, heads, 3, 4, dtype=torch.float64) for heads in (2, 1, 1))
    capped = masked_attention(query, key, value, None, 0.5, 1e6)
    assert torch.allclose(capped, masked_attention(query, key, value, None, 0.5, 0.0))


@pytest.mark.parametrize("shape", [(3, 5), (2, 1, 3, 5)], ids=str)
def test_a_mask_for_all_rows_or_for_each(shape):
    # A softcap of a million caps nothing, so both ways compute the same.
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 3, 8, generator=generator, dtype=torch.float64)
    key, value = torch.randn(2, 2, 2, 5, 8, generator=generator, dtype=torch.float64)
    mask = torch.randn(shape, generator=generator, dtype=torch.float64)
    capped = masked_attention(query, key, value, mask, 0.5, 1e6)
    assert torch.allclose(capped, masked_attention(query, key, value, mask, 0.5, 0.0))
