"""Runs that continue others: what they take over, what they keep, and what they refuse before anything is written."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lite_align.errors import DriftError, ModelError, RecipeError, TrainingStopped, UserError
from lite_align.model import scalar_head
from lite_align.model.backbone import Backbone, Role, adapter_digest
from lite_align.recipe import LoraOptions, ModelOptions, load
from lite_align.stages import answers, lineage, reload, training
from lite_align.stages.command import CommandOptions
from lite_align.train import fit
from tests.stages import small
from tests.stages.commands import dpo

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(autouse=True)
def short_answers(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(answers, "PROBE_TOKENS", 8)


@pytest.fixture(scope="module")
def parent(tiny_llama, tmp_path_factory) -> Path:
    """A finished run with an adapter of rank 4 on two kinds of layers, which moved far."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITE_ALIGN_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(answers, "PROBE_TOKENS", 8)
        folder = tmp_path_factory.mktemp("parent")
        sets = ("lora.rank=4", "lora.alpha=8", "lora.targets=[up_proj, q_proj]", "train.learning_rate=0.05")
        found = dpo(tiny_llama, folder, *sets).path
    assert found is not None
    return found


def child(parent: Path | str, tiny: Path, folder: Path, *sets: str, **command):
    return dpo(tiny, folder, f"model.adapter={parent}", *sets, **command)


def test_a_child_starts_at_its_parent_and_is_measured_against_it(parent, tiny_llama, tmp_path):
    done = child(parent, tiny_llama, tmp_path, "train.max_steps=2")
    digest = adapter_digest(parent / "adapters" / "policy")
    record = done.record
    assert record["reference"]["reference"] == digest
    assert record["reference"]["role"] == f"frozen twin of {parent}"
    assert record["hashes"]["parent"] == digest
    assert record["parents"] == [{"run": str(parent), "stage": "dpo", "role": "policy", "adapter": digest}]
    proof = record["reference"]["proof"]
    assert proof["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert done.lines("metrics.jsonl")[0]["loss/preference"] == pytest.approx(math.log(2), abs=1e-6)
    assert (record["recipe"]["lora"]["rank"], record["recipe"]["lora"]["alpha"]) == (4, 8.0)
    assert record["recipe"]["lora"]["targets"] == ["up_proj", "q_proj"]
    assert record["provenance"]["lora.rank"] == f"as {parent}"
    assert f"continues {parent}" in done.out
    assert adapter_digest(done.path / "adapters" / "reference") == digest
    after = load_file(done.path / "adapters" / "policy" / WEIGHTS)
    before = load_file(parent / "adapters" / "policy" / WEIGHTS)
    assert after.keys() == before.keys()
    assert any(not torch.equal(after[name], before[name]) for name in after)
    assert record["adapters"]["policy"] == adapter_digest(done.path / "adapters" / "policy")
    # The held-out pairs before are those of the parent after.
    known = {line(row): row["after"]["chosen_logp"] for row in map(json.loads, open_lines(parent))}
    for row in done.lines("held_out.jsonl"):
        assert row["before"]["chosen_logp"] == pytest.approx(known[line(row)], abs=1e-3)


def line(row: dict) -> str:
    return row["source"].rpartition(":")[2]


def open_lines(run: Path) -> list[str]:
    return (run / "held_out.jsonl").read_text().splitlines()


@pytest.mark.parametrize("form", ["folder", "model"])
def test_an_adapter_without_its_run_is_continued_too(parent, tiny_llama, tmp_path, form):
    bare = Path(shutil.copytree(parent / "adapters" / "policy", tmp_path / "bare"))
    sets = (f"model.adapter={bare}",) if form == "folder" else ()
    done = dpo(bare if form == "model" else tiny_llama, tmp_path, *sets, "train.max_steps=1")
    record = done.record
    assert record["reference"]["reference"] == adapter_digest(bare)
    assert record["recipe"]["model"]["adapter"] == str(bare)
    assert record["recipe"]["model"]["name"] == str(tiny_llama)
    assert record["parents"][0]["stage"] == ""
    # The flags that it was started with resume it (here: find it finished).
    again = dpo(bare if form == "model" else tiny_llama, tmp_path, *sets, "train.max_steps=1", resume=True)
    assert again.path == done.path


# Wrong references.


def test_a_reference_that_is_not_the_parent_is_refused(parent, tiny_llama, tmp_path, monkeypatch):
    def start(backbone: Backbone, parent: lineage.Parent, *, has_reference: bool) -> None:
        backbone.load_adapter(Role.POLICY, parent.adapter)
        backbone.fix_reference("base")  # the fault of many trainers: adapters off, whatever came before

    monkeypatch.setattr(lineage, "start", start)
    with pytest.raises(TrainingStopped, match="does not start at its reference"):
        child(parent, tiny_llama, tmp_path)
    assert not (tmp_path / "out" / "adapters" / "policy").exists()


def interrupted(parent: Path, tiny: Path, folder: Path, monkeypatch) -> None:
    def stop(step: int) -> None:
        if step == 2:
            raise KeyboardInterrupt

    def fitted(*arguments, **options) -> None:
        fit.fit(*arguments, **options, after_step=stop)

    with monkeypatch.context() as patch:
        patch.setattr(training, "fit", fitted)
        with pytest.raises(KeyboardInterrupt):
            child(parent, tiny, folder)


def test_a_resumed_child_keeps_its_reference_when_the_parent_is_gone(
    parent, tiny_llama, tmp_path, monkeypatch
):
    copy = Path(shutil.copytree(parent, tmp_path / "parent"))
    whole = child(copy, tiny_llama, tmp_path, out=tmp_path / "whole")
    interrupted(copy, tiny_llama, tmp_path, monkeypatch)
    shutil.rmtree(copy)
    resumed = child(copy, tiny_llama, tmp_path, resume=True)
    ours, theirs = (load_file(done.path / "adapters" / "policy" / WEIGHTS) for done in (resumed, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert resumed.record["parents"] == whole.record["parents"]
    assert resumed.record["reference"]["reference"] == whole.record["reference"]["reference"]


def test_a_changed_reference_stops_the_resumed_run(parent, tiny_llama, tmp_path, monkeypatch):
    interrupted(parent, tiny_llama, tmp_path, monkeypatch)
    file = tmp_path / "out" / "adapters" / "reference" / WEIGHTS
    values = load_file(file)
    name = next(iter(values))
    save_file({**values, name: values[name] + 1e-3}, file, metadata={"format": "pt"})
    with pytest.raises(TrainingStopped, match="is not the adapter that this run started from"):
        child(parent, tiny_llama, tmp_path, resume=True)
    save_file(values, file, metadata={"format": "pt"})
    with pytest.raises(DriftError, match="would not continue"):
        child(tmp_path, tiny_llama, tmp_path, resume=True)


# What is refused, with nothing written.


def refused(parent: Path | str, tiny: Path, folder: Path, *sets: str) -> str:
    with pytest.raises((UserError, ModelError, RecipeError)) as stopped:
        child(parent, tiny, folder, *sets)
    assert stopped.value.exit_code == 2
    assert stopped.value.remedy
    assert not (folder / "out").exists()
    return "\n".join([stopped.value.what, *stopped.value.details])


def test_what_is_no_finished_run_is_refused(parent, tiny_llama, tmp_path):
    assert "does not exist" in refused(tmp_path / "nothing", tiny_llama, tmp_path)
    assert "neither a run folder nor an adapter" in refused(tmp_path, tiny_llama, tmp_path)
    copy = Path(shutil.copytree(parent, tmp_path / "parent"))
    record = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    assert "is not finished (status: interrupted)" in refused(copy, tiny_llama, tmp_path)
    (copy / "run.json").write_text(json.dumps(record))
    shutil.rmtree(copy / "adapters" / "policy")
    assert "has no adapter" in refused(copy, tiny_llama, tmp_path)


def test_a_reward_run_is_no_start_for_a_policy(parent, tiny_llama, tmp_path):
    copy = Path(shutil.copytree(parent, tmp_path / "reward-run"))
    record = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**record, "stage": "reward"}))
    (copy / "adapters" / "policy").rename(copy / "adapters" / "reward")
    told = refused(copy, tiny_llama, tmp_path)
    assert "is a reward run: its adapter scores answers and cannot be continued by dpo" in told
    bare = Path(shutil.copytree(copy / "adapters" / "reward", tmp_path / "bare"))
    save_file({"score.weight": torch.zeros(64)}, bare / "head.safetensors")
    assert "scores answers" in refused(bare, tiny_llama, tmp_path)


def test_a_head_that_does_not_fit_is_refused_before_anything_is_written(
    parent, tiny_llama, tmp_path, monkeypatch
):
    monkeypatch.setattr(reload, "fresh", lambda *_: None)  # a process of its own takes seconds
    bare = Path(shutil.copytree(parent / "adapters" / "policy", tmp_path / "bare"))
    data = small.write(tmp_path / "rows.jsonl", small.rows(24))

    def reward(head: torch.Tensor, **options) -> Path | None:
        save_file({"score.weight": head}, bare / "head.safetensors")
        flags = {"model.name": str(tiny_llama), "model.adapter": str(bare)}
        resolved = load(
            "reward", data=str(data), flags=flags, sets=["train.max_steps=1", "data.held_out=0.25"]
        )
        return training.train(resolved, CommandOptions(tmp_path / "out", **options), small.silent())

    for head, told in ((torch.zeros(3), "has the shape"), (torch.full((64,), float("nan")), "is not finite")):
        with pytest.raises(ModelError, match=told) as stopped:
            reward(head)
        assert stopped.value.exit_code == 2
        assert not (tmp_path / "out").exists()
    start = torch.linspace(-1, 1, 64)
    assert reward(start) == tmp_path / "out"
    assert torch.equal(scalar_head.read(tmp_path / "out" / "adapters" / "reference"), start)


def test_another_base_is_refused(parent, tiny_llama, tmp_path):
    copy = Path(shutil.copytree(parent, tmp_path / "parent"))
    record = json.loads((copy / "run.json").read_text())
    record["hashes"]["base"] = "0" * 64
    (copy / "run.json").write_text(json.dumps(record))
    assert "was trained on another base" in refused(copy, tiny_llama, tmp_path)
    other = Path(shutil.copytree(tiny_llama, tmp_path / "other"))
    assert f'model.name is "{other}" (--model)' in refused(parent, other, tmp_path)


def test_an_adapter_of_other_shapes_is_refused(parent, tiny_llama, tmp_path):
    bare = Path(shutil.copytree(parent / "adapters" / "policy", tmp_path / "bare"))
    values = load_file(bare / WEIGHTS)
    name = next(iter(values))
    save_file({**values, name: torch.zeros(4, 77)}, bare / WEIGHTS, metadata={"format": "pt"})
    told = refused(bare, tiny_llama, tmp_path)
    assert f"{name} has the shape (4, 77) and not" in told
    del values[name]
    save_file(values, bare / WEIGHTS, metadata={"format": "pt"})
    assert f"missing: {name}" in refused(bare, tiny_llama, tmp_path)


def test_a_shape_of_ones_own_is_refused_and_the_parents_is_fine(parent, tiny_llama, tmp_path):
    assert "lora.rank is 8 (--set), 4 as" in refused(parent, tiny_llama, tmp_path, "lora.rank=8")
    assert child(parent, tiny_llama, tmp_path, "lora.rank=4", dry_run=True).path is None


def test_a_copy_into_a_reward_role_keeps_the_head(parent, tiny_llama):
    from lite_align.model.load import load_model

    loaded = load_model(
        ModelOptions(name=str(tiny_llama), quantization="none", dtype="float32"), device="cpu"
    )
    shape = LoraOptions(rank=4, alpha=8.0, targets=("up_proj", "q_proj"))
    backbone = Backbone(loaded, shape, seed=3, role=Role.REWARD)
    head = backbone.adapter_tensors(Role.REWARD)["score.weight"]
    found = lineage.find(ModelOptions(name="auto", adapter=str(parent)), "reward")
    assert found is not None
    lineage.start(backbone, found, has_reference=False)
    after = backbone.adapter_tensors(Role.REWARD)
    assert torch.equal(after.pop("score.weight"), head)
    values = load_file(parent / "adapters" / "policy" / WEIGHTS)
    assert all(torch.equal(after[name], values[name]) for name in values)
    assert not backbone.has(Role.REFERENCE)
