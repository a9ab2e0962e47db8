"""An SFT run with dropout, stopped and resumed, ends as if it had never stopped; its settings are bound to it."""

from functools import partial
from pathlib import Path

import pytest

from lite_align.errors import DriftError
from lite_align.stages import training
from lite_align.train.fit import fit
from tests.behaviour.conftest import Job, settings
from tests.stages import small

CHANGES = {"lora__dropout": 0.2, "data__held_out": 0.25, "lora__rank": 4}


class Stopped(Exception):
    """Stands for whatever ends a run in the middle."""


@pytest.fixture
def chats(job, tmp_path: Path):
    """Make an SFT job: 12 rows, 9 of them trained in batches of 4, twice."""
    data = small.write(tmp_path / "chats.jsonl", small.chat_lines(12, prompts=8))

    def make(name: str, **changes: object) -> Job:
        recipe = settings(**{**CHANGES, **changes})
        return Job(data, job("unused").model, tmp_path / name, recipe, stage="sft")

    return make


def stop_after(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def after_step(step: int) -> None:
        if step == at:
            raise Stopped

    monkeypatch.setattr(training, "fit", partial(fit, after_step=after_step))


def test_dropout_goes_on_where_it_was(chats, monkeypatch):
    whole = chats("whole")
    whole.train()
    last = max(int(row["step"]) for row in whole.metrics())
    for at in (1, 3, last):
        again = chats(f"stopped-{at}")
        stop_after(at, monkeypatch)
        with pytest.raises(Stopped):
            again.train()
        stop_after(0, monkeypatch)
        again.train(resume=True)
        again.assert_equals(whole)
    other = chats("no-dropout", lora__dropout=0.0)
    other.train()
    assert other.metrics()[0]["loss"] != whole.metrics()[0]["loss"]


@pytest.mark.parametrize(("key", "value"), [("loss__train_on", "last_turn"), ("lora__dropout", 0.1)])
def test_another_mask_or_dropout_is_another_run(chats, monkeypatch, key, value):
    run = chats("run")
    stop_after(2, monkeypatch)
    with pytest.raises(Stopped):
        run.train()
    with pytest.raises(DriftError):
        run.changed(**{key: value}).train(resume=True, accept=(key.replace("__", "."),))
