"""LoRA adapters on a frozen base: PEFT's layers and file format with a leaner forward.

Source: arXiv 2106.09685 (LoRA), eq. 3: h = W x + (alpha / r) B A x, with B = 0 at the start.
"""

import hashlib
import json
import types
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lite_align.model import bits  # noqa: F401  before peft, which imports bitsandbytes: it has one door

# isort: split
from peft import LoraConfig, TaskType, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import PreTrainedModel

from lite_align.errors import ModelError
from lite_align.recipe import PROJECTIONS, LoraOptions

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
PREFIX = "base_model.model."
"""What PEFT puts before the names of the base model's modules."""


def linears(model: nn.Module) -> list[str]:
    """Names of all linear layers, adapted ones by their own name and not by those of their parts."""
    adapted = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, LoraLayer))
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) or (isinstance(module, nn.Linear) and not name.startswith(adapted))
    ]


def block_linears(model: PreTrainedModel) -> list[str]:
    """Names of all linear layers inside the decoder blocks (so not the embedding and not the head)."""
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    return [name for name in linears(model) if any(name.startswith(f"{blocks}.") for blocks in lists)]


def find_targets(model: PreTrainedModel, options: LoraOptions, usual: Sequence[str] = ()) -> list[str]:
    """Last names of the modules that get an adapter, as PEFT's `target_modules`.

    Args:
        model: the base, without adapters.
        options: the recipe's block; `targets` are last names, or "auto" for every linear layer of the blocks.
        usual: what this architecture needs in place of the default names.

    Raises:
        ModelError: a target that the model does not have. The default names need not all be there.
    """
    present = {name.rpartition(".")[2] for name in block_linears(model)}
    if options.targets == "auto":
        found = present
    elif options.targets == PROJECTIONS:
        found = present & set(usual or PROJECTIONS)
    else:
        found = set(options.targets)
        known = {name.rpartition(".")[2] for name in linears(model)}
        missing = sorted(found - known)
        if missing:
            raise ModelError(
                f"lora.targets: the model has no linear layer {', '.join(missing)}.",
                details=[f"it has {', '.join(sorted(known))}"],
                remedy="Correct the names, or set lora.targets=auto for all of them.",
            )
    if not found:
        raise ModelError(
            "lora.targets: the model has none of the default layers.",
            details=[f"it has {', '.join(sorted(present))}"],
            remedy="Set lora.targets=auto for all of them, or name some.",
        )
    return sorted(found)


def attach(
    model: PreTrainedModel,
    adapter: str,
    targets: Sequence[str],
    options: LoraOptions,
    *,
    base_name: str,
    seed: int,
    fused: bool = True,
) -> LoraConfig:
    """Inject an adapter with fp32 weights, A random by `seed` and B = 0, and use the lean forward for it.

    The layers keep PEFT's types; no `requires_grad` of other adapters is changed. The global random state is left
    as it was.

    Args:
        model: base model, changed in place.
        adapter: its name.
        targets: last names of the modules.
        options: rank, alpha and dropout.
        base_name: how the adapter's config names the base.
        seed: of the A matrices; the same seed gives the same adapter on every device.
        fused: whether layers use the lean forward, or PEFT's own.

    Returns the PEFT configuration that `save_adapter` writes.
    """
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=base_name,
        r=options.rank,
        lora_alpha=_whole(options.alpha),
        lora_dropout=options.dropout,
        target_modules=list(targets),
        # An adapted bias would move the base that REFERENCE is made of.
        bias="none",
        inference_mode=False,
    )
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with torch.random.fork_rng(), warnings.catch_warnings():
        # PEFT asks whether a second adapter on one base is meant. It is.
        warnings.filterwarnings("ignore", "Already found a `peft_config` attribute", UserWarning)
        inject_adapter_in_model(config, model, adapter)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        bare = name.replace(".base_layer.", ".")
        if f".{adapter}." not in name:
            parameter.requires_grad_(flags.get(name, flags.get(bare, False)))
            continue
        value = torch.zeros(parameter.shape)
        if ".lora_A." in name:
            # PEFT's own start: Kaiming uniform with a = sqrt(5), which is uniform within 1 / sqrt(inputs).
            value.uniform_(-1, 1, generator=generator).div_(parameter.shape[1] ** 0.5)
        parameter.data = value.to(parameter.device, torch.float32)
        parameter.requires_grad_(True)
    for layer in layers(model) if fused else ():
        layer.forward = types.MethodType(_forward, layer)
    return config


def detach(model: nn.Module, adapter: str) -> None:
    """Take an adapter out of all layers; the layers stay, and other adapters with them."""
    for layer in layers(model):
        for part in (*layer.adapter_layer_names, *layer.other_param_names):
            known = getattr(layer, part)
            if adapter in known:
                del known[adapter]
    getattr(model, "peft_config", {}).pop(adapter, None)


def _whole(alpha: float) -> int:
    """PEFT writes alpha as an integer, and reads a float as well."""
    return int(alpha) if alpha == int(alpha) else alpha  # pyright: ignore[reportReturnType]


def layers(model: nn.Module) -> list[Any]:
    """All modules that carry adapters."""
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def _forward(self: Any, x: Tensor, *args: object, **kwargs: object) -> Tensor:
    """Base layer plus the active adapter: (…, inputs) -> (…, outputs).

    One fused addition in place of PEFT's clone, scale, add and casts. The fp32 master weights are cast to the
    arithmetic of the layer inside autograd, so gradients arrive in fp32.
    """
    y: Tensor = self.base_layer(x, *args, **kwargs)
    adapter = self._active_adapter[0]
    if self._disable_adapters or adapter not in self.lora_A:
        return y
    a, b = self.lora_A[adapter].weight, self.lora_B[adapter].weight
    dropout = self.lora_dropout[adapter]
    rows = x if isinstance(dropout, nn.Identity) else dropout(x)
    low = rows.reshape(-1, rows.shape[-1]).to(y.dtype) @ a.to(y.dtype).t()
    out = torch.addmm(y.reshape(-1, y.shape[-1]), low, b.to(y.dtype).t(), alpha=self.scaling[adapter])
    return out.view(y.shape)


def parameters(model: nn.Module, adapter: str) -> list[tuple[str, nn.Parameter]]:
    """The adapter's weights with the names that PEFT gives them in its file, sorted by name."""
    return sorted(_named(model, adapter), key=lambda item: item[0])


def _named(model: nn.Module, adapter: str) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in model.named_parameters():
        for part in ("lora_A", "lora_B"):
            ending = f".{part}.{adapter}.weight"
            if name.endswith(ending):
                yield f"{PREFIX}{name.removesuffix(ending)}.{part}.weight", parameter


def tensors(model: nn.Module, adapter: str) -> dict[str, Tensor]:
    """Copies of the adapter's weights on the CPU, by their name in PEFT's file."""
    return {name: value.detach().cpu().clone() for name, value in parameters(model, adapter)}


@torch.no_grad()
def set_tensors(model: nn.Module, adapter: str, values: Mapping[str, Tensor]) -> None:
    """Put weights in place, exactly; names and shapes must be those of the adapter.

    Raises:
        ModelError: lists every missing, unknown or misshapen tensor; then nothing was changed.
    """
    own = dict(parameters(model, adapter))
    shapes = {name: tuple(value.shape) for name, value in values.items()}
    problems = _differences(shapes, {name: tuple(parameter.shape) for name, parameter in own.items()})
    problems += [f"{name} is not finite" for name, value in values.items() if not torch.isfinite(value).all()]
    _refuse(problems)
    for name, parameter in own.items():
        parameter.copy_(values[name])


def check_shapes(
    found: Mapping[str, tuple[int, ...]], model: nn.Module, targets: Sequence[str], rank: int
) -> None:
    """Check names and shapes of an adapter's weights against the layers of a base, which may have no weights.

    Raises:
        ModelError: lists every missing, unknown or misshapen tensor.
    """
    expected: dict[str, tuple[int, ...]] = {}
    for name in linears(model):
        if name.rpartition(".")[2] in targets:
            layer: Any = model.get_submodule(name)
            expected[f"{PREFIX}{name}.lora_A.weight"] = (rank, layer.in_features)
            expected[f"{PREFIX}{name}.lora_B.weight"] = (layer.out_features, rank)
    _refuse(_differences(found, expected))


def _differences(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    problems = [f"missing: {name}" for name in sorted(expected.keys() - found.keys())]
    problems += [f"unknown: {name}" for name in sorted(found.keys() - expected.keys())]
    return problems + [
        f"{name} has the shape {found[name]} and not {expected[name]}"
        for name in sorted(found.keys() & expected.keys())
        if found[name] != expected[name]
    ]


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        rest = [f"and {len(problems) - 8} more"] if len(problems) > 8 else []
        raise ModelError(
            "The adapter does not fit this model and recipe:",
            details=[*problems[:8], *rest],
            remedy="Use the base model, lora.rank and lora.targets that it was trained with.",
        )


def save_adapter(model: nn.Module, adapter: str, config: LoraConfig, folder: Path) -> None:
    """Write an adapter as PEFT does: adapter_config.json and adapter_model.safetensors, loadable by PEFT alone."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {name: value.contiguous() for name, value in tensors(model, adapter).items()}
    # safetensors' own writer may leave the mode of a temporary file; bytes written here follow the umask.
    (folder / WEIGHTS_FILE).write_bytes(save(values, metadata={"format": "pt"}))
    content = config.to_dict()
    for key, value in content.items():
        if isinstance(value, set):
            content[key] = sorted(value)
    content["inference_mode"] = True
    (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def scale(config: Mapping[str, Any]) -> float:
    """The factor of B A x in an adapter configuration: alpha / r."""
    return float(config["lora_alpha"] / config["r"])


def digest(config: Mapping[str, Any], values: Mapping[str, Tensor]) -> str:
    """Sha256 over the scale of an adapter and the names, shapes and values of its weights."""
    sha = hashlib.sha256(f"{scale(config)}\n".encode())
    for name, value in sorted(values.items()):
        sha.update(f"{name} {tuple(value.shape)}\n".encode())
        sha.update(value.detach().cpu().contiguous().float().numpy().data)
    return sha.hexdigest()


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read an adapter folder: its configuration and its weights.

    Raises:
        ModelError: it is not there, or not a plain LoRA adapter.
    """
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        values = load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"{folder} holds no adapter that can be read: {error}",
            remedy=f"An adapter is a folder with {CONFIG_FILE} and {WEIGHTS_FILE}.",
        ) from error
    plain = config.get("peft_type") == "LORA" and config.get("bias", "none") == "none"
    special = [key for key in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern") if config.get(key)]
    if not plain or special or config.get("modules_to_save"):
        raise ModelError(
            f"{folder} is not a plain LoRA adapter ({', '.join(special) or config.get('peft_type')}).",
            remedy="Only adapters without bias, extra modules, DoRA and per-layer ranks can be continued.",
        )
    return config, values
