"""`lite-align sft` from a file to a verdict: what it leaves, what it says, and what it continues."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from lite_align.recipe import load
from lite_align.stages import answers, training
from lite_align.stages.command import CommandOptions
from lite_align.view import View
from tests.stages import small
from tests.stages.commands import Done

SETS = ("train.batch_size=4", "train.learning_rate=0.01", "train.eval_steps=2", "data.held_out=0.25")


@pytest.fixture(autouse=True)
def short_answers(monkeypatch) -> None:
    monkeypatch.setattr(answers, "PROBES", 2)
    monkeypatch.setattr(answers, "PROBE_TOKENS", 8)


def sft(model: Path, folder: Path, lines: list[Any], *sets: str, **command: Any) -> Done:
    data = small.write(folder / "rows.jsonl", lines)
    flags: dict[str, object] = {"model.name": str(model)}
    if parent := command.pop("parent", None):
        flags["model.adapter"] = str(parent)
    resolved = load("sft", data=str(data), flags=flags, sets=[*SETS, *sets])
    out = io.StringIO()
    options = {"out": folder / "out", "command": "lite-align sft rows.jsonl", **command}
    path = training.train(resolved, CommandOptions(**options), View(file=out, errors=out))
    return Done(path, out.getvalue())


@pytest.fixture
def lines() -> list[Any]:
    return small.chat_lines(16, prompts=12)


def test_a_run_leaves_its_figures_and_says_them(tiny_llama, tmp_path, lines):
    done = sft(tiny_llama, tmp_path, lines, "train.epochs=3.0", "lora.dropout=0.1")
    record = done.record
    assert (record["status"], record["stage"], record["data"]["format"]) == (
        "finished",
        "sft",
        "sft.messages",
    )
    rows = done.lines("metrics.jsonl")
    assert {"loss", "mean_token_accuracy", "grad_norm", "examples_per_second"} <= rows[0].keys()
    evaluated = [row for row in rows if "eval/loss" in row]
    assert {"eval/loss", "eval/mean_token_accuracy"} <= evaluated[-1].keys()
    held_out = done.lines("held_out.jsonl")
    tokens = sum(row["tokens"] for row in held_out)
    mean = {
        side: sum(row[side]["loss"] * row["tokens"] for row in held_out) / tokens
        for side in ("before", "after")
    }
    assert mean["after"] == pytest.approx(evaluated[-1]["eval/loss"])
    assert mean["after"] < mean["before"]
    assert record["verdict"]["word"] == "better"
    assert len(done.lines("answers.jsonl")) == 2
    assert (done.path / "adapters" / "policy" / "adapter_model.safetensors").exists()
    for words in (
        "loss on every answer of a conversation",
        f"loss {mean['before']:.3g} → {mean['after']:.3g} nats a token",
        "verdict   Better.",
        f"lite-align chat {done.path}",
    ):
        assert words in " ".join(done.out.split()) or words in done.out
    page = (done.path / "report.html").read_text(encoding="utf-8")
    for words in ("Held-out loss", "Token accuracy", "Held-out loss by category"):
        assert words in page
    assert "Reward" not in page
    assert "pairs" not in page


def test_a_dry_run_writes_nothing(tiny_llama, tmp_path, lines):
    done = sft(tiny_llama, tmp_path, lines, dry_run=True)
    assert done.path is None
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
    assert "with shared prompts" in done.out


def test_raw_texts_are_trained_in_all_tokens_and_have_no_answers(tiny_llama, tmp_path):
    texts = [{"text": f"{row['prompt']} {row['chosen']}"} for row in small.rows(12)]
    done = sft(tiny_llama, tmp_path, texts, "train.epochs=1.0")
    assert "loss on all tokens of raw texts" in done.out
    assert "the loss covers all tokens of the text" in done.out
    assert done.lines("answers.jsonl") == []
    assert done.record["status"] == "finished"


def test_a_run_goes_on_from_another_and_is_measured_against_it(tiny_llama, tmp_path, lines):
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    first = sft(tiny_llama, tmp_path / "first", lines, "lora.dropout=0.1")
    second = sft(tiny_llama, tmp_path / "second", lines, "lora.dropout=0.1", parent=first.path)
    after = [row["after"] for row in first.lines("held_out.jsonl")]
    before = [row["before"] for row in second.lines("held_out.jsonl")]
    assert [row["loss"] for row in before] == pytest.approx([row["loss"] for row in after], rel=1e-5)
    assert second.record["parents"][0]["stage"] == "sft"
    assert json.loads((second.path / "adapters" / "policy" / "adapter_config.json").read_text())["r"] == 16
