"""Checkpoints that are whole or absent: safetensors and JSON in a folder that appears by one rename.

`save` writes `checkpoints/.tmp-…`, syncs every file, writes `MANIFEST.json` last (size and SHA-256 of each file,
and of itself), reads all back, renames to `checkpoints/step-00000123` and syncs the parent; older ones go only
then. `latest` verifies newest first, sets damaged ones aside as `.bad-…` and never starts over in silence.
The promise holds for local POSIX file systems; network and FUSE mounts are not covered.
"""

import hashlib
import json
import os
import random
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import SafetensorError
from safetensors.torch import load as decode_tensors
from safetensors.torch import save as encode_tensors
from torch import Tensor

from lite_align.errors import LiteAlignError, UserError
from lite_align.train import files

Tensors = Mapping[str, Mapping[str, Tensor]]  # part ("policy", "optimizer") -> tensor name -> tensor

SCHEMA = 1
FOLDER, MANIFEST, STATE, HINT = "checkpoints", "MANIFEST.json", "state.json", "LATEST"
RESERVE_BYTES = 64 * 2**20  # left over for metrics, the record and the report
_STEP = re.compile(r"step-(\d{8,})")
_PART = re.compile(r"[a-z][a-z0-9_]*")
_RESCANS = 5


@dataclass(frozen=True)
class Loaded:
    """A verified checkpoint: tensors on the CPU; the manifest holds the caller's hashes and versions."""

    step: int
    folder: Path
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    manifest: dict[str, Any]


class _Damaged(Exception):
    """Why a checkpoint folder must not be loaded."""


class _Vanished(Exception):
    """The folder went away while it was read: another process has retired it."""


# --- save ---


def save(
    run_folder: Path,
    step: int,
    tensors: Tensors,
    state: Mapping[str, object],
    keep: int = 2,
    *,
    hashes: Mapping[str, str] | None = None,
    versions: Mapping[str, str] | None = None,
    best: int | None = None,
) -> Path:
    """Save one checkpoint and retire older ones; the caller holds the lock of the run.

    Args:
        run_folder: the run folder; `checkpoints/` is created in it.
        step: optimiser steps done. Saving the same content twice is harmless.
        tensors: part name (lower case) -> tensor name -> tensor of any device; `part.safetensors` each.
        state: scheduler, cursor, counters: plain JSON (string keys, lists, no tuples) that reads back equal.
        keep: how many good checkpoints stay, at least 2.
        hashes: of base, data, template, tokenizer, recipe; stored in the manifest.
        versions: of the libraries; stored in the manifest.
        best: the step of the best checkpoint, which stays as well.

    Raises:
        DiskFull: no room; nothing half-written is left and earlier checkpoints are intact.
        ValueError: this step is already saved with other content, or a part has no proper name.
        TypeError: `state` would not survive JSON.
    """
    folder = run_folder / FOLDER
    target = folder / f"step-{step:08d}"
    needed = 2 * sum(t.numel() * t.element_size() for part in tensors.values() for t in part.values())
    needed += RESERVE_BYTES
    encoded_state = _encode_state(state)
    files.require_space(run_folder, needed)
    temporary = folder / f".tmp-{step:08d}-{os.getpid()}-{secrets.token_hex(4)}"
    with files.explained(target, needed=needed):
        if not folder.exists():
            files.make_folder(folder)
            files.sync_folder(run_folder)
        try:
            files.make_folder(temporary)
            written = _write_parts(temporary, tensors, encoded_state)
            manifest = {"schema": SCHEMA, "step": step, "files": written}
            manifest |= {"hashes": dict(hashes or {}), "versions": dict(versions or {})}
            files.write_new(temporary / MANIFEST, files.dump_json(_signed(manifest), indent=1))
            files.sync_folder(temporary)
            _read_back(temporary, step)
            _publish(temporary, target, step, written)
        finally:
            _discard(temporary)
        files.replace(folder / HINT, f"{target.name}\n".encode())
        _retire(folder, keep=max(2, keep), spared=best)
    return target


def _encode_state(state: Mapping[str, object]) -> bytes:
    encoded = files.dump_json(state)
    if json.loads(encoded) != state:
        raise TypeError("a checkpoint's state must be plain JSON without secrets: it would read back changed")
    return encoded


def _encode_tensors(part: Mapping[str, Tensor]) -> bytes:
    """Encode with storage of each tensor's own: safetensors refuses views that share one."""
    own = {
        name: torch.empty_like(t, device="cpu", memory_format=torch.contiguous_format).copy_(t.detach())
        for name, t in part.items()
    }
    return encode_tensors(own)


def _write_parts(folder: Path, tensors: Tensors, state: bytes) -> dict[str, dict[str, object]]:
    written: dict[str, dict[str, object]] = {}
    for part, content in sorted(tensors.items()):
        if not _PART.fullmatch(part):
            raise ValueError(
                f"{part!r} is no name of a checkpoint part: lower case letters, digits and _ only"
            )
        data = _encode_tensors(content)
        name = f"{part}.safetensors"
        written[name] = {"size": len(data), "sha256": files.write_new(folder / name, data)}
    written[STATE] = {"size": len(state), "sha256": files.write_new(folder / STATE, state)}
    return written


def _signed(manifest: Mapping[str, object]) -> dict[str, object]:
    stored = json.loads(files.dump_json(manifest))  # as it reads back, secrets redacted
    return {**stored, "sha256": _signature(stored)}


def _signature(manifest: Mapping[str, object]) -> str:
    unsigned = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(unsigned, sort_keys=True).encode()).hexdigest()


def _read_back(folder: Path, step: int) -> None:
    try:
        _verify(folder, step, deep=True)
    except (_Damaged, _Vanished) as damage:
        raise LiteAlignError(
            f"The checkpoint of step {step} reads back differently from what was written: {damage}.",
            remedy="Check the disk and the memory of this machine; earlier checkpoints are intact.",
        ) from damage


def _publish(temporary: Path, target: Path, step: int, written: Mapping[str, object]) -> None:
    """Give the checkpoint its name, unless that very content has it already."""
    if target.exists():
        try:
            saved = _verify(target, step, deep=True)["files"]
        except _Damaged:
            _quarantine(target)
        else:
            if saved == written:
                return
            raise ValueError(f"{target} is already saved with other content")
    files.rename_folder(temporary, target)


def _discard(temporary: Path) -> None:
    """Remove a temporary folder; what a failing disk does not let go, the next start cleans."""
    if temporary.exists():
        with suppress(OSError):
            files.remove_folder(temporary)


def _retire(folder: Path, *, keep: int, spared: int | None) -> None:
    """Remove good checkpoints beyond the newest `keep`; a damaged one neither counts nor goes."""
    good: list[tuple[int, Path]] = []
    for step, path in _candidates(folder):
        with suppress(_Damaged, _Vanished):
            _verify(path, step, deep=False)
            good.append((step, path))
    for step, path in good[keep:]:
        if step != spared:
            trash = folder / f".trash-{path.name}-{secrets.token_hex(4)}"
            files.rename_folder(path, trash)
            files.remove_folder(trash)


# --- load ---


def latest(
    run_folder: Path, log: Callable[[str], None], *, expected: Tensors | None = None, repair: bool = True
) -> Loaded | None:
    """Load the newest checkpoint that verifies completely; None only if the run never had one.

    Args:
        run_folder: the run folder.
        log: told one line for each checkpoint that is passed over.
        expected: tensors (any device, also meta) whose names, shapes and dtypes the checkpoint must have.
        repair: the caller holds the lock: leftovers are removed, damaged checkpoints renamed to `.bad-…`.
            A reader of somebody else's run passes False and changes nothing.

    Raises:
        UserError: every checkpoint is damaged, does not fit `expected`, or comes from a newer lite-align.
    """
    folder = run_folder / FOLDER
    with files.explained(folder):
        if repair:
            clean(run_folder)
        for _ in range(_RESCANS):
            damaged: list[str] = []
            vanished = False
            for step, path in _candidates(folder):
                try:
                    loaded = _load(path, step)
                except _Vanished:
                    vanished = True
                except _Damaged as damage:
                    damaged.append(f"{path.name}: {damage}")
                    aside = f"; moved to {_quarantine(path).name}" if repair else ""
                    log(f"checkpoint {path.name} passed over: {damage}{aside}")
                else:
                    _require_fit(loaded, expected)
                    return loaded
            if not vanished:
                break
        else:
            raise LiteAlignError(
                f"The checkpoints in {folder} keep changing.", remedy="Try again in a moment."
            )
        set_aside = sorted(path.name for path in folder.glob(".bad-*"))
    if damaged or set_aside:
        raise UserError(
            f"No checkpoint in {folder} can be trusted; a run that had one does not start over by itself.",
            details=damaged or [f"{name}: set aside earlier" for name in set_aside],
            remedy="Put an intact copy back (named step-NNNNNNNN), or start a new run with another --out.",
        )
    return None


def clean(run_folder: Path) -> None:
    """Remove what a dead process left half-written; the caller holds the lock, so no one else is writing."""
    folder = run_folder / FOLDER
    for pattern in (".tmp-*", ".trash-*"):
        for leftover in sorted(folder.glob(pattern)):
            files.remove_folder(leftover)
    for leftover in sorted(folder.glob(f".{HINT}.tmp-*")):
        files.unlink(leftover)


def steps(run_folder: Path) -> list[int]:
    """The steps of the checkpoints that are there, newest first, not verified."""
    return [step for step, _ in _candidates(run_folder / FOLDER)]


def _candidates(folder: Path) -> list[tuple[int, Path]]:
    found = ((_STEP.fullmatch(path.name), path) for path in folder.glob("step-*"))
    return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)


def _quarantine(path: Path) -> Path:
    aside = path.with_name(f".bad-{path.name}-{secrets.token_hex(4)}")
    files.rename_folder(path, aside)
    return aside


def _read(path: Path) -> bytes:
    """Read a regular file; _Damaged if it is missing, a link, or unreadable by a fault of the disk."""
    try:
        if path.is_symlink() or not path.is_file():
            raise _Damaged(f"{path.name} is missing")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise (_Damaged(f"{path.name} is missing") if path.parent.exists() else _Vanished()) from error
    except PermissionError:
        raise
    except OSError as error:
        raise _Damaged(f"{path.name} cannot be read: {error.strerror}") from error


def _read_manifest(folder: Path, step: int) -> dict[str, Any]:
    if not folder.exists():
        raise _Vanished
    data = _read(folder / MANIFEST)
    try:
        manifest = json.loads(data)
    except ValueError as error:
        raise _Damaged(f"{MANIFEST} is no JSON") from error
    if not data.endswith(b"}\n"):
        raise _Damaged(f"{MANIFEST} is cut short")
    if not isinstance(manifest, dict) or manifest.get("sha256") != _signature(manifest):
        raise _Damaged(f"{MANIFEST} does not match its own hash")
    if manifest["schema"] != SCHEMA:
        raise UserError(
            f"{folder} has checkpoint format {manifest['schema']}; this lite-align reads format {SCHEMA}.",
            remedy="Resume with the lite-align that wrote it (see run.json), or start a new run.",
        )
    if manifest["step"] != step:
        raise _Damaged(f"it holds step {manifest['step']}")
    return manifest


def _verify(folder: Path, step: int, *, deep: bool) -> dict[str, Any]:
    """Check names and sizes, and with `deep` hashes, against the manifest, and return it."""
    manifest = _read_manifest(folder, step)
    listed = _listed(folder, manifest)
    for name, entry in listed.items():
        if (folder / name).lstat().st_size != entry["size"]:
            raise _Damaged(f"{name} is not {entry['size']} bytes long")
        if deep and files.sha256(folder / name) != entry["sha256"]:
            raise _Damaged(f"{name} does not match its hash")
    return manifest


def _listed(folder: Path, manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The files of the manifest, which must be exactly those of the folder."""
    listed: dict[str, dict[str, Any]] = manifest["files"]
    try:
        present = set(os.listdir(folder)) - {MANIFEST}
    except FileNotFoundError as error:
        raise _Vanished from error
    if present != set(listed):
        missing, extra = sorted(set(listed) - present), sorted(present - set(listed))
        parts = [f"{', '.join(missing)} missing"] * bool(missing) + [f"{', '.join(extra)} not listed"] * bool(
            extra
        )
        raise _Damaged("; ".join(parts))
    return listed


def _load(folder: Path, step: int) -> Loaded:
    """Read each file once, compare its hash, and decode those same bytes."""
    manifest = _read_manifest(folder, step)
    tensors: dict[str, dict[str, Tensor]] = {}
    state: dict[str, object] = {}
    for name, entry in _listed(folder, manifest).items():
        data = _read(folder / name)
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise _Damaged(f"{name} does not match its hash")
        try:
            if name == STATE:
                state = json.loads(data)
            else:
                tensors[name.removesuffix(".safetensors")] = decode_tensors(data)
        except (SafetensorError, ValueError) as error:
            raise _Damaged(f"{name} cannot be decoded: {error}") from error
    return Loaded(step, folder, tensors, state, manifest)


def _require_fit(loaded: Loaded, expected: Tensors | None) -> None:
    """A whole checkpoint of another model is refused, and stays where it is."""
    if expected is None:
        return
    have, want = _layout(loaded.tensors), _layout(expected)
    problems = [f"{name} is missing" for name in sorted(want.keys() - have.keys())]
    problems += [f"{name} is not expected" for name in sorted(have.keys() - want.keys())]
    problems += [
        f"{name} is {have[name]}, expected {want[name]}"
        for name in sorted(have.keys() & want.keys())
        if have[name] != want[name]
    ]
    if problems:
        more = [f"and {len(problems) - 12} more"] * (len(problems) > 12)
        raise UserError(
            f"The checkpoint {loaded.folder} does not fit the model that was built for this run.",
            details=problems[:12] + more,
            remedy="Resume with the recipe and the model of that run, or start a new run with another --out.",
        )


def _layout(tensors: Tensors) -> dict[str, str]:
    layout = {f"{part}.safetensors": "there" for part in tensors}
    for part, content in tensors.items():
        for name, tensor in content.items():
            layout[f"{part}: {name}"] = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
    return layout


# --- random state ---


def random_state() -> tuple[dict[str, Tensor], dict[str, object]]:
    """The state of every global generator: torch's as uint8 tensors, Python's and numpy's as JSON."""
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"cuda:{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = numpy.random.get_state(legacy=True)
    return tensors, {
        "python": [version, list(internal), gauss],
        "numpy": [name, [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
    }


def restore_random_state(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> list[str]:
    """Put `random_state` back, and return a line for each device whose generator could not be restored."""
    python, from_numpy = state["python"], state["numpy"]
    random.setstate((python[0], tuple(python[1]), python[2]))
    numpy.random.set_state((from_numpy[0], numpy.array(from_numpy[1], dtype=numpy.uint32), *from_numpy[2:]))
    torch.set_rng_state(tensors["cpu"])
    return [line for name, saved in tensors.items() if name != "cpu" for line in _restore_cuda(name, saved)]


def _restore_cuda(name: str, saved: Tensor) -> Iterable[str]:
    index = int(name.removeprefix("cuda:"))
    if index >= torch.cuda.device_count():
        return [f"the random state of {name} has no device here: dropout will differ from the run before"]
    torch.cuda.set_rng_state(saved, index)
    return []
