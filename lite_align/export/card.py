"""The model card (README.md) of an export: what it is, how it was made, how close it is to the run, how to load it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lite_align import __version__
from lite_align.export import Kind
from lite_align.export.probes import LEAST_SAME_TOP, MOST_KL, Agreement
from lite_align.model.folder import TINY
from lite_align.train.finished import FinishedRun


@dataclass(frozen=True)
class Base:
    """How a card names the base: name, revision (None for a local folder), and the weights' sha256."""

    name: str
    revision: str | None
    sha256: str


@dataclass(frozen=True)
class Checked:
    """What was measured: each candidate's figures, which one was taken, and how far the run moved its model."""

    figures: Mapping[str, Agreement]
    taken: str
    moved: float
    conversations: int


def write(run: FinishedRun, kind: Kind, base: Base, checked: Checked | None, notes: Sequence[str]) -> bytes:
    """The card as it is stored."""
    parts = [_front(run, kind, base), _title(run, kind, base), _training(run, base), _verdict(run)]
    if checked is not None:
        parts.append(_agreement(checked))
    parts += [_loading(kind, base), *([_list("Notes", notes)] if notes else [])]
    return ("\n\n".join(filter(None, parts)) + "\n").encode("utf-8", "backslashreplace")


def _front(run: FinishedRun, kind: Kind, base: Base) -> str:
    library = "peft" if kind is Kind.ADAPTER else "transformers"
    lines = [f"library_name: {library}", "tags:", "- lite-align", f"- {run.stage}"]
    if base.revision is not None:  # a hub model: the hub links it
        lines.insert(0, f"base_model: {json.dumps(base.name)}")
    return "\n".join(["---", *lines, "---"])


def _title(run: FinishedRun, kind: Kind, base: Base) -> str:
    what = {
        Kind.ADAPTER: "A LoRA adapter for",
        Kind.MERGED: "A LoRA adapter merged into",
        Kind.OLLAMA: "A LoRA adapter merged for Ollama into",
        Kind.GGUF: "A LoRA adapter merged and converted to GGUF from",
    }[kind]
    title = f"# {_plain(run.folder.resolve().name)}"
    return f"{title}\n\n{what} {_code(base.name)}, trained with lite-align {__version__} ({run.stage})."


def _training(run: FinishedRun, base: Base) -> str:
    recipe, data = run.record["recipe"], run.record.get("data") or {}
    lines = [f"Base: {_code(base.name)}" + (f", revision {_code(base.revision)}" if base.revision else "")]
    lines.append(f"Base weights (sha256): {_code(base.sha256)}")
    model, lora, train = (recipe.get(block, {}) for block in ("model", "lora", "train"))
    lines.append(f"Base held as {model.get('quantization')}, arithmetic in {model.get('dtype')}")
    lines.append(f"LoRA rank {lora.get('rank')}, alpha {lora.get('alpha')}")
    lines.append(
        f"Learning rate {train.get('learning_rate')}, epochs {train.get('epochs')}, "
        f"{train.get('batch_size')} examples a step, seed {train.get('seed')}"
    )
    if "loss" in recipe:
        lines.append(f"Loss {recipe['loss'].get('name')}, beta {recipe['loss'].get('beta')}")
    if data.get("name"):
        # The last part alone: a path may tell whose machine it was.
        lines.append(f"Data: {_code(str(data['name']).rpartition('/')[2])}, {data.get('kept')} rows used")
    return _list("Training", lines)


def _verdict(run: FinishedRun) -> str:
    verdict = run.record.get("verdict")
    if not isinstance(verdict, Mapping) or not verdict.get("word"):
        return ""
    warnings = [f"Warning: {_plain(text)}" for text in verdict.get("warnings", [])]
    sentences = [_plain(text) for text in verdict.get("sentences", [])]
    return _list(f"Held-out verdict: {_plain(str(verdict['word']))}", [*sentences, *warnings])


def _agreement(checked: Checked) -> str:
    tokens = next(iter(checked.figures.values())).tokens
    lines = [
        "## Agreement with the run",
        "",
        f"Along {tokens:,} tokens of the run's own greedy answers to fixed prompts. The run differs from what it "
        f"started from by {checked.moved:.1e} nats a token.",
        "",
        "| merged into | KL, nats a token | same top token | same greedy tokens |",
        "|---|---|---|---|",
    ]
    for name, found in checked.figures.items():
        decoded = "–" if found.same_tokens is None else f"{100 * found.same_tokens:.1f} %"
        mark = " (this export)" if name == checked.taken else ""
        lines.append(f"| {name}{mark} | {found.kl:.1e} | {100 * found.same_top:.1f} % | {decoded} |")
    lines += [
        "",
        f"Allowed: KL {MOST_KL:g} at most, same top token {100 * LEAST_SAME_TOP:g} % at least. The token ids of "
        f"{checked.conversations} conversations are those of the run's tokenizer.",
    ]
    return "\n".join(lines)


def _loading(kind: Kind, base: Base) -> str:
    lines = {
        Kind.ADAPTER: _load_adapter(base),
        Kind.MERGED: [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'model = AutoModelForCausalLM.from_pretrained("FOLDER")',
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
        ],
        Kind.OLLAMA: ["ollama create NAME -f Modelfile", "ollama run NAME"],
        Kind.GGUF: ["llama-cli -m model.gguf"],
    }[kind]
    language = "python" if kind in (Kind.ADAPTER, Kind.MERGED) else "bash"
    return "\n".join(["## Use", "", f"```{language}", *lines, "```"])


def _load_adapter(base: Base) -> list[str]:
    revision = f", revision={json.dumps(base.revision)}" if base.revision else ""
    name = json.dumps("FOLDER OF THE BASE" if base.name == TINY else base.name)
    return [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        f"base = AutoModelForCausalLM.from_pretrained({name}{revision})",
        'model = PeftModel.from_pretrained(base, "FOLDER")',
    ]


def _list(title: str, lines: Sequence[str]) -> str:
    return "\n".join([f"## {title}", "", *(f"- {line}" for line in lines)])


def _code(text: str) -> str:
    return f"`{_plain(text).replace('`', '')}`"


def _plain(text: Any) -> str:
    """Foreign text on one line, without markup that a page would act on."""
    return " ".join(str(text).replace("<", "‹").replace(">", "›").split())
