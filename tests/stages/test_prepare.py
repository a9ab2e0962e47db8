"""Before the weights: what is planned, what is left out, what is refused while nothing is written."""

import shutil
from hashlib import sha256

import pytest

from lite_align.errors import ModelError
from lite_align.stages import answers, prepare
from tests.stages import small
from tests.stages.commands import ROWS, dpo


@pytest.fixture(autouse=True)
def short_answers(monkeypatch) -> None:
    monkeypatch.setattr(answers, "PROBE_TOKENS", 8)


def test_a_dry_run_writes_nothing(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = dpo(tiny_llama, tmp_path, dry_run=True, out=None)
    assert found.path is None
    assert "nothing was written" in found.out
    assert "4 steps of 4 pairs" in found.out
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_rows_left_out_are_named_by_file_and_line(tiny_llama, tmp_path):
    same = {"prompt": "a?", "chosen": "b", "rejected": "b"}
    (tmp_path / "rows.jsonl").mkdir()
    small.write(tmp_path / "rows.jsonl" / "first.jsonl", [same, *ROWS[:12]])
    small.write(tmp_path / "rows.jsonl" / "second.jsonl", [*ROWS[12:], same, same])
    found = dpo(tiny_llama, tmp_path, "data.max_dropped=0.2", dry_run=True, out=None)
    text = " ".join(found.out.replace("\n", " ").split())
    folder = tmp_path / "rows.jsonl"
    assert "left out: 3 identical (LA301)" in text
    unbroken = "".join(found.out.split())  # a path may be longer than a line
    assert f"LA301identical:line1of{folder / 'first.jsonl'}" in unbroken
    assert f"LA301identical:line13,14of{folder / 'second.jsonl'}" in unbroken


def test_held_out_rows_from_a_file_of_their_own(tiny_llama, tmp_path):
    held = small.write(tmp_path / "held.jsonl", small.rows(30)[24:])
    found = dpo(tiny_llama, tmp_path, f"data.held_out_path={held}", "train.max_steps=1")
    assert (found.record["plan"]["pairs"], found.record["data"]["held_out"]) == (24, 6)
    assert {row["source"].rpartition(":")[0] for row in found.lines("held_out.jsonl")} == {str(held)}
    assert found.record["hashes"]["held_out"] == sha256(held.read_bytes()).hexdigest()


def test_nothing_held_out(tiny_llama, tmp_path):
    found = dpo(tiny_llama, tmp_path, "data.held_out=0", "train.max_steps=2")
    assert found.record["data"]["held_out"] == 0
    assert found.record["verdict"]["word"] == "no evidence either way"
    assert found.lines("held_out.jsonl") == found.lines("answers.jsonl") == []


def test_a_model_without_weights_is_refused_before_anything_is_written(tiny_llama, tmp_path):
    shutil.copytree(tiny_llama, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="safetensors"):
        dpo(tmp_path / "model", tmp_path)
    assert not (tmp_path / "out").exists()


def test_quantiles_are_lengths_that_occur():
    assert prepare.quantiles([1, 2, 3, 9]) == {"median": 2, "95 %": 9, "longest": 9}
    assert prepare.quantiles(list(range(101))) == {"median": 50, "95 %": 95, "longest": 100}
    assert prepare.quantiles([7]) == {"median": 7, "95 %": 7, "longest": 7}
