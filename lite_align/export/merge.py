"""The adapter merged into base weights, weight by weight: a checkpoint with the names and shards of the base.

W' = W + (alpha / r) B A in fp32 (arXiv 2106.09685, eq. 3), then rounded once. W is either what the checkpoint of the
base holds, or the quantised weight that the adapter was trained on, unpacked.
"""

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from lite_align.errors import ModelError
from lite_align.model import lora
from lite_align.model.backbone import Backbone
from lite_align.model.bits import Linear4bit, Linear8bitLt
from lite_align.model.folder import weight_files
from lite_align.train import files

INDEX = "model.safetensors.index.json"
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


@dataclass(frozen=True)
class Update:
    """What an adapter adds to one weight: `scale` B A, of the weight's shape."""

    a: Tensor
    b: Tensor
    scale: float

    def added_to(self, weight: Tensor) -> Tensor:
        """`weight` (outputs, inputs) plus the update, in fp32 on the CPU."""
        return weight.to("cpu", torch.float32).addmm(self.b.float(), self.a.float(), alpha=self.scale)


@dataclass(frozen=True)
class Entry:
    """A tensor of the file to be: name, shape and dtype now, its values when they are written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @property
    def size(self) -> int:
        """Bytes in the file."""
        count = 1
        for side in self.shape:
            count *= side
        return count * self.dtype.itemsize

    def data(self) -> memoryview:
        """The values as they stand in the file."""
        tensor = self.read().to("cpu", self.dtype).contiguous()
        assert tuple(tensor.shape) == self.shape, self.name
        return tensor.flatten().view(torch.uint8).numpy().data


def updates(adapter: Path) -> dict[str, Update]:
    """What an adapter adds, by the name of the module (as the model in memory calls it).

    Raises:
        ModelError: the adapter cannot be read or is no plain LoRA adapter.
    """
    config, tensors = lora.read_adapter(adapter)
    scale = lora.scale(config)
    modules = {name.removeprefix(lora.PREFIX).rpartition(".lora_")[0] for name in tensors}
    return {
        module: Update(
            tensors[f"{lora.PREFIX}{module}.lora_A.weight"],
            tensors[f"{lora.PREFIX}{module}.lora_B.weight"],
            scale,
        )
        for module in sorted(modules)
    }


def quantized_modules(backbone: Backbone) -> dict[str, Any]:
    """The quantised layers of a base in memory, by name without what the adapters put around them."""
    return {
        name.removesuffix(".base_layer"): module
        for name, module in backbone.model.named_modules()
        if isinstance(module, Linear4bit | Linear8bitLt)
    }


def unpacked(module: Any) -> Tensor:
    """The weight that a quantised layer computes with: (outputs, inputs)."""
    from peft.utils.integrations import dequantize_bnb_weight

    weight = dequantize_bnb_weight(module.weight, state=getattr(module, "state", None))
    return weight.detach()


def checkpoint_names(modules: set[str], stored: set[str], prefix: str, purpose: str) -> dict[str, str]:
    """The name of each module's weight in the base's checkpoint.

    Args:
        modules: names of modules in memory.
        stored: names of all tensors of the checkpoint.
        prefix: what the architecture puts before the names of its body (`model`), which some checkpoints leave off.
        purpose: for the error: what the modules are.

    Raises:
        ModelError: a weight has no tensor of its own, as the head of a model that ties it to the embedding.
    """
    found: dict[str, str] = {}
    for module in sorted(modules):
        own = f"{module}.weight"
        found[module] = next((n for n in (own, own.removeprefix(f"{prefix}.")) if n in stored), "")
    lost = sorted(module for module, name in found.items() if not name)
    if lost:
        raise ModelError(
            f"The base's checkpoint holds no weight of its own for {len(lost)} of the {purpose}.",
            details=lost[:5],
            remedy="They share it with others or have another name there, so they cannot be merged: use --to adapter.",
        )
    return found


class Merge:
    """All tensors of the merged checkpoint, made one at a time.

    Args:
        base: folder of the base model.
        adapter: folder of the adapter.
        backbone: the base in memory, for its names and, where it is quantised, its weights.
        dtype: of every floating-point tensor in the result.
        unpack: take the quantised weights of `backbone` in place of the checkpoint's.

    Raises:
        ModelError: the adapter does not fit the checkpoint, or changes a weight that others share.
    """

    def __init__(
        self, base: Path, adapter: Path, backbone: Backbone, dtype: torch.dtype, *, unpack: bool
    ) -> None:
        self._files = weight_files(base)
        self._dtype = dtype
        self._stored = {file: _header(file) for file in self._files}
        names = {name for header in self._stored.values() for name in header}
        prefix = backbone.model.base_model_prefix
        changed = updates(adapter)
        _refuse_shared(backbone, changed)
        where = checkpoint_names(set(changed), names, prefix, "layers that the adapter changes")
        self._updates = {where[module]: update for module, update in changed.items()}
        packed = quantized_modules(backbone) if unpack else {}
        where = checkpoint_names(set(packed), names, prefix, "quantised layers")
        self._packed = {where[name]: module for name, module in packed.items()}

    def write(self, out: Path, advance: Callable[[], None] = lambda: None) -> int:
        """Write the checkpoint into a folder, file by file; returns its size in bytes."""
        total, index = 0, {}
        plans = {file: self._entries(file) for file in self._files}
        for file, entries in plans.items():
            total += sum(entry.size for entry in entries)
            index |= {entry.name: file.name for entry in entries}
            files.write_pieces(out / file.name, _file(entries, advance))
        if len(plans) > 1:
            content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))}
            files.write_new(out / INDEX, files.dump_json(content, indent=2))
        return total

    def tensors(self) -> int:
        """How many tensors are written."""
        return sum(len(self._entries(file)) for file in self._files)

    def size(self) -> int:
        """Bytes that are written."""
        return sum(entry.size for file in self._files for entry in self._entries(file))

    def _entries(self, file: Path) -> list[Entry]:
        entries = []
        for name, (kind, shape) in self._stored[file].items():
            module = self._packed.get(name)
            if module is not None:
                outputs = (module.out_features, module.in_features)
                entries.append(Entry(name, outputs, self._dtype, lambda n=name, m=module: self._unpack(n, m)))
            elif any(name.startswith(f"{packed}.") for packed in self._packed):
                continue  # scales of a checkpoint that is stored quantised
            else:
                dtype = self._dtype if kind.startswith(("F", "BF")) else _DTYPES[kind]
                entries.append(Entry(name, shape, dtype, lambda n=name, f=file: self._read(n, f)))
        return sorted(entries, key=lambda entry: (-entry.dtype.itemsize, entry.name))

    def _read(self, name: str, file: Path) -> Tensor:
        with safe_open(file, framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
        return self._updated(name, tensor)

    def _unpack(self, name: str, module: Any) -> Tensor:
        return self._updated(name, unpacked(module))

    def _updated(self, name: str, weight: Tensor) -> Tensor:
        update = self._updates.get(name)
        return weight if update is None else update.added_to(weight)


def _refuse_shared(backbone: Backbone, changed: Mapping[str, Update]) -> None:
    """Merging into a head that is the embedding as well would change both."""
    head, embedding = backbone.model.get_output_embeddings(), backbone.model.get_input_embeddings()
    inner = getattr(head, "base_layer", head)
    if inner is None or embedding is None or inner.weight is not embedding.weight:
        return
    named = {module: name.removesuffix(".base_layer") for name, module in backbone.model.named_modules()}
    if named.get(inner) in changed:
        raise ModelError(
            "The adapter changes the head, which shares its weights with the embedding; merging would change both.",
            remedy="Use --to adapter.",
        )


def _header(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    with safe_open(file, framework="pt") as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
        return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}


def _file(entries: list[Entry], advance: Callable[[], None]) -> Iterator[bytes | memoryview]:
    """A safetensors file in pieces: length of the header, header, then one tensor after another."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for entry in entries:
        end = place + entry.size
        header[entry.name] = {
            "dtype": _NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [place, end],
        }
        place = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for entry in entries:
        yield entry.data()
        advance()
