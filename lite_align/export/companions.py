"""What travels with the weights: tokenizer, chat template, config.json, generation config with all stop tokens."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lite_align.data.types import Message
from lite_align.errors import LiteAlignError
from lite_align.model.folder import read_config
from lite_align.model.load import quiet
from lite_align.train import files

GENERATION = "generation_config.json"
_PATTERNS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "*.tiktoken",
)
_TURNS = ("Hello.", " two  spaces ", "Füße, 東京, 🙂", "x = {'a': 1}\n\tif x: pass", "<b>1 < 2</b>", "…")


def conversations() -> list[tuple[Message, ...]]:
    """Twenty conversations for comparing tokenizers: one to five turns, with and without system text."""
    found = []
    for number in range(20):
        roles = ("user", "assistant") * 3
        turns = [
            Message(role, f"{_TURNS[(number + place) % len(_TURNS)]} {number * 37 + place}")
            for place, role in enumerate(roles[: 1 + 2 * (number % 3)])
        ]
        system = [Message("system", f"Answer briefly ({number}).")] if number % 2 else []
        found.append((*system, *turns))
    return found


def copy_tokenizer(base: Path, out: Path) -> None:
    """Copy the tokenizer and chat template of a base as they are."""
    for file in sorted({file for pattern in _PATTERNS for file in base.glob(pattern) if file.is_file()}):
        files.write_new(out / file.name, file.read_bytes())


def require_same_ids(tokenizer: PreTrainedTokenizerBase, out: Path) -> int:
    """Compare the exported tokenizer with the run's on twenty conversations (LA802); returns how many were compared.

    Raises:
        LiteAlignError: one of them has other token ids.
    """
    with quiet():
        exported = AutoTokenizer.from_pretrained(out, local_files_only=True, trust_remote_code=False)
    compared = 0
    for conversation in conversations():
        expected, found = _ids(tokenizer, conversation), _ids(exported, conversation)
        if expected != found:
            raise LiteAlignError(
                "LA802: the exported tokenizer writes a conversation with other token ids than the run's.",
                details=[f"{_ids_told(expected)} in the run, {_ids_told(found)} in the export"],
                remedy="Restore the tokenizer files of the base model and export again.",
            )
        compared += 1
    return compared


def _ids(tokenizer: Any, conversation: tuple[Message, ...]) -> list[int] | None:
    """Ids of a conversation with the generation prompt; None if the template refuses it (many know no system role)."""
    messages = [{"role": message.role, "content": message.content} for message in conversation]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception:  # a template is a foreign program and can raise whatever Python can
        return None
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _ids_told(ids: list[int] | None) -> str:
    return "refused" if ids is None else f"{len(ids)} tokens"


def write_config(base: Path, out: Path, dtype: str) -> None:
    """Write config.json of the base without quantisation and remote code, with the dtype of the new weights."""
    config = read_config(base, base.name)
    for key in ("quantization_config", "auto_map"):
        config.pop(key, None)
    config["dtype"] = dtype
    if "torch_dtype" in config:  # its name before transformers 5
        config["torch_dtype"] = dtype
    files.write_new(out / "config.json", files.dump_json(config, indent=2))


def read_generation(base: Path) -> dict[str, Any]:
    """The generation config of a base; {} if it has none."""
    file = base / GENERATION
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def write_generation(
    base: Path, out: Path, tokenizer: PreTrainedTokenizerBase, stop_ids: Collection[int]
) -> None:
    """Write the base's generation config with every stop token of the run in it."""
    config = read_generation(base)
    own = config.get("eos_token_id", [])
    stops = sorted({*(own if isinstance(own, list) else [own]), *stop_ids})
    config["eos_token_id"] = stops if len(stops) > 1 else stops[0]
    for key in ("bos_token_id", "pad_token_id"):
        if config.get(key) is None and isinstance(token := getattr(tokenizer, key), int):
            config[key] = token
    files.write_new(out / GENERATION, files.dump_json(config, indent=2))
