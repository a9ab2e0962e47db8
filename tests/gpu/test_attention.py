"""Attention on CUDA against fp64 on the CPU; the same tests run on the CPU too, in few cases, to test themselves.

Needs pytest and what lite-align itself needs, nothing of the development tools.
"""

import os
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, MistralConfig

from lite_align.data.forest import Batch, batch
from lite_align.data.types import Leaf, Tree
from lite_align.model import attention
from lite_align.model.attention import Kernel, KernelKind
from lite_align.model.kernels import MaskedPlan, masked_attention
from lite_align.model.tiled import TiledPlan
from lite_align.model.varlen import VarlenPlan

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32

CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")],
)
DEVICES = ["cpu", CUDA]

AMPERE = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
FLASH = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not AMPERE, reason="needs compute capability 8.0")],
)

# Segments shorter and longer than a block of the kernels, leaves of one token, a root that eight leaves share,
# trees that share nothing, padding.
SHAPES = [(130, [40, 70]), (1, [33]), (300, [20, 6, 1, 120, 1, 2, 3, 65]), (0, [257])]


def forest(shapes=SHAPES) -> Batch:
    """Trees of a root length and leaf lengths, padded to a multiple of 64 tokens."""
    trees = []
    for key, (root, sizes) in enumerate(shapes):
        leaves = tuple(Leaf((1,) * size, (True,) * size) for size in sizes)
        trees.append(Tree(key, (1,) * root, (False,) * root, leaves))
    return batch(trees, pad_to=64)


def tensors(row: Batch, dtype, head: int, heads=(6, 2, 2)) -> list[torch.Tensor]:
    """Query, key, value and a gradient of the output, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    count = row.input_ids.shape[1]
    shapes = [(count, number, head) for number in (*heads, heads[0])]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def run(plan, given, device, dtype, window=0, softcap=0.0) -> list[torch.Tensor]:
    """Output and the gradients of query, key and value."""
    *inputs, gradient = (x.to(device, dtype) for x in given)
    inputs = [x.requires_grad_() for x in inputs]
    out = plan.attend(*inputs, inputs[0].shape[-1] ** -0.5, window, softcap)
    return [out.detach(), *torch.autograd.grad(out, inputs, gradient)]


def assert_close(got, expected, bound: float) -> None:
    for one, other in zip(got, expected, strict=True):
        assert one.isfinite().all()
        assert (one.cpu().double() - other).norm() < bound * other.norm()


BOUND = {BF16: 2e-2, FP16: 3e-3, FP32: 1e-4}
"""Relative to the norm: a few roundings; one key of 200 too many or too few moves it by several hundredths."""

HEADS = [64, 96, 128, 256]


@pytest.mark.parametrize("window", [0, 16, 200])
@pytest.mark.parametrize(
    ("device", "dtype", "head"),
    [
        ("cpu", BF16, 64),
        ("cpu", FP16, 64),
        *(pytest.param("cuda", dtype, head, marks=FLASH.marks) for dtype in (BF16, FP16) for head in HEADS),
    ],
)
def test_varlen_equals_exact_tiles(device, dtype, head, window):
    row = forest()
    given = tensors(row, dtype, head)
    expected = run(TiledPlan.of(row), given, "cpu", torch.float64, window)
    assert_close(run(VarlenPlan.of(row.to(device)), given, device, dtype, window), expected, BOUND[dtype])


@pytest.mark.parametrize("heads", [(4, 4, 4), (8, 1, 1)], ids=["as many", "one"])
@pytest.mark.parametrize("device", ["cpu", FLASH])
def test_varlen_with_as_many_key_heads_and_with_one(device, heads):
    row = forest()
    given = tensors(row, BF16, 64, heads)
    expected = run(TiledPlan.of(row), given, "cpu", torch.float64)
    assert_close(run(VarlenPlan.of(row.to(device)), given, device, BF16), expected, BOUND[BF16])


@pytest.mark.parametrize("device", ["cpu", FLASH])
def test_varlen_where_nothing_is_shared(device):
    row = forest([(40, [70]), (0, [200]), (9, [1])])
    given = tensors(row, BF16, 128)
    expected = run(TiledPlan.of(row), given, "cpu", torch.float64)
    assert_close(run(VarlenPlan.of(row.to(device)), given, device, BF16), expected, BOUND[BF16])


@pytest.mark.parametrize("shapes", [SHAPES, [(2000, [300] * 6)], [(0, [3000])]], ids=["many", "deep", "one"])
@pytest.mark.parametrize("device", ["cpu", FLASH])
def test_varlen_repeats_bit_for_bit(device, shapes):
    if device == "cpu":
        shapes = SHAPES  # long rows are for the many blocks of a GPU
    row = forest(shapes)
    given = tensors(row, BF16, 64)
    plan = VarlenPlan.of(row.to(device))
    first = run(plan, given, device, BF16)
    for _ in range(3):
        assert all(torch.equal(one, other) for one, other in zip(first, run(plan, given, device, BF16)))


@pytest.mark.parametrize("window", [0, 16, 200])
@pytest.mark.parametrize(("dtype", "head"), [(FP16, 64), (BF16, 128), (FP32, 64), (FP16, 512)])
@pytest.mark.parametrize("device", DEVICES)
def test_mask_equals_exact_tiles(device, dtype, head, window):
    row = forest([(30, [40, 20]), (1, [33]), (0, [100])])
    given = tensors(row, dtype, head)
    expected = run(TiledPlan.of(row), given, "cpu", torch.float64, window)
    plan = MaskedPlan.of(row.to(device), dtype, (16, 200))
    assert_close(run(plan, given, device, dtype, window), expected, BOUND[dtype])


@pytest.mark.parametrize(("dtype", "head"), [(BF16, 256), (FP16, 64), (FP32, 20)])
@pytest.mark.parametrize("device", DEVICES)
def test_tiles_with_a_softcap_equal_exact_tiles(device, dtype, head):
    row = forest([(130, [40, 70]), (0, [600])])
    given = tensors(row, dtype, head)
    expected = run(TiledPlan.of(row), given, "cpu", torch.float64, 100, 2.0)
    plan = attention.plan(row.to(device), Kernel(KernelKind.TILED))
    assert_close(run(plan, given, device, dtype, 100, 2.0), expected, BOUND[dtype])


@pytest.mark.parametrize("device", DEVICES)
def test_generation_with_a_softcap_equals_fp64(device):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 40, 64, generator=generator).to(BF16) for heads in (8, 2, 2))
    mask = torch.zeros(40, 40).masked_fill(torch.ones(40, 40).triu(1) > 0, torch.finfo(FP32).min)
    expected = masked_attention(query.double(), key.double(), value.double(), mask, 0.125, 2.0)
    on_device = (x.to(device) for x in (query, key, value, mask))
    assert_close([masked_attention(*on_device, 0.125, 2.0)], [expected], BOUND[BF16])


@contextmanager
def no_waiting(device: str):
    """Fail where the host would wait for the device; on the CPU there is nothing to wait for."""
    if device == "cpu":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


# It warns that it does not find everything.
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize(
    ("device", "kind"),
    [
        *(("cpu", kind) for kind in KernelKind),
        pytest.param("cuda", KernelKind.VARLEN, marks=FLASH.marks),
        pytest.param("cuda", KernelKind.MASKED, marks=CUDA.marks),
        pytest.param("cuda", KernelKind.TILED, marks=CUDA.marks),
    ],
)
def test_the_host_never_waits_for_the_device(device, kind):
    row = forest().to(device)
    given = [x.to(device) for x in tensors(row, FP16, 64)]
    with no_waiting(device):
        plan = attention.plan(row, Kernel(kind, FP16, (16,)))
        run(plan, given, device, FP16, 16)
        run(plan, given, device, FP16)


SIZES = {
    "vocab_size": 128,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
MODELS = [
    LlamaConfig(**SIZES),
    MistralConfig(**SIZES, sliding_window=4),
    Gemma2Config(**SIZES, sliding_window=4, attn_logit_softcapping=2.0),
]


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
@pytest.mark.parametrize("config", MODELS, ids=lambda config: config.model_type)
@pytest.mark.parametrize("device", DEVICES)
def test_a_model_shares_prompts_with_the_kernel_that_is_chosen(device, config, dtype):
    attention.register()
    torch.manual_seed(0)
    kernel = attention.choose(config, device, dtype)
    assert kernel.reason
    if device == "cuda" and not getattr(config, "attn_logit_softcapping", None):
        fast = AMPERE and dtype is BF16
        assert kernel.kind is (KernelKind.VARLEN if fast else KernelKind.MASKED)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention.NAME).to(device, dtype)
    assert attention.shares_exactly(model.model, kernel, 128, 5e-2 if dtype is BF16 else 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [pytest.param("varlen", marks=FLASH.marks), pytest.param("masked", marks=CUDA.marks)]
)
def test_compiled_layers_equal_eager_ones(kind):
    # On the CPU this is in tests/model/test_attention.py.
    script = ["-m", "tests.model.compiled_layers", "cuda", "inductor", kind]
    done = subprocess.run(
        [sys.executable, *script], capture_output=True, text=True, timeout=280, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr[-3000:]
    graphs, error = done.stdout.split()[-2:]
    assert int(graphs) == 2
    assert float(error) < 5e-2
