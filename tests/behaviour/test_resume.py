"""A DPO run stopped anywhere and resumed ends as if it had never stopped: adapter, moments, metrics, answers."""

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from lite_align.errors import Interrupted, UserError
from lite_align.stages import training
from lite_align.train.fit import fit

STEPS = 6  # of the small run: three in each of two epochs, checkpoints at 2, 4 and 6


class Stopped(Exception):
    """Stands for whatever ends a run in the middle."""


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], list[int]]:
    """Do something after a step of the next runs, and return the steps that they made."""

    def install(at: int, act: Callable[[], None]) -> list[int]:
        made: list[int] = []

        def after_step(step: int) -> None:
            made.append(step)
            if step == at:
                act()

        monkeypatch.setattr(training, "fit", partial(fit, after_step=after_step))
        return made

    return install


def crash() -> None:
    raise Stopped


def ask_to_stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


QUANTIZATIONS = ["none", pytest.param("nf4", marks=pytest.mark.slow)]


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_stopped_and_resumed_equals_uninterrupted(job, stop, quantization: str) -> None:
    whole = job("whole", model__quantization=quantization)
    made = stop(0, crash)
    whole.train()
    assert made == list(range(1, STEPS + 1))
    assert whole.record()["model"]["quantization"] == quantization
    # Before the first checkpoint, in epoch 1, in epoch 2, after the last step but before the answers.
    for at, back_to in ((1, 0), (3, 2), (5, 4), (6, 6)):
        again = job(f"stopped-{at}", model__quantization=quantization)
        stop(at, crash)
        with pytest.raises(Stopped):
            again.train()
        assert again.record()["status"] == "failed"
        made = stop(0, crash)
        again.train(resume=True)
        assert made == list(range(back_to + 1, STEPS + 1))
        again.assert_equals(whole)


def test_a_reward_run_stopped_and_resumed_equals_uninterrupted(job, stop) -> None:
    """With the head, its moments, the scores, the swap test, the probes and the scale."""
    whole = replace(job("whole"), stage="reward")
    whole.train()
    assert "score.weight" in " ".join(whole.tensors())
    assert whole.record()["reward"]["reload"]["largest_difference"] == 0.0
    for at in (3, 6):
        again = replace(job(f"stopped-{at}"), stage="reward")
        stop(at, crash)
        with pytest.raises(Stopped):
            again.train()
        stop(0, crash)
        again.train(resume=True)
        again.assert_equals(whole)


def test_a_run_on_thumbs_goes_on_exactly(job, stop) -> None:
    """20 trained thumbs in steps of 7: blocks are cut by the end of a step, and every step has its reference point."""
    settings = {"loss__name": "kto", "train__batch_size": 7}
    whole = job("whole", **settings)
    whole.train()
    assert whole.record()["data"]["kind"] == "thumbs"
    for at in (1, 5):
        again = job(f"stopped-{at}", **settings)
        stop(at, crash)
        with pytest.raises(Stopped):
            again.train()
        stop(0, crash)
        again.train(resume=True)
        again.assert_equals(whole)


def test_stopped_after_every_step(job, stop) -> None:
    """Each process makes one step; saved at every step, so none is made twice."""
    whole = job("whole", train__save_steps=1)
    whole.train()
    again = job("again", train__save_steps=1)
    for step in range(1, STEPS + 1):
        made = stop(step, crash)
        with pytest.raises(Stopped):
            again.train(resume=step > 1)
        assert made == [step]
    again.train(resume=True)
    again.assert_equals(whole)
    assert len(again.record()["resumes"]) == STEPS


def test_a_signal_saves_between_checkpoints(job, stop) -> None:
    whole = job("whole", train__log_steps=3)
    whole.train()
    again = job("again", train__log_steps=3)
    made = stop(2, ask_to_stop)
    with pytest.raises(Interrupted) as told:
        again.train()
    assert told.value.exit_code == 143
    assert made == [1, 2, 3], "the step after the signal is finished"
    assert again.record()["status"] == "interrupted"
    assert (again.out / "checkpoints" / "step-00000003").is_dir()
    made = stop(0, crash)
    again.train(resume=True)
    assert made == [4, 5, 6], "no step is made twice"
    again.assert_equals(whole)


def test_resuming_a_finished_run_changes_nothing(job) -> None:
    done = job()
    done.train()
    before = {path: path.stat() for path in sorted(done.out.rglob("*"))}
    done.train(resume=True)
    assert {path: path.stat() for path in sorted(done.out.rglob("*"))} == before


def test_a_finished_run_without_its_report_gets_it(job) -> None:
    done = job()
    done.train()
    page = (done.out / "report.html").read_bytes()
    (done.out / "report.html").unlink()
    done.train(resume=True)
    assert (done.out / "report.html").read_bytes() == page


def test_damaged_checkpoints(job, stop) -> None:
    """The newest is damaged: the one before, and the same end. All are: the run does not start over by itself."""
    whole = job("whole")
    whole.train()
    half = job("half")
    stop(5, crash)
    with pytest.raises(Stopped):
        half.train()
    flip_a_bit(half.out / "checkpoints" / "step-00000004" / "policy.safetensors")

    again = job("again")
    shutil.copytree(half.out, again.out)
    made = stop(0, crash)
    again.train(resume=True)
    assert made == [3, 4, 5, 6]
    assert len(list((again.out / "checkpoints").glob(".bad-step-00000004-*"))) == 1
    again.assert_equals(whole)

    flip_a_bit(half.out / "checkpoints" / "step-00000002" / "optimizer.safetensors")
    for attempt in range(2):  # the second finds them set aside, and still does not start over
        with pytest.raises(UserError, match="No checkpoint in .* can be trusted") as told:
            half.train(resume=True)
        assert told.value.exit_code == 2
        assert len(told.value.details) == 2, attempt


def test_a_start_that_got_no_further_than_the_folder(job) -> None:
    """Killed before run.json was there: --resume starts the run in that folder."""
    fresh = job("fresh")
    fresh.out.mkdir()
    (fresh.out / ".lock").write_text("")
    (fresh.out / ".run.json.tmp-99-abcd").write_text("{")
    fresh.train(resume=True)
    assert fresh.record()["status"] == "finished"
    assert not list(fresh.out.glob(".run.json.tmp-*"))


def test_several_processes_are_refused_before_anything_is_written(
    job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    run = job()
    with pytest.raises(UserError, match="LA412.* 2 processes") as told:
        run.train()
    assert told.value.exit_code == 2
    assert "CUDA_VISIBLE_DEVICES" in told.value.remedy
    assert not run.out.exists()
    monkeypatch.setenv("WORLD_SIZE", "1")  # torchrun with one process
    run.train()


def test_a_resumed_run_keeps_its_proof(job, stop) -> None:
    run = job()
    stop(3, crash)
    with pytest.raises(Stopped):
        run.train()
    proof = run.record()["reference"]["proof"]
    assert proof["loss"] is not None
    stop(0, crash)
    run.train(resume=True)
    assert run.record()["reference"]["proof"] == proof
