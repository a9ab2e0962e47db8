"""Errors of a device: which they are, what a failed attempt leaves, and how far a token budget is lowered."""

import gc
import weakref
from pathlib import Path

import pytest
import torch

from lite_align.errors import DeviceLost, TooLittleMemory
from lite_align.train.faults import (
    Lowered,
    Shortage,
    Size,
    TokenBudget,
    attempt,
    device_lost,
    free_memory,
    lost_device_told,
    out_of_memory,
    smaller,
)

# Messages as they reach Python: torch's allocator, CUDA beside it, cuBLAS, the CPU's allocator, compiled code.
OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …"),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("backend='inductor' raised:\nOutOfMemoryError: CUDA out of memory."),
]
LOST = [
    torch.AcceleratorError("CUDA error: unspecified launch failure"),
    torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
    torch.AcceleratorError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(…)`"),
]
OTHER = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    ValueError("out of memory"),
    MemoryError(),
]


def test_errors_are_told_apart():
    assert [out_of_memory(error) for error in OUT_OF_MEMORY + LOST + OTHER] == [True] * 5 + [False] * 9
    assert [device_lost(error) for error in OUT_OF_MEMORY + LOST + OTHER] == [False] * 5 + [True] * 6 + [
        False
    ] * 3


def test_the_allocator_of_the_cpu_is_understood():
    found = attempt(lambda: torch.empty(10**15))
    assert isinstance(found, Shortage)
    assert "can't allocate memory" in found.words


def test_what_a_failed_attempt_held_is_free_afterwards():
    held: list[weakref.ref[torch.Tensor]] = []

    def work() -> None:
        graph = torch.ones(3, requires_grad=True) * 2
        cycle = [graph]
        cycle.append(cycle)  # type: ignore[arg-type]
        held.append(weakref.ref(graph))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.\nMore.")

    assert attempt(work) == Shortage("CUDA out of memory. Tried to allocate 1.00 GiB.")
    assert held[0]() is None


def test_results_and_other_errors_pass():
    assert attempt(lambda: 7) == 7
    with pytest.raises(RuntimeError, match="shapes"):
        attempt(_wrong)


def _wrong() -> None:
    raise RuntimeError("shapes")


@pytest.mark.parametrize(
    ("passes", "tokens"),
    [
        ([Size(4000, 4), Size(3999, 3)], 2000),  # half of the largest, whatever the budget was
        ([Size(9000, 1), Size(301, 2)], 150),  # the longest example cannot be cut
        ([Size(9000, 1), Size(3, 1)], None),
        ([], None),
    ],
)
def test_passes_are_halved(passes, tokens):
    assert smaller(passes) == tokens


def test_a_budget_is_lowered_and_told():
    told: list[Lowered] = []
    budget = TokenBudget(4096, tell=told.append)
    budget.lower(Shortage("CUDA out of memory"), "the backward pass of step 3", [Size(3000, 2), Size(900, 1)])
    assert budget.tokens == 1500
    assert told == [Lowered("the backward pass of step 3", 4096, 1500, "CUDA out of memory")]
    for part in ("backward pass of step 3", "1,500", "4,096", "same examples"):
        assert part in str(told[0])


def test_the_end_names_the_levers_and_the_sizes():
    budget = TokenBudget(4096, levers=["model.gradient_checkpointing=on", "a smaller model"])
    with pytest.raises(TooLittleMemory, match="the forward pass of step 1") as told:
        budget.lower(
            Shortage("Tried to allocate 2.00 GiB"), "the forward pass of step 1", [Size(1700, 1), Size(9, 1)]
        )
    assert told.value.exit_code == 2
    assert "1,700" in told.value.details[0]
    assert told.value.details[1] == "Tried to allocate 2.00 GiB"
    assert told.value.remedy == "model.gradient_checkpointing=on · a smaller model"
    assert budget.tokens == 4096


def test_a_checkpoint_lowers_the_budget_unless_the_recipe_has_changed():
    lowered = TokenBudget(4096)
    lowered.tokens = 1500
    for planned, tokens in ((4096, 1500), (1024, 1024), (8192, 8192)):
        budget = TokenBudget(planned)
        budget.load_state(lowered.state())
        assert budget.tokens == tokens


def test_a_lost_device_says_how_to_go_on():
    with pytest.raises(DeviceLost) as told, lost_device_told(Path("runs/dpo-1")):
        raise torch.AcceleratorError("CUDA error: unspecified launch failure\nCUDA kernel errors …")
    assert told.value.exit_code == 75
    assert told.value.details == ("CUDA error: unspecified launch failure",)
    assert "--resume --out runs/dpo-1" in told.value.remedy
    with pytest.raises(RuntimeError, match="shapes"), lost_device_told(Path("run")):
        _wrong()


def test_memory_in_cycles_is_freed() -> None:
    class Holder:
        pass

    holder = Holder()
    holder.own, holder.weight = holder, torch.zeros(8)
    left = weakref.ref(holder)
    gc.disable()
    try:
        del holder
        assert left() is not None
        free_memory()
        assert left() is None
    finally:
        gc.enable()
