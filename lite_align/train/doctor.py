"""Can a run start on this machine? Every check answers with one line and, where needed, what to mend."""

import os
import platform
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, cast

LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "datasets",
    "safetensors",
    "tokenizers",
)
NEEDED_BYTES = 2 * 1024**3
HUB_SECONDS = 3.0
NF4_TOLERANCE = 2e-2

Grade = Literal["ok", "note", "mend", "stop"]


@dataclass(frozen=True)
class Check:
    """One answer: `grade` is ok, note (for information), mend (advice) or stop (no run can start)."""

    label: str
    text: str
    grade: Grade = "ok"
    remedy: str = ""


def examine(folder: Path) -> list[Check]:
    """Run every check; `folder` is where runs will be written."""
    checks = [python(), *libraries()]
    if all(check.grade != "stop" for check in checks):
        checks += [*gpus(driver_version()), four_bit()]
    return [*checks, disk("disk", folder), disk("hub cache", hub_cache()), hub()]


def python() -> Check:
    """The interpreter and the system."""
    text = f"{platform.python_version()} · {platform.system()} {platform.machine()} · {os.cpu_count()} cores"
    return Check("python", text)


def libraries(
    requirements: Callable[[str], list[str] | None] = metadata.requires,
    version: Callable[[str], str] = metadata.version,
) -> list[Check]:
    """Installed versions against the ranges that the tests have run on (read from our own metadata)."""
    from packaging.requirements import Requirement

    try:
        ranges = {r.name.lower(): r.specifier for r in map(Requirement, requirements("lite-align") or ())}
    except metadata.PackageNotFoundError:
        ranges = {}
    checks: list[Check] = []
    for name in LIBRARIES:
        try:
            found = version(name)
        except metadata.PackageNotFoundError:
            checks.append(Check("library", f"{name} is not installed", "stop", f"pip install {name}"))
            continue
        allowed = ranges.get(name)
        if allowed is None or allowed.contains(found, prereleases=True):
            checks.append(Check("library", f"{name} {found}"))
        else:
            checks.append(
                Check(
                    "library", f"{name} {found} · tested: {allowed}", "mend", f'pip install "{name}{allowed}"'
                )
            )
    return checks


def driver_version() -> str | None:
    """Version of the NVIDIA driver, None where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else None


def gpus(driver: str | None) -> list[Check]:
    """Every CUDA device with its memory, or why there is none."""
    import torch

    if not torch.cuda.is_available():
        if driver is None:
            text = "no CUDA GPU: the built-in model tiny and small models run on the CPU"
            return [Check("gpu", text, "note", "Use --model tiny, or a model below 0.5 B parameters.")]
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        text = f"driver {driver} is there, but torch {torch.__version__} ({built}) sees no GPU"
        remedy = "Install the torch build for your driver: pytorch.org, Get Started. Or update the driver."
        return [Check("gpu", text, "mend", remedy)]
    checks: list[Check] = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16"
        text = (
            f"{properties.name} · {free / 1e9:.1f} of {total / 1e9:.1f} GB free · compute capability "
            f"{properties.major}.{properties.minor} · {bf16} · CUDA {torch.version.cuda} · driver {driver or '?'}"
        )
        if properties.major < 7:
            remedy = (
                "4-bit training needs compute capability 7.0 or newer; use --set model.quantization=none."
            )
            checks.append(Check("gpu", text, "mend", remedy))
        elif free < 0.7 * total:
            remedy = "Other programs hold GPU memory; nvidia-smi lists them."
            checks.append(Check("gpu", text, "mend", remedy))
        else:
            checks.append(Check("gpu", text))
    return checks


def four_bit() -> Check:
    """A real NF4 layer, forward and backward, compared with its dequantised weight."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        error = nf4_error(device)
    except Exception as problem:  # a broken build of bitsandbytes fails in any way it likes
        reason = f"{type(problem).__name__}: {next(iter(str(problem).splitlines()), '')}"[:160]
        remedy = "Reinstall bitsandbytes; until then use --set model.quantization=none."
        return Check("4-bit", f"an NF4 layer fails on {device}: {reason}", "mend", remedy)
    text = f"NF4 forward and backward on {device}: largest relative error {error:.1e}"
    if not error < NF4_TOLERANCE:
        remedy = "Gradients would be wrong. Update bitsandbytes, or use --set model.quantization=none."
        return Check("4-bit", text, "mend", remedy)
    return Check("4-bit", text)


def nf4_error(device: str) -> float:
    """Largest relative error of output and input gradient of a 128×128 NF4 layer against plain products."""
    import torch

    from lite_align.model.bits import Linear4bit, functional

    generator = torch.Generator().manual_seed(0)
    layer = Linear4bit(128, 128, bias=False, quant_type="nf4", compute_dtype=torch.float32)
    layer.load_state_dict({"weight": torch.randn(128, 128, generator=generator)})
    layer = layer.to(device)
    inputs = torch.randn(4, 128, generator=generator).to(device).requires_grad_()
    direction = torch.randn(4, 128, generator=generator).to(device)
    output = layer(inputs)
    (output * direction).sum().backward()
    dense = functional.dequantize_4bit(layer.weight.data, cast(Any, layer.weight).quant_state).float()
    assert inputs.grad is not None
    pairs = ((output.detach(), inputs.detach() @ dense.T), (inputs.grad, direction @ dense))
    return max(float((got - want).abs().max() / want.abs().max()) for got, want in pairs)


def hub_cache() -> Path:
    """Folder into which models are downloaded."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def disk(label: str, folder: Path) -> Check:
    """Free space where `folder` is or will be, and whether it can be written."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    text = f"{free / 1e9:,.0f} GB free in {folder}"
    if not os.access(existing, os.W_OK):
        return Check(label, f"{folder} cannot be written", "stop", "Work in another folder, or set HF_HOME.")
    if free < NEEDED_BYTES:
        return Check(label, text, "mend", "Make room: checkpoints and a model need some GB.")
    return Check(label, text)


def hub(seconds: float = HUB_SECONDS) -> Check:
    """Whether models can be downloaded; a machine without the hub can still train on local ones."""
    from huggingface_hub import constants

    remedy = "Use --model PATH (a downloaded model) or --model tiny."
    if constants.HF_HUB_OFFLINE:
        return Check("hub", "offline by HF_HUB_OFFLINE: only local models", "note", remedy)
    try:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        urllib.request.urlopen(request, timeout=seconds).close()
    except urllib.error.HTTPError:
        pass  # it answered
    except urllib.error.URLError as problem:
        return Check("hub", f"{constants.ENDPOINT} cannot be reached: {problem.reason}", "note", remedy)
    except (OSError, ValueError) as problem:
        return Check("hub", f"{constants.ENDPOINT} cannot be reached: {problem}", "note", remedy)
    return Check("hub", f"{constants.ENDPOINT} answers")
