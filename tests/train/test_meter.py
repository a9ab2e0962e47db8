"""Measured memory and speed: real allocations on the CPU, the driver's arithmetic on CUDA, a clock of our own."""

import itertools
import os
from types import SimpleNamespace

import pytest
import torch

from lite_align.model.budget import Sizes
from lite_align.train import meter
from lite_align.train.meter import CpuMeter, CudaMeter

CPU = torch.device("cpu")
MIB = 2**20
SIZE = Sizes(
    layers=2,
    hidden=64,
    key_value=32,
    query=64,
    feed_forward=128,
    vocabulary=100,
    tied=True,
    block_weights=3 * 64 * 128,
    other_weights=6_400,
    adapter_inputs_outputs=1_000,
)


def test_the_peak_of_a_cpu_is_what_was_held():
    it = CpuMeter()
    it.reset()
    block = torch.ones(200 * MIB // 4)
    held = it.peak()
    assert 195 * MIB < held < 240 * MIB
    del block
    assert it.peak() >= held - MIB  # the peak stays
    it.reset()
    assert it.peak() < held - 150 * MIB


def test_free_memory_of_a_cpu_is_below_what_the_machine_has():
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < CpuMeter().free() <= whole


def test_a_control_group_with_a_limit_leaves_what_is_not_used(tmp_path):
    assert meter._group(tmp_path) == []
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert meter._group(tmp_path) == []
    (tmp_path / "memory.max").write_text("1000\n")
    assert meter._group(tmp_path) == [300]
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    assert meter._group(tmp_path) == [450]  # files in memory can go


def test_the_peak_of_a_gpu_is_the_context_and_the_tensors_at_a_time(monkeypatch):
    """10 GB are free at first; then the driver has 3.5 left, 6 of them reserved by torch: 0.5 is the context."""
    state = SimpleNamespace(free=10_000, reserved=0, allocated=0, peak=0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (state.free, 24_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: state.reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: state.allocated)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: state.peak)
    monkeypatch.setattr(
        torch.cuda, "reset_peak_memory_stats", lambda device: setattr(state, "peak", state.allocated)
    )
    it = CudaMeter(torch.device("cuda"))
    state.free, state.reserved, state.allocated, state.peak = 3_500, 6_000, 2_000, 5_000
    assert it.peak() == 500 + 5_000
    assert it.free() == 3_500 + 4_000
    it.reset()
    assert it.peak() == 500 + 2_000


def test_the_meter_belongs_to_the_device():
    assert isinstance(meter.meter(CPU), CpuMeter)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_speed_is_operations_by_seconds(monkeypatch, quantization):
    """Every measurement takes two seconds on this clock: 2 products of 256 * 64 * 128 in 4 seconds."""
    ticks = itertools.count(0.0, 2.0)
    monkeypatch.setattr(meter.time, "perf_counter", lambda: next(ticks))
    rate = meter.measure_rate(SIZE, quantization=quantization, dtype=torch.float32, device=CPU)
    assert rate.operations == 2 * 2 * 256 * 64 * 128 / 4
    # The blocks have three weights of the size that was unpacked.
    assert rate.unpacking == (6.0 if quantization == "nf4" else 0.0)


def test_a_real_clock_gives_a_speed_that_a_cpu_can_have():
    size = Sizes(2, 512, 512, 512, 2048, 100, True, 10**7, 51_200, 1_000)
    rate = meter.measure_rate(size, quantization="nf4", dtype=torch.float32, device=CPU)
    assert 1e8 < rate.operations < 1e14
    assert 0 < rate.unpacking < 10
