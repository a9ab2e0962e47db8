"""Measured memory and speed of the device: what is free, what a run held at most, how fast products are."""

import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from lite_align.model.bits import functional
from lite_align.model.budget import Sizes

ROWS = {"cuda": 4096, "cpu": 256}
"""Rows of the products that are timed: a micro-batch on a GPU; few on a CPU, whose products are soon at full speed."""

REPEATS = 5


class Meter(Protocol):
    """Memory of a device."""

    def free(self) -> int:
        """Bytes that this process can still take."""
        ...

    def reset(self) -> None:
        """Begin a new peak."""
        ...

    def peak(self) -> int:
        """The most bytes held since `reset`, over those held when the meter was made."""
        ...


class CudaMeter:
    """Memory of a CUDA device, as the driver sees it: the context and what torch has reserved."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = self.free()

    def free(self) -> int:
        """Bytes that the driver can still give, and those that torch holds without need."""
        spare = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return torch.cuda.mem_get_info(self._device)[0] + spare

    def reset(self) -> None:
        """Begin a new peak."""
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> int:
        """The most bytes held since `reset`: what left the driver, but tensors only as many as lived at a time."""
        driver = torch.cuda.mem_get_info(self._device)[0]
        outside = self._start - driver - torch.cuda.memory_reserved(self._device)
        return max(0, outside) + torch.cuda.max_memory_allocated(self._device)


class CpuMeter:
    """Resident memory of this process."""

    def __init__(self) -> None:
        self._start = _resident()

    def free(self) -> int:
        """Bytes that the system, or the control group of the process, can still give."""
        return min([_available(), *_group(Path("/sys/fs/cgroup"))])

    def reset(self) -> None:
        """Begin a new peak (where the system can; else the peak is that of the whole process)."""
        # Some containers do not let a process write here.
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:
            return

    def peak(self) -> int:
        """The most bytes held since `reset`."""
        return max(0, _peak() - self._start)


def meter(device: torch.device) -> Meter:
    """The meter of a device."""
    return CudaMeter(device) if device.type == "cuda" else CpuMeter()


def _fields(path: str) -> dict[str, int]:
    """Lines such as `VmHWM:  1234 kB` of a system file as bytes; empty where there is no such file."""
    file = Path(path)
    if not file.exists():
        return {}
    lines = (line.split() for line in file.read_text(encoding="utf-8").splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[2:] == ["kB"]}


def _resident() -> int:
    return _fields("/proc/self/status").get("VmRSS", _peak())


def _peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return _fields("/proc/self/status").get(
        "VmHWM", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    )


def _available() -> int:
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return _fields("/proc/meminfo").get("MemAvailable", whole)


def _group(folder: Path) -> list[int]:
    """What the limit of the control group (version 2) in a folder leaves; empty where there is none."""
    limit, now = folder / "memory.max", folder / "memory.current"
    if not (limit.exists() and now.exists()) or limit.read_text(encoding="ascii").strip() == "max":
        return []
    used = int(now.read_text(encoding="ascii")) - _cached(folder / "memory.stat")
    return [int(limit.read_text(encoding="ascii")) - used]


def _cached(stat: Path) -> int:
    """Bytes of files that the group holds in memory and can let go."""
    if not stat.exists():
        return 0
    fields = dict(line.split() for line in stat.read_text(encoding="ascii").splitlines())
    return int(fields.get("inactive_file", 0))


# Speed.


@dataclass(frozen=True, slots=True)
class Rate:
    """Speed of a device on the products of a model.

    Attributes:
        operations: floating-point operations a second.
        unpacking: seconds to unpack all weights of the blocks once; 0 where they are not quantised.
    """

    operations: float
    unpacking: float


@torch.no_grad()
def measure_rate(size: Sizes, *, quantization: str, dtype: torch.dtype, device: torch.device) -> Rate:
    """Time the two kinds of products of a feed-forward layer, and the unpacking of its 4-bit weight.

    Takes about a second for a 7B model on a CPU, and milliseconds on a GPU.
    """
    rows = ROWS[device.type]
    weight = torch.randn(size.feed_forward, size.hidden, device=device).to(dtype)
    inputs = torch.randn(rows, size.hidden, device=device).to(dtype)
    outputs = torch.randn(rows, size.feed_forward, device=device).to(dtype)
    seconds = _seconds(lambda: inputs @ weight.t(), device) + _seconds(lambda: outputs @ weight, device)
    operations = 4.0 * rows * weight.numel() / seconds
    if quantization != "nf4":
        return Rate(operations, 0.0)
    packed, state = functional.quantize_4bit(weight, quant_type="nf4")
    once = _seconds(lambda: functional.dequantize_4bit(packed, state), device)
    return Rate(operations, once * size.block_weights / weight.numel())


def _seconds(work: Callable[[], Tensor], device: torch.device) -> float:
    """The shortest of a few times, after one to warm up."""
    work()
    times = []
    for _ in range(REPEATS):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - start)
    return min(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
