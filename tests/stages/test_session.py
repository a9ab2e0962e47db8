"""What surrounds a stage: resuming, automatic settings, the folder, what is shown, answers."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lite_align.errors import DriftError, RunInUse, UserError
from lite_align.recipe import load, resolve_auto, to_dict
from lite_align.stages import session
from lite_align.stages.command import CommandOptions
from lite_align.train.run import Run
from lite_align.view import View

CPU = torch.device("cpu")


@pytest.fixture
def resolved(tiny_llama):
    return load("dpo", data="rows.jsonl", flags={"model.name": str(tiny_llama)}, sets=["train.seed=7"])


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def interrupted(resolved, **arguments) -> Run:
    """A run folder below runs/ whose process was stopped."""
    run = Run.create(stage="dpo", recipe=to_dict(resolved.recipe), root=session.RUNS, **arguments)
    run.finish("interrupted")
    run.close()
    return run


# Processes.


def test_several_processes_are_refused(monkeypatch):
    session.require_one_process()
    monkeypatch.setenv("WORLD_SIZE", "1")
    session.require_one_process()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="LA412: this run was started in 2 processes"):
        session.require_one_process()


def test_the_device_is_the_cpu_without_cuda():
    assert session.device() == CPU


# Resuming.


def test_a_new_run_resumes_nothing():
    assert session.interrupted_run(CommandOptions(), "dpo", "rows.jsonl") is None
    assert session.stored_record(None) is None


def test_the_newest_unfinished_run_of_the_data_is_resumed(resolved):
    other = load("dpo", data="other.jsonl", sets=[])
    first, second = interrupted(resolved), interrupted(resolved)
    interrupted(other)
    command = CommandOptions(resume=True)
    assert session.interrupted_run(command, "dpo", "rows.jsonl") == second.path
    record = session.stored_record(second.path)
    assert record is not None
    assert record["status"] == "interrupted"
    assert session.interrupted_run(replace(command, out=first.path), "dpo", "rows.jsonl") == first.path


def test_nothing_to_resume_is_an_error(resolved, tmp_path):
    command = CommandOptions(resume=True)
    with pytest.raises(UserError, match="no unfinished dpo run of rows.jsonl under runs/"):
        session.interrupted_run(command, "dpo", "rows.jsonl")
    with pytest.raises(UserError, match="no run folder nothing"):
        session.interrupted_run(replace(command, out=Path("nothing")), "dpo", "rows.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_record_starts_anew(resolved, tmp_path):
    (tmp_path / "out").mkdir()
    assert session.stored_record(tmp_path / "out") is None
    command = CommandOptions(out=tmp_path / "out", resume=True, command="lite-align dpo 'my rows.jsonl'")
    with session.open_run(resolved, command, tmp_path / "out", {}) as run:
        assert run.path == tmp_path / "out"
        assert run.record["command"] == ["lite-align", "dpo", "my rows.jsonl"]
        assert run.record["provenance"]["train.seed"] == "--set"


def test_a_resumed_run_refuses_drift_and_gives_the_folder_free(resolved):
    path = interrupted(resolved).path
    changed = load("dpo", data="rows.jsonl", flags={"model.name": resolved.recipe.model.name})
    command = CommandOptions(resume=True)
    with pytest.raises(DriftError, match="train.seed"):
        session.open_run(changed, command, path, {})
    with session.open_run(resolved, command, path, {}) as run:
        assert run.path == path
        with pytest.raises(RunInUse):
            session.open_run(resolved, command, path, {})


# Automatic settings.


def test_settings_of_the_model_are_filled(resolved):
    found = session.settle(resolved, None, CPU)
    assert (found.recipe.model.quantization, found.recipe.model.dtype) == ("none", "float32")
    assert found.recipe.data.max_length == 512  # the positions of the model
    assert found.provenance["data.max_length"] == "auto: the model has 512 positions"


def test_what_a_person_chose_stays(tiny_llama):
    sets = ["model.quantization=nf4", "data.max_length=64", "train.learning_rate=0.5", "data.held_out=0.4"]
    chosen = load("dpo", data="rows.jsonl", flags={"model.name": str(tiny_llama)}, sets=sets)
    found = session.settle(chosen, None, CPU)
    found = session.settle_held_out(found, 1000)
    found = session.settle_training(found, parameters=10**10, examples=5000)
    recipe = found.recipe
    assert (recipe.model.quantization, recipe.data.max_length) == ("nf4", 64)
    assert (recipe.train.learning_rate, recipe.data.held_out) == (0.5, 0.4)
    assert recipe.loss.beta == 0.1  # the default of a 10 B model
    assert found.provenance["train.learning_rate"] == "--set"


@pytest.mark.parametrize(("examples", "share"), [(100, 0.1), (5120, 0.1), (51_200, 0.01), (0, 0.1)])
def test_a_tenth_is_held_out_at_most_512(resolved, examples, share):
    assert session.settle_held_out(resolved, examples).recipe.data.held_out == share


@pytest.mark.parametrize(
    ("examples", "epochs", "steps"), [(100, 2.0, 14), (1999, 2.0, 250), (2000, 1.0, 125)]
)
def test_settings_of_the_training_are_filled(resolved, examples, epochs, steps):
    found = session.settle_training(resolved, parameters=10**6, examples=examples)
    train = found.recipe.train
    assert (train.learning_rate, found.recipe.loss.beta) == (1e-3, 1.0)
    assert train.epochs == epochs
    assert session.total_steps(found.recipe, examples) == steps
    assert train.save_steps == -(-steps // session.SAVES)
    assert train.eval_steps == -(-steps // session.EVALUATIONS)


def test_a_resumed_run_keeps_the_settings_it_was_started_with(resolved):
    first = session.settle_held_out(session.settle(resolved, None, CPU), 100)
    first = session.settle_training(first, parameters=10**6, examples=100)
    first = resolve_auto(first, "model.gradient_checkpointing", 1, "24 GiB free")
    stored = {"recipe": to_dict(first.recipe)}
    again = session.settle(resolved, stored, CPU)
    again = session.settle_held_out(again, 9000)
    again = session.settle_training(again, parameters=10**10, examples=9000)
    assert again.recipe == first.recipe
    assert again.provenance["train.learning_rate"] == "auto: as the interrupted run"


def test_steps_of_a_run(resolved):
    def steps(*sets: str) -> int:
        recipe = load("dpo", data="rows.jsonl", sets=[*sets, "train.batch_size=8"]).recipe
        return session.total_steps(recipe, 20)

    assert steps("train.epochs=1") == 3
    assert steps("train.epochs=2.5") == 8
    assert steps("train.epochs=0.01") == 1
    assert steps("train.epochs=2", "train.max_steps=5") == 5


# What a person sees.


@pytest.mark.parametrize(
    ("count", "text"),
    [(7_615_616_512, "7.62 B"), (2_620_000, "2.62 M"), (1500, "1.5 k"), (999, "999"), (0, "0")],
)
def test_counts_are_short(count, text):
    assert session.short(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (["q_proj", "k_proj"], "q_proj k_proj"),
        ((), "none"),
        (None, "none"),
        ("", "none"),
        ({}, "none"),
        (1e-5, "1e-5"),
        (0, "0"),
        (False, "false"),
        ("auto", "auto"),
    ],
)
def test_values_are_plain(value, text):
    assert session.plain(value) == text


def test_every_setting_is_shown_with_its_origin(resolved):
    out = io.StringIO()
    session.show_settings(session.settle(resolved, None, CPU), View(file=out, errors=out))
    shown = " ".join(out.getvalue().split())
    for block, values in to_dict(resolved.recipe).items():
        if isinstance(values, dict):
            for name in values.keys() - {"path"}:
                assert f"{name} " in shown, f"{block}.{name}"
    assert "train.seed 7 (--set)" in shown
    assert "(auto: the model has 512 positions)" in shown
