"""Two runs, an adapter alone, prompts and pairs on one small random base: made once for all tests of a module."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lite_align.data import sources
from lite_align.recipe import LoraOptions
from tests import finished

WORDS = ("hello world", "the red fox", "good day", "a small house", "no more rain")


@dataclass(frozen=True)
class Made:
    """Paths: `first` and `second` are dpo runs of different shape, `same` one whose adapter is its reference."""

    folder: Path
    base: Path
    first: Path
    second: Path
    same: Path
    adapter: Path
    prompts: Path
    pairs: Path
    judge: Path


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make(folder: Path, tokenizer: Any) -> Made:
    base = finished.model(folder / "base", tokenizer)
    pairs = lines(
        folder / "pairs.jsonl",
        [
            {
                "prompt": f"{words} {n}",
                "chosen": f"yes {words}",
                "rejected": f"{('no', 'yes')[n % 2]} {n} no",  # half of them begin as the chosen one
                "category": "ab"[n % 2],
            }
            for n in range(8)
            for words in WORDS
        ],
    )
    first = finished.run(folder / "first", base)
    second = finished.run(
        folder / "second", base, lora=LoraOptions(rank=2, alpha=6.0, targets=("q_proj", "v_proj")), size=0.2
    )
    same = finished.run(folder / "same", base, reference=True)
    for run in (first, second, same):
        record = json.loads((run / "run.json").read_text())
        record["recipe"]["data"] |= {"path": str(pairs), "held_out": 0.5, "max_length": 128}
        record["hashes"]["data"] = sources.read(str(pairs)).sha256
        (run / "run.json").write_text(json.dumps(record))
    for file in (same / "adapters" / "policy").iterdir():
        (same / "adapters" / "reference" / file.name).write_bytes(file.read_bytes())
    adapter = folder / "adapter"
    adapter.mkdir()
    for file in (first / "adapters" / "policy").iterdir():
        (adapter / file.name).write_bytes(file.read_bytes())
    prompts = lines(
        folder / "prompts.jsonl",
        [
            {"prompt": words, "category": "ab"[n % 2], "expect": ("refuse", "answer")[n % 2]}
            for n, words in enumerate(WORDS)
        ],
    )
    judge = folder / "judge.py"
    judge.write_text("def longer(a, b):\n    return 0.5 if len(a) == len(b) else float(len(a) > len(b))\n")
    return Made(folder, base, first, second, same, adapter, prompts, pairs, judge)
