"""Operations against a published table for 7 and 8 B models, worked by hand, and additive."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lite_align.model import flops
from lite_align.model.budget import Sizes, sizes
from tests.model.shapes import LLAMA_8B, QWEN_7B

TERA = 1e12


@pytest.fixture(scope="module")
def llama() -> Sizes:
    return sizes(LLAMA_8B)


@pytest.fixture(scope="module")
def qwen() -> Sizes:
    return sizes(QWEN_7B)


@pytest.mark.parametrize(
    ("model", "prompt", "answer", "forward", "backward", "reference", "least", "recomputing", "separate"),
    [
        ("llama", 128, 384, 13.5, 13.8, 13.4, 40.8, 53.5, 60.7),
        ("llama", 512, 256, 15.2, 15.6, 15.1, 45.8, 60.5, 89.6),
        ("llama", 1024, 512, 30.8, 32.4, 30.6, 93.8, 123.6, 182.6),
        ("llama", 1536, 256, 30.4, 32.1, 30.2, 92.7, 122.5, 212.2),
        ("qwen", 512, 256, 14.2, 14.5, 14.1, 42.8, 56.5, 83.7),
    ],
)
def test_a_pair_costs_what_the_formula_sheet_says(
    request, model, prompt, answer, forward, backward, reference, least, recomputing, separate
):
    """TFLOP of one pair with a shared prompt and two answers of one length, adapter of rank 16."""
    size = request.getfixturevalue(model)
    work = flops.Work.of(prompt, [answer, answer], 2 * answer)
    rounding = {"abs": 0.06}
    assert flops.forward(size, work, rank=16) / TERA == pytest.approx(forward, **rounding)
    assert flops.backward(size, work, rank=16) / TERA == pytest.approx(backward, **rounding)
    assert flops.forward(size, work, rank=0) / TERA == pytest.approx(reference, **rounding)
    whole = flops.least(size, work, rank=16)
    assert whole / TERA == pytest.approx(least, **rounding)
    again = flops.recomputation(size, work, rank=16, blocks=size.layers)
    assert (whole + again) / TERA == pytest.approx(recomputing, abs=0.12)
    apart = flops.total([flops.Work.of(0, [prompt + answer], answer)] * 2)
    theirs = flops.least(size, apart, rank=16)
    theirs += flops.recomputation(size, apart, rank=16, blocks=size.layers)
    assert theirs / TERA == pytest.approx(separate, **rounding)
    half = flops.recomputation(size, work, rank=16, blocks=size.layers // 2)
    assert half == pytest.approx(again / 2)


def test_pairs_of_positions_by_hand():
    # A root of 4 and leaves of 2 and 3: 8 + (2 * 4 + 2) + (3 * 4 + 4.5).
    assert flops.Work.of(4, [2, 3], 5) == flops.Work(9, 5, 34.5)


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(1, 500)), max_size=6))
def test_work_adds_up(rows):
    size = Sizes(2, 64, 32, 64, 128, 100, True, 10_000, 6_400, 1_000)
    works = [flops.Work.of(root, [leaf], leaf) for root, leaf in rows]
    apart = sum(flops.least(size, work, rank=4) for work in works)
    assert flops.least(size, flops.total(works), rank=4) == pytest.approx(apart)
