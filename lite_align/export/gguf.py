"""GGUF through llama.cpp's own converter, run as a child process on a merged folder."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from lite_align.errors import LiteAlignError, UserError
from lite_align.view import View, duration

SCRIPT = "convert_hf_to_gguf.py"
VARIABLE = "LLAMA_CPP"
_MAGIC = b"GGUF"
_TYPES = {"float32": "f32", "bfloat16": "bf16"}


def find_converter() -> Path:
    """llama.cpp's converter: in the folder that LLAMA_CPP names (or that file itself), or on the PATH.

    Raises:
        UserError: it is not there; says how to get it.
    """
    named = os.environ.get(VARIABLE)
    if named:
        path = Path(named).expanduser()
        path = path / SCRIPT if path.is_dir() else path
        if path.is_file():
            return path
    elif found := shutil.which(SCRIPT):
        return Path(found)
    raise UserError(
        f"{VARIABLE}={named} leads to no {SCRIPT}." if named else f"{SCRIPT} of llama.cpp was not found.",
        details=[
            "git clone --depth 1 https://github.com/ggml-org/llama.cpp",
            "pip install gguf",
        ],
        remedy=f"Get it as above, then: {VARIABLE}=llama.cpp lite-align export RUN --to gguf",
    )


def convert(script: Path, folder: Path, out: Path, dtype: str, view: View) -> None:
    """Convert a merged folder to one GGUF file of the same precision.

    Raises:
        LiteAlignError: the converter failed, or wrote no GGUF file.
    """
    view.section("convert", f"{script} runs on the merged folder")
    started = time.monotonic()
    command = [sys.executable, str(script), str(folder), "--outfile", str(out), "--outtype", _TYPES[dtype]]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    if done.returncode or not out.is_file():
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise LiteAlignError(
            f"{SCRIPT} ended with code {done.returncode} and wrote no file.",
            details=lines[-5:],
            remedy="Update llama.cpp and pip install -U gguf; --to merged writes what it was given.",
        )
    with out.open("rb") as file:
        if file.read(4) != _MAGIC:
            raise LiteAlignError(f"{SCRIPT} wrote a file that is no GGUF.", remedy="Update llama.cpp.")
    view.section("converted", f"in {duration(time.monotonic() - started)}")
