"""One side in a process of its own: a job in, a JSON file out; what goes wrong is a result too."""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu.job import Job

ROOT = Path(__file__).resolve().parents[2]

SIDES = {
    "card": ("device", "measure"),
    "lite": ("lite", "measure"),
    "trl": ("opponents", "trl"),
    "unsloth": ("opponents", "unsloth"),
    "checkpoint": ("opponents", "checkpoint"),
    "memory": ("memory", "measure"),
}
"""Module and function of each side, imported in its process alone: Unsloth must come before everything else."""


class Scratch:
    """A folder for the length of a part: caches, a checkpoint, and the packages of a kit.

    Args:
        folder: an empty folder.
        kit: a folder of wheels to install into it; they come before the machine's own packages.
    """

    def __init__(self, folder: Path, kit: Path | None = None) -> None:
        self.folder = folder
        self.paths = [str(ROOT)]
        if kit is not None:
            wheels = sorted(map(str, kit.glob("*.whl")))
            if not wheels:
                raise SystemExit(
                    f"There are no wheels in {kit}. Make them with: python -m benchmarks.gpu.wheels"
                )
            site = folder / "site"
            install = ["install", "--quiet", "--no-index", "--no-deps", "--target", str(site), *wheels]
            done = subprocess.run(
                [sys.executable, "-m", "pip", *install], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise SystemExit(f"The wheels of {kit} cannot be installed:\n{done.stderr[-2000:]}")
            self.paths.insert(0, str(site))

    def environment(self) -> dict[str, str]:
        """Variables of a child: its packages, no network, caches of its own, an allocator that can grow."""
        known = os.environ.get("PYTHONPATH", "")
        return os.environ | {
            "PYTHONPATH": os.pathsep.join([*self.paths, *filter(None, [known])]),
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "UNSLOTH_DISABLE_STATISTICS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TQDM_DISABLE": "1",
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor"),
            "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        }

    def run(self, job: Job, seconds: float) -> dict[str, Any]:
        """Do a job in a fresh process: what it measured, or `error` with the last lines of what it said."""
        started = time.monotonic()
        with tempfile.TemporaryDirectory(dir=self.folder) as own:
            result = Path(own) / "result.json"
            caches = {"HF_DATASETS_CACHE": f"{own}/datasets", "LITE_ALIGN_CACHE": f"{own}/lite-align"}
            command = [sys.executable, "-m", "benchmarks.gpu.sides", json.dumps(asdict(job)), str(result)]
            with (Path(own) / "log").open("w+", encoding="utf-8", errors="replace") as log:
                try:
                    # Unsloth writes the code that it makes into the current folder.
                    code = subprocess.run(
                        command,
                        cwd=own,
                        env=self.environment() | caches,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        timeout=seconds,
                        check=False,
                    ).returncode
                except subprocess.TimeoutExpired:
                    return {"error": f"stopped after {seconds:.0f} s", "seconds": seconds}
                log.seek(0)
                said = log.read()
            if code or not result.exists():
                last = "\n".join(said.strip().splitlines()[-12:])
                return {"error": last[-1500:] or f"exit code {code}", "seconds": time.monotonic() - started}
            found = json.loads(result.read_text(encoding="utf-8"))
        return found | {"seconds": time.monotonic() - started}


def measure(job: Job) -> dict[str, Any]:
    """Do a job in this process."""
    module, function = SIDES[job.side]
    return getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)(job)


def main() -> None:
    """The child: do the job and write what it measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("job", type=json.loads)
    parser.add_argument("result", type=Path)
    args = parser.parse_args()
    lists = {k: tuple(v) for k, v in args.job.items() if isinstance(v, list)}
    found = measure(Job(**{**args.job, **lists}))
    args.result.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
