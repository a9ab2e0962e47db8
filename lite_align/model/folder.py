"""Model folders: from a name to a folder on this machine, and what must be true of it before anything is loaded.

Imports no torch and no transformers, so that a wrong name is an error at once.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from importlib import resources
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from lite_align.errors import ModelError

TINY = "tiny"
"""The name of the model inside the package."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_TOKENIZER_SUFFIXES = {".json", ".txt", ".model", ".tiktoken", ".bpe", ".jinja"}
_TEXTS = ["*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
_WANTED = ["*.safetensors", *_TEXTS]
# consolidated.safetensors holds the same weights a second time; subfolders hold other formats of the model.
_UNWANTED = ["*/*", "consolidated*"]
_CONVERT = (
    "Pickled weights can run code, so they are not read. Convert them once in an environment that you trust: "
    'python -c "from transformers import AutoModelForCausalLM as M; '
    "M.from_pretrained('FOLDER').save_pretrained('FOLDER')\""
)


def cache_root() -> Path:
    """Folder of everything that lite-align caches: $LITE_ALIGN_CACHE, or lite-align in the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lite-align"
    return Path(os.environ.get("LITE_ALIGN_CACHE") or default)


def is_hub_id(name: str) -> bool:
    """Tell a hub id (`owner/model`) from a path. What exists here, or could only be a path, is no hub id."""
    path = Path(name)
    return bool(_HUB_ID.fullmatch(name)) and not path.exists() and not path.parent.exists()


def locate(name: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """Find the folder of a model: `tiny`, a local folder, or a hub id, which is downloaded (never pickles or code).

    Args:
        name: what the user wrote.
        revision: commit, tag or branch of a hub model.
        weights: False fetches configuration and tokenizer alone from the hub.

    Raises:
        ModelError: no such folder, or the hub cannot be reached or has no such model.
    """
    if name == TINY:
        return Path(str(resources.files("lite_align.assets") / "tiny"))
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelError(
            f"{name} is a file, not a model folder.",
            remedy="Give the folder that holds config.json, the weights and the tokenizer.",
        )
    if is_hub_id(name):
        return _download(name, revision, _WANTED if weights else _TEXTS)
    raise ModelError(
        f"There is no folder {name}.",
        remedy="Give a folder, a hub id (owner/model), or tiny for the built-in model.",
    )


def _download(name: str, revision: str | None, wanted: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    offline = "Use --model PATH for a model on this machine, or --model tiny for the built-in one."
    try:
        found = snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=_UNWANTED)
    except GatedRepoError as error:
        raise ModelError(
            f"The hub gives {name} only to people who accepted its terms.",
            remedy=f"Accept them on https://huggingface.co/{name}, then run: hf auth login. {offline}",
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(
            f"{name} has no revision {revision}.",
            remedy="Set model.revision to one that it has, or leave it out.",
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"There is no folder {name} here and no model {name} on the hub.",
            remedy=f"Check the name. {offline}",
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(f"The hub cannot be reached for {name}.", remedy=offline) from error
    return Path(found)


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """Read config.json of a model folder.

    Raises:
        ModelError: it is missing or not a JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        adapter = (folder / "adapter_config.json").is_file()
        raise ModelError(
            f"{name} has no config.json." + (" It is an adapter, not a model." if adapter else ""),
            remedy="Give the base model that it was trained on."
            if adapter
            else "Give the folder that save_pretrained wrote, or a hub id.",
        )
    return _read_object(path)


def check(folder: Path, name: str) -> None:
    """Check that a folder holds safe weights, a tokenizer, and nothing that points out of it.

    Raises:
        ModelError: lists everything that is missing or refused.
    """
    problems: list[str] = []
    remedies: list[str] = []
    if not weight_files(folder):
        pickles = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
        problems.append("it has only pickled weights" if pickles else "it has no *.safetensors weights")
        remedies.append(_CONVERT if pickles else "Copy the weights into the folder.")
    if not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        problems.append("it has no tokenizer (no tokenizer.json)")
        remedies.append("Save the tokenizer of the model into the folder.")
    strange = _strange_paths(folder)
    if strange:
        problems.extend(strange)
        remedies.append(
            "Remove these entries from tokenizer_config.json; files of a model stay in its folder."
        )
    if problems:
        raise ModelError(f"{name} cannot be used:", details=problems, remedy=" ".join(remedies))


def _strange_paths(folder: Path) -> list[str]:
    """Entries of the tokenizer's configuration that name a file elsewhere, or one that is no tokenizer file."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return []
    found = []
    for key, value in _read_object(path).items():
        # Old versions of transformers wrote special_tokens_map_file with the author's path; nothing reads it.
        if not key.endswith("_file") or key == "special_tokens_map_file" or not isinstance(value, str):
            continue
        pure = PureWindowsPath(value)
        if PurePosixPath(value).is_absolute() or pure.anchor or ".." in pure.parts:
            found.append(f"tokenizer_config.json: {key} points out of the folder: {value}")
        elif pure.suffix not in _TOKENIZER_SUFFIXES:
            found.append(f"tokenizer_config.json: {key} is no tokenizer file: {value}")
    return found


def weight_files(folder: Path) -> list[Path]:
    """The *.safetensors files of a model, by name."""
    return sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("consolidated"))


def fingerprint(folder: Path) -> str:
    """Sha256 over the weight files and config.json of a model; file hashes are cached by size and time."""
    digest = hashlib.sha256()
    for path in [*weight_files(folder), folder / "config.json"]:
        digest.update(f"{path.name} {_file_sha256(path)}\n".encode())
    return digest.hexdigest()


def _file_sha256(path: Path) -> str:
    status = path.stat()
    stamp = [status.st_size, status.st_mtime_ns]
    entry = cache_root() / "hashes" / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]}.json"
    known = _cached(entry)
    if known.get("stamp") == stamp and isinstance(known.get("sha256"), str):
        return known["sha256"]
    with path.open("rb") as file:
        value = hashlib.file_digest(file, "sha256").hexdigest()
    with suppress(OSError):  # a cache that cannot be written costs time only
        entry.parent.mkdir(parents=True, exist_ok=True)
        part = entry.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps({"stamp": stamp, "sha256": value}))
        part.replace(entry)
    return value


def _cached(entry: Path) -> Mapping[str, Any]:
    """A cache entry; one that cannot be read counts as none."""
    try:
        value = json.loads(entry.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(
            f"{path} is not valid JSON: {error}.", remedy="Restore the file from the original model."
        ) from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object.", remedy="Restore the file from the original model.")
    return value
