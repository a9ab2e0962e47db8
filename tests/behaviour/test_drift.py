"""Resuming with something changed, through the whole stage: refused, asked for or free, as the schema says."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lite_align.errors import DriftError, RecipeError
from lite_align.recipe import drift_classes, flatten
from lite_align.stages import training
from lite_align.train.fit import fit
from lite_align.train.record import read_record

CLASSES = drift_classes("dpo")
CHANGES: dict[str, object] = {
    "model.name": "OTHER",  # a copy of the model's folder
    "model.revision": "0123456789abcdef",
    "model.adapter": "runs/another",
    "model.quantization": "nf4",
    "model.dtype": "bfloat16",
    "model.gradient_checkpointing": "on",
    "data.path": "COPY",  # a copy of the data file
    "data.format": "pair.text",
    "data.map": {"chosen": "chosen"},
    "data.max_length": 300,
    "data.max_dropped": 0.5,
    "data.held_out": 0.5,
    "data.held_out_path": "HELD OUT",
    "data.skip_bad": 1,
    "data.accept": ["LA305"],
    "data.truncate": "never",
    "data.pair_thumbs": True,
    "lora.rank": 8,
    "lora.alpha": 8.0,
    "lora.dropout": 0.1,
    "lora.targets": ["q_proj"],
    "loss.name": "ipo",
    "loss.beta": 0.5,
    "loss.label_smoothing": 0.1,
    "loss.sft_weight": 0.5,
    "loss.length_normalized": True,
    "loss.options": {"margin": 0.5},
    "train.learning_rate": 2e-2,
    "train.epochs": 3.0,
    "train.max_steps": 7,
    "train.batch_size": 5,
    "train.tokens_per_microbatch": 320,
    "train.warmup": 0.5,
    "train.schedule": "linear",
    "train.weight_decay": 0.1,
    "train.adam_beta1": 0.8,
    "train.adam_beta2": 0.99,
    "train.adam_epsilon": 1e-6,
    "train.max_grad_norm": 0.5,
    "train.seed": 43,
    "train.save_steps": 3,
    "train.eval_steps": 2,
    "train.log_steps": 1,
    "train.keep_checkpoints": 3,
    "speed.compile": "on",
    "speed.share_prompts": False,
    "speed.fused_lora": False,
    "speed.frozen_head": False,
    "speed.unnest_scales": "on",
    "speed.offload_embeddings": "on",
    "speed.fused_optimizer": False,
    "speed.load_while_reading": False,
}
LOSS = {"loss.options": "hinge"}  # a loss that has the option


class Reached(Exception):
    """The run was taken up: everything before the model is loaded went through."""


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_backbone(*_: object) -> None:
        raise Reached

    monkeypatch.setattr(training, "load_backbone", load_backbone)


@pytest.fixture
def started(job, no_model: None, tiny_llama: Path) -> Callable[[str], tuple]:
    """Start a run that ends before its model is loaded; return it, and it with one key changed."""

    def start(key: str):
        run = job(**{"loss.name": LOSS.get(key, "sigmoid")})
        with pytest.raises(Reached):
            run.train()
        value = CHANGES[key]
        if value == "OTHER":
            value = str(shutil.copytree(tiny_llama, run.out.parent / "other"))
        elif value == "COPY":
            value = str(shutil.copy(run.data, run.out.parent / "copy.jsonl"))
        elif value == "HELD OUT":
            rows = [json.loads(line) for line in run.data.read_text().splitlines()]
            other = run.out.parent / "held_out.jsonl"
            other.write_text(
                "".join(json.dumps(r | {"prompt": f"Another: {r['prompt']}"}) + "\n" for r in rows)
            )
            value = str(other)
        return run, run.changed(**{key: value})

    return start


def keys_of(kind: str) -> list[str]:
    return [key for key, found in CLASSES.items() if found == kind]


def test_the_table_has_every_key_of_the_schema() -> None:
    assert CHANGES.keys() == CLASSES.keys()
    assert set(CLASSES.values()) == {"refuse", "ask", "free"}


@pytest.mark.parametrize("key", [key for key in keys_of("refuse") if key != "lora.dropout"])
def test_refused(started, key: str) -> None:
    run, changed = started(key)
    for accept in ((), (key,)):  # nor can it be accepted
        with pytest.raises(DriftError) as told:
            changed.train(resume=True, accept=accept)
        assert told.value.exit_code == 2
        assert any(line.startswith(f"{key}: ") and "cannot change" in line for line in told.value.details)
    with pytest.raises(Reached):
        run.train(resume=True)


def test_dropout_is_refused_by_the_recipe_itself(job) -> None:
    with pytest.raises(RecipeError, match="lora.dropout"):
        job(**{"lora.dropout": 0.1}).train()


@pytest.mark.parametrize("key", keys_of("ask"))
def test_asked_for(started, key: str) -> None:
    run, changed = started(key)
    before = flatten(run.record()["recipe"])[key]
    with pytest.raises(DriftError) as told:
        changed.train(resume=True)
    (line,) = told.value.details
    assert line == f"{key}: {json.dumps(before)} → {json.dumps(CHANGES[key])} (not accepted)"
    assert f"--accept-drift {key}" in told.value.remedy
    assert flatten(run.record()["recipe"])[key] == before
    with pytest.raises(Reached):
        changed.train(resume=True, accept=(key,))
    assert flatten(run.record()["recipe"])[key] == CHANGES[key]
    assert key in run.record()["resumes"][-1]["changes"][0]
    with pytest.raises(DriftError):  # the way back is a change too
        run.train(resume=True)


@pytest.mark.parametrize("key", keys_of("free"))
def test_free(started, key: str) -> None:
    run, changed = started(key)
    with pytest.raises(Reached):
        changed.train(resume=True)
    assert flatten(run.record()["recipe"])[key] == changed.recipe.get(key, str(changed.data))


# What no key of the recipe says: contents.


@pytest.fixture
def stopped(job, monkeypatch: pytest.MonkeyPatch, tiny_llama: Path):
    """A real run stopped after step 3, on its own copy of the model and with a held-out file of its own."""

    def after_step(step: int) -> None:
        if step == 3:
            raise Reached

    base = job()
    model = shutil.copytree(tiny_llama, base.out.parent / "model")
    held_out = base.out.parent / "held_out.jsonl"
    rows = [{"prompt": f"Held out {n}?", "chosen": f"Yes, {n}.", "rejected": "No."} for n in range(3)]
    held_out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = base.changed(**{"model.name": str(model), "data.held_out_path": str(held_out)})
    with monkeypatch.context() as patch:
        patch.setattr(training, "fit", partial(fit, after_step=after_step))
        with pytest.raises(Reached):
            run.train()
    return run


def refused(run) -> list[str]:
    with pytest.raises(DriftError) as told:
        run.train(resume=True)
    assert read_record(run.out)["status"] == "interrupted", "a refused resume must not leave it running"
    return [line.partition(": ")[0] for line in told.value.details]


def test_contents_that_changed_are_refused_by_their_hash(stopped) -> None:
    model, held_out = Path(str(stopped.recipe["model.name"])), Path(str(stopped.recipe["data.held_out_path"]))

    def edited(path: Path, old: str, new: str) -> list[str]:
        text = path.read_text()
        assert old in text
        return rewritten(path, text.replace(old, new, 1))

    def rewritten(path: Path, new: str) -> list[str]:
        text = path.read_text()
        path.write_text(new)
        found = refused(stopped)
        path.write_text(text)
        return found

    assert edited(stopped.data, "the quick", "a quick") == ["hash.data", "hash.tokens"]
    assert edited(held_out, "Yes, 1", "Yes, 9") == ["hash.held_out", "hash.tokens"]
    assert edited(model / "config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05') == ["hash.base"]
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-20]  # some words come out in other pieces
    assert rewritten(model / "tokenizer.json", json.dumps(tokenizer)) == ["hash.tokens"]

    weights = model / "model.safetensors"
    before = weights.read_bytes()
    tensors = load_file(weights)
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, weights, metadata={"format": "pt"})
    assert refused(stopped) == ["hash.base"]
    weights.write_bytes(before)

    assert stopped.train(resume=True) == stopped.out, "all is as it was: the run goes on"
    assert stopped.record()["status"] == "finished"


def test_an_accepted_change_acts(stopped) -> None:
    """The new rate and the new end are those of the steps that are left; what was done stays done."""
    before = stopped.metrics()
    changed = stopped.changed(
        **{"train.learning_rate": 5e-3, "train.max_steps": 8, "train.schedule": "constant"}
    )
    changed.train(resume=True, accept=("train.learning_rate", "train.max_steps", "train.schedule"))
    rows = [row for row in changed.metrics() if "learning_rate" in row]
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    assert rows[0] == before[0]
    assert [row["learning_rate"] for row in rows[1:]] == [5e-3] * 3
    events = changed.record()["resumes"][-1]["changes"]
    assert events[0] == "train.learning_rate: 0.01 → 0.005"
