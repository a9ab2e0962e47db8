"""`python -m benchmarks.gpu.wheels {trl,unsloth} FOLDER`: the wheels that a machine without a network lacks.

For a machine with its own torch, transformers, accelerate, pyarrow and pandas (CPython 3.12, Linux, x86-64, CUDA
13): pinned versions without their dependencies, pruned of what is never used there, 64 MiB at most.
"""

import argparse
import base64
import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

LIMIT = 64 * 2**20

BASE = (
    "bitsandbytes==0.50.2",
    "peft==0.21.2",
    "pydantic==2.14.4",
    "pydantic_core==2.50.5",
    "annotated-types==0.8.0",
    "typing-inspection==0.4.5",
    "dill==0.4.1",
    "multiprocess==0.70.19",
)
UNSLOTH_NEEDS = (  # imported by it
    "diffusers==0.42.1 torchao==0.18.0 hf_transfer==0.1.9 cut_cross_entropy==25.1.1 msgspec==0.22.0 tyro==1.0.17 "
    "shtab==1.13.0 docstring_parser==0.18.0 nest_asyncio==1.6.0 json5==0.17.3 structlog==26.1.0"
)
KITS = {
    "trl": (*BASE, "trl==1.16.0", "datasets==5.2.0"),
    # The newest trl that this Unsloth allows, and datasets below 5.
    "unsloth": (
        *BASE,
        *(
            "unsloth==2026.10.9",
            "unsloth_zoo==2026.10.9",
            "trl==1.15.0",
            "datasets==4.8.5",
            "xformers==0.0.35",
        ),
        *UNSLOTH_NEEDS.split(),
    ),
}
PRUNED = {
    "bitsandbytes": r"/libbitsandbytes_(cuda(?!130)|rocm|xpu)",
    "unsloth": r"^(studio|unsloth_cli)/",
}
"""Members of a wheel that a machine with CUDA 13 never loads: libraries for other devices, applications."""

PLATFORMS = (
    "manylinux_2_28_x86_64",
    "manylinux_2_24_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
    "any",
)


def prune(wheel: Path, pattern: str) -> None:
    """Remove the members of a wheel whose path matches, and rewrite RECORD so that it still installs."""
    smaller, record, lines = wheel.with_suffix(".part"), "", []
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.infolist():
            if member.filename.endswith(".dist-info/RECORD"):
                record = member.filename
            elif not re.search(pattern, member.filename):
                content = source.read(member)
                target.writestr(member, content, zipfile.ZIP_DEFLATED, 9)
                digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
                lines.append(f"{member.filename},sha256={digest},{len(content)}")
        target.writestr(record, "\n".join([*lines, f"{record},,"]) + "\n")
    smaller.replace(wheel)


def download(names: tuple[str, ...], folder: Path) -> None:
    """Have pip fetch wheels for CPython 3.12 on Linux, without their dependencies."""
    options = ["--no-deps", "--only-binary=:all:", "--python-version=3.12", "--implementation=cp"]
    options += [
        *(f"--abi={abi}" for abi in ("cp312", "abi3", "none")),
        *(f"--platform={p}" for p in PLATFORMS),
    ]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *options, "--dest", str(folder), *names]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit("pip could not fetch the wheels; its message is above.")


def make(kit: str, folder: Path) -> int:
    """Download a kit into an empty folder, prune it, print the sizes and return the sum of bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise SystemExit(f"{folder} is not empty. Give a new folder: --kit installs every wheel in it.")
    with tempfile.TemporaryDirectory() as fresh:
        download(KITS[kit], Path(fresh))
        for wheel in sorted(Path(fresh).glob("*.whl")):
            package = wheel.name.split("-")[0].lower()
            if package in PRUNED:
                prune(wheel, PRUNED[package])
            (folder / wheel.name).write_bytes(wheel.read_bytes())
    sizes = {wheel.name: wheel.stat().st_size for wheel in sorted(folder.glob("*.whl"))}
    for name, size in {**sizes, "in all": sum(sizes.values())}.items():
        print(f"{size / 2**20:7.2f} MiB  {name}")
    return sum(sizes.values())


def main() -> None:
    """Make a kit; refuse one that is too large to carry."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kit", choices=list(KITS))
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    if make(args.kit, args.folder) > LIMIT:
        raise SystemExit(f"The kit is larger than {LIMIT / 2**20:.0f} MiB: it cannot be carried.")


if __name__ == "__main__":
    main()
