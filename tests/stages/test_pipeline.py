"""Several stages in one recipe: what is skipped, continued and run again, and what the last page says."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lite_align.errors import UserError
from lite_align.model.backbone import adapter_digest
from lite_align.recipe import load, load_pipeline
from lite_align.stages import answers, pipeline, reload, rollouts, training
from lite_align.stages.command import CommandOptions
from lite_align.train import fit
from lite_align.train.record import read_record
from lite_align.view import View
from tests.stages import small

TEXT = """
pipeline: two
model: {{name: {model}}}
train: {{max_steps: 2, batch_size: 4, save_steps: 1, eval_steps: 0, learning_rate: 0.01}}
loss: {{beta: 0.5}}
stages:
  first: {{stage: dpo, data: {{path: {data}, held_out: 0.25}}}}
  second: {{stage: dpo, from: first, data: {{path: {data}, held_out: 0.25}}}}
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(answers, "PROBES", 1)
    monkeypatch.setattr(answers, "PROBE_TOKENS", 4)


@pytest.fixture
def recipe(tiny_llama, tmp_path) -> Path:
    data = small.write(tmp_path / "rows.jsonl", small.rows(16))
    file = tmp_path / "two.yaml"
    file.write_text(TEXT.format(model=tiny_llama, data=data))
    return file


def run(recipe: Path, *sets: str, **command: Any) -> tuple[Path, str]:
    out = io.StringIO()
    options = CommandOptions(**{"out": recipe.parent / "out", **command})
    root = pipeline.run(load_pipeline(recipe, sets=sets), options, View(file=out, errors=io.StringIO()))
    return root, " ".join(out.getvalue().split())


def times(root: Path) -> dict[str, int]:
    return {str(p.relative_to(root)): p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}


def test_every_stage_continues_the_one_it_names_and_a_second_call_does_nothing(recipe):
    root, told = run(recipe)
    first, second = read_record(root / "first"), read_record(root / "second")
    assert second["parents"][0]["adapter"] == first["adapters"]["policy"]
    assert second["reference"]["reference"] == adapter_digest(root / "first" / "adapters" / "policy")
    assert second["provenance"]["model.adapter"] == "from first"
    assert "Pipeline two" in told
    assert f"lite-align chat {root / 'second'}" in told
    before = times(root)
    _, told = run(recipe)
    assert told.count("unchanged, skipped") == 2
    assert times(root) == before


def test_a_change_runs_what_depends_on_it_in_new_folders(recipe):
    root, _ = run(recipe)
    before = times(root)
    _, told = run(recipe, "second.loss.beta=0.7")
    assert told.count("unchanged, skipped") == 1
    assert read_record(root / "second-0002")["recipe"]["loss"]["beta"] == 0.7
    assert {
        name: time for name, time in times(root).items() if name in before and name != pipeline.STATE
    } == {name: time for name, time in before.items() if name != pipeline.STATE}
    # New rows under the old name: nothing is the same any more.
    small.write(recipe.parent / "rows.jsonl", small.rows(16, seed=5))
    _, told = run(recipe, "second.loss.beta=0.7")
    assert "unchanged" not in told
    assert read_record(root / "second-0003")["parents"][0]["run"] == str(root / "first-0002")


def test_an_interrupted_stage_goes_on_where_it_stopped(recipe, monkeypatch):
    whole, _ = run(recipe, out=recipe.parent / "whole")

    def stop(step: int) -> None:
        if step == 1:
            raise KeyboardInterrupt

    calls: list[str] = []

    def fitted(stage, engine, run, *arguments, **options) -> None:
        calls.append(run.path.name)
        after = {"after_step": stop} if run.path.name == "second" else {}
        fit.fit(stage, engine, run, *arguments, **options, **after)

    with monkeypatch.context() as patch:
        patch.setattr(training, "fit", fitted)
        with pytest.raises(KeyboardInterrupt):
            run(recipe)
    assert calls == ["first", "second"]
    root, told = run(recipe)
    assert told.count("unchanged, skipped") == 1
    assert "after step 1 of 2" in told
    assert adapter_digest(root / "second" / "adapters" / "policy") == adapter_digest(
        whole / "second" / "adapters" / "policy"
    )


def test_a_folder_of_something_else_is_left_alone(recipe):
    (recipe.parent / "out").mkdir()
    (recipe.parent / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is not the folder of a pipeline"):
        run(recipe)
    assert [path.name for path in (recipe.parent / "out").iterdir()] == ["thesis.txt"]


def test_a_damaged_state_is_told(recipe):
    (recipe.parent / "out").mkdir()
    (recipe.parent / "out" / pipeline.STATE).write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        run(recipe)


def test_a_dry_run_writes_nothing_and_names_what_comes_later(recipe):
    root, told = run(recipe, dry_run=True)
    assert not root.exists()
    assert "2 of 2 · dpo, after first" in told


REWARDED = """
pipeline: rewarded
model: {{name: {model}}}
train: {{max_steps: 2, save_steps: 1, eval_steps: 0, learning_rate: 0.01}}
stages:
  reward: {{train: {{batch_size: 4}}, data: {{path: {data}, held_out: 0.25}}}}
  ppo:
    reward: reward
    train: {{batch_size: 4}}
    data: {{path: {prompts}, held_out: 0.25}}
    ppo: {{rollouts: 8, passes: 1, max_new_tokens: 4, force: true}}
"""


@pytest.fixture
def rewarded(tiny_llama, tmp_path) -> Path:
    rows = small.rows(16)
    data = small.write(tmp_path / "rows.jsonl", rows)
    prompts = small.write(tmp_path / "prompts.jsonl", [{"prompt": row["prompt"]} for row in rows])
    file = tmp_path / "rewarded.yaml"
    file.write_text(REWARDED.format(model=tiny_llama, data=data, prompts=prompts))
    return file


def test_a_step_learns_from_the_reward_model_of_another(rewarded, monkeypatch):
    monkeypatch.setattr(reload, "fresh", lambda *_: None)
    scores = rollouts.Collector._scores
    # Random weights never stop, and answers that do not stop all get the same score.
    monkeypatch.setattr(
        rollouts.Collector,
        "_scores",
        lambda self, sources, weights, stopped: scores(self, sources, weights, [True] * len(stopped)),
    )
    root, told = run(rewarded, dry_run=True)
    assert "2 of 2 · ppo, after reward" in told
    root, told = run(rewarded)
    record = read_record(root / "ppo")
    assert record["status"] == "finished"
    assert record["recipe"]["ppo"]["reward"] == str(root / "reward")
    assert record["reward_model"]["adapter"] == adapter_digest(root / "reward" / "adapters" / "reward")
    before = times(root)
    _, told = run(rewarded)
    assert told.count("unchanged, skipped") == 2
    assert times(root) == before
    # Another reward model is another input.
    _, told = run(rewarded, "reward.train.seed=7")
    assert told.count("unchanged, skipped") == 0
    assert (root / "ppo-0002").is_dir()


def test_json_is_one_record_of_all_stages_at_the_end(recipe):
    out = io.StringIO()
    options = CommandOptions(recipe.parent / "out")
    pipeline.run(load_pipeline(recipe), options, View(json=True, file=out, errors=io.StringIO()))
    (line,) = out.getvalue().splitlines()
    last = json.loads(line)
    assert set(last["runs"]) == {"first", "second"}
    assert last["score"] is None


def test_inputs_are_contents_and_not_names(tiny_llama, tmp_path):
    """Another place changes nothing; another adapter, file or base under the old name does."""
    data = small.write(tmp_path / "rows.jsonl", small.rows(4))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    weights = adapter / "adapter_model.safetensors"

    def digest(folder: Path, rows: Path) -> str:
        return pipeline.inputs(
            load("dpo", data=str(rows), flags={"model.name": str(tiny_llama), "model.adapter": str(folder)})
        )

    save_file({"w": torch.zeros(2)}, weights)
    before = digest(adapter, data)
    moved = Path(shutil.copytree(adapter, tmp_path / "moved"))
    assert digest(moved, Path(shutil.copy(data, tmp_path / "other.jsonl"))) == before
    save_file({"w": torch.ones(2)}, weights)
    assert digest(adapter, data) != before
    small.write(data, small.rows(5))
    assert digest(moved, data) != before
