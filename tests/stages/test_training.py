"""The skeleton of every training verb: finished and changed runs, and runs that continue others."""

import json
from collections.abc import Iterator

import pytest

from lite_align.errors import TrainingStopped
from lite_align.recipe import STAGES
from lite_align.stages import answers, training
from lite_align.train.record import read_record
from tests.stages.commands import Done, dpo


@pytest.fixture(autouse=True)
def short_answers(monkeypatch) -> None:
    monkeypatch.setattr(answers, "PROBE_TOKENS", 8)


@pytest.fixture(scope="module")
def done(tiny_llama, tmp_path_factory) -> Iterator[Done]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITE_ALIGN_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(answers, "PROBE_TOKENS", 8)
        yield dpo(tiny_llama, tmp_path_factory.mktemp("run"))


def test_a_finished_run_is_left_as_it_is(tiny_llama, done):
    before = {path: path.stat().st_mtime_ns for path in done.path.rglob("*")}
    found = dpo(tiny_llama, done.path.parent, resume=True)
    assert found.path == done.path
    assert "nothing is left to resume" in found.out
    assert {path: path.stat().st_mtime_ns for path in done.path.rglob("*")} == before


def test_base_weights_that_change_are_noticed(tiny_llama, tmp_path, monkeypatch):
    update = training.Engine.update

    def touching(self, window, loss_of):
        update(self, window, loss_of)
        base = loss_of.__self__.backbone.model
        next(p for n, p in base.named_parameters() if "norm" in n).data[0] += 1e-3

    monkeypatch.setattr(training.Engine, "update", touching)
    with pytest.raises(TrainingStopped, match="LA414"):
        dpo(tiny_llama, tmp_path, "train.max_steps=1")
    assert read_record(tmp_path / "out")["status"] == "failed"
    assert not (tmp_path / "out" / "adapters").exists()


def test_json_is_one_record(tiny_llama, tmp_path):
    found = dpo(tiny_llama, tmp_path, "train.max_steps=1", json_only=True)
    record = json.loads(found.out)
    assert record["status"] == "finished"
    assert record == found.record


def test_every_stage_of_the_schema_has_a_procedure():
    assert training.PROCEDURES.keys() == STAGES.keys()
