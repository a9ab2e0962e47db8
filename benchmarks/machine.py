"""What a result was measured on: processor, memory, versions, commit."""

import os
import platform
import resource
import subprocess
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "trl")


def describe() -> dict[str, str]:
    """Return the machine in words, the versions and the commit."""
    cpu = next(
        (line.split(":")[1].strip() for line in read("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    flags = next((line for line in read("/proc/cpuinfo") if line.startswith("flags")), "")
    units = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags.split()]
    memory = next((int(line.split()[1]) for line in read("/proc/meminfo") if line.startswith("MemTotal")), 0)
    return {
        "cpu": f"{cpu}, {os.cpu_count()} cores ({', '.join(units)})",
        "memory": f"{memory / 2**20:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
        "commit": commit(),
    }


def commit() -> str:
    """The commit that is checked out, and whether the code differs from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "lite_align", "benchmarks/*.py")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with changes" if changed else "")


def read(path: str) -> list[str]:
    """Lines of a system file, none where there is no such file."""
    file = Path(path)
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


def resident_bytes() -> int:
    """Memory the process holds now."""
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * resource.getpagesize()


def reset_peak() -> None:
    """Start the peak of `peak_bytes` anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_bytes() -> int:
    """Most memory the process has held since `reset_peak`."""
    return next(int(line.split()[1]) * 1024 for line in read("/proc/self/status") if line.startswith("VmHWM"))
