"""What a figure was measured on: card, driver, versions; its peak speed; and peak memory."""

import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from benchmarks.gpu.job import Job

PACKAGES = ("torch", "triton", "transformers", "peft", "bitsandbytes", "accelerate", "trl", "unsloth")


def the_device() -> torch.device:
    """The first CUDA device, or the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def synchronize() -> None:
    """Wait until the device has done everything."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def describe(device: torch.device) -> dict[str, Any]:
    """The device in words and the versions of what computes on it."""
    found: dict[str, Any] = {"kind": device.type, "python": platform.python_version()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        query = ["nvidia-smi", "--query-gpu=driver_version,power.limit", "--format=csv,noheader"]
        found |= {
            "name": properties.name,
            "memory": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "driver and power limit": _output(query),
        }
    else:
        found |= {"name": f"CPU ({platform.machine()})", "memory": None, "cores": os.cpu_count()}
    return found | {"versions": versions()}


def versions() -> dict[str, str]:
    """Versions of the packages that matter, of those that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except OSError:
        return "unknown"
    return next(iter(done.stdout.splitlines()), "unknown")


def seconds(work: Callable[[], object], repeats: int = 10) -> float:
    """Median seconds of some work on the device, after three warm-ups."""
    taken = []
    for _ in range(3 + repeats):
        synchronize()
        started = time.perf_counter()
        work()
        synchronize()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[3:])


def measure(job: Job) -> dict[str, Any]:
    """Describe the device and measure its bf16 matrix product (random data) and its copy speed."""
    device = the_device()
    size, copied = (8192, 2**31) if device.type == "cuda" else (512, 2**24)
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(copied, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return {
        "device": describe(device),
        "flops": 2 * size**3 / seconds(lambda: a @ b),
        "bandwidth": 2 * copied / seconds(lambda: target.copy_(source)),  # bytes read and written
    }


def reset_peak() -> None:
    """Start the peak of `peak` anew (on a CPU it is that of the whole process)."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak() -> dict[str, int | None]:
    """Most bytes allocated and reserved since `reset_peak`; on a CPU the process's most resident bytes."""
    if torch.cuda.is_available():
        return {
            "peak_allocated": torch.cuda.max_memory_allocated(),
            "peak_reserved": torch.cuda.max_memory_reserved(),
        }
    return {
        "peak_allocated": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "peak_reserved": None,
    }
