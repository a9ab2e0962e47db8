"""Memory is known before it is spent: what the command predicts stands beside what its process came to hold."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from lite_align.model.folder import TINY
from tests.stages import small

DEMO = Path(__file__).parents[2] / "data_samples" / "preferences.jsonl"


@pytest.fixture(scope="module")
def larger(tmp_path_factory, tokenizer) -> Path:
    """A model of 2 M parameters, whose step of 2,048 tokens takes a few hundred MB."""
    folder = tmp_path_factory.mktemp("larger")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=10,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def long_rows(file: Path) -> Path:
    """Pairs whose answers are so long that a step fills its micro-batches."""
    rows = small.rows(96, prompts=8, seed=3)  # few prompts, so that few are answered at the end
    for row in rows:
        row["chosen"], row["rejected"] = (" ".join([row[side]] * 6) for side in ("chosen", "rejected"))
    return small.write(file, rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "quantization", "dtype"),
    [
        ("tiny", "none", "float32"),
        ("larger", "nf4", "float32"),
    ],
)
def test_predicted_memory_is_within_15_percent_of_the_measured(request, tmp_path, model, quantization, dtype):
    folder = TINY if model == "tiny" else str(request.getfixturevalue(model))
    data = DEMO if model == "tiny" else long_rows(tmp_path / "rows.jsonl")
    sets = {
        "model.quantization": quantization,
        "model.dtype": dtype,
        "train.max_steps": 5,  # fewer need not fill a micro-batch
        "train.eval_steps": 5,
        "train.save_steps": 5,
        "train.learning_rate": 1e-5,
    }
    arguments = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    out = tmp_path / "run"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "lite_align",
            "dpo",
            str(data),
            "--model",
            folder,
            "--out",
            str(out),
            *arguments,
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"LITE_ALIGN_CACHE": str(tmp_path / "cache")},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((out / "run.json").read_text())
    memory = record["measured"]["bytes"]
    assert memory["predicted"] == record["forecast"]["bytes"]["total"]
    assert memory["peak"] == pytest.approx(memory["predicted"], rel=0.15), memory
    assert record["measured"]["seconds"]["spent"] > 0
    told = next(line for line in done.stdout.splitlines() if line.startswith(" needed"))
    assert "predicted" in told
