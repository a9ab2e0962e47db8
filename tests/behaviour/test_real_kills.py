"""Real processes killed at any moment, then `--resume` until the end: the result is that of a run left alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lite_align.train import files
from tests.behaviour.conftest import ENVIRONMENT, Warm

pytestmark = pytest.mark.slow
STEPS = 6
KILL = {"signal": int(signal.SIGKILL)}
MOMENTS: dict[str, dict[str, object]] = {
    "run.json is about to appear": {"operation": "rename:1"},
    "in the reference pass": {"call": "lite_align.stages.reference:compute", "nth": 2, **KILL},
    "before the first step": {"call": "lite_align.train.engine:Engine.update", "nth": 1, **KILL},
    "in the first save, one file written": {
        "call": "lite_align.train.checkpoint:_encode_tensors",
        "nth": 2,
        **KILL,
    },
    "between steps": {"call": "lite_align.train.engine:Engine.update", "nth": 3, **KILL},
    "in a save, all written but the name": {
        "call": "lite_align.train.checkpoint:_publish",
        "nth": 1,
        **KILL,
    },
    "between a save and the end of an older one": {
        "call": "lite_align.train.checkpoint:_retire",
        "nth": 1,
        **KILL,
    },
    "in epoch 2, logged but not saved": {"call": "lite_align.train.checkpoint:save", "nth": 2, **KILL},
    "answering": {"call": "lite_align.stages.answers:answers", "nth": 2, **KILL},
    "finished, without a report": {"call": "lite_align.evaluate.report:write", "nth": 1, **KILL},
}


def left(run: Path) -> tuple[str, int, bool]:
    """What a kill left: the status in run.json, the newest step that has a name, whether there is a report."""
    steps = sorted(int(path.name[5:]) for path in run.glob("checkpoints/step-*"))
    record = run / "run.json"
    status = json.loads(record.read_text())["status"] if record.exists() else "no record"
    return status, max(steps, default=0), (run / "report.html").exists()


def test_one_run_killed_at_each_moment_in_turn(every_step, warm: Warm) -> None:
    whole, killed = every_step("whole"), every_step("killed")
    whole.train()
    found = []
    for n, (moment, strike) in enumerate(MOMENTS.items()):
        code = warm.run(killed.arguments(*["--resume"] * (n > 0)), **strike)
        assert code == (files.KILLED if "operation" in strike else -signal.SIGKILL), moment
        found.append(left(killed.out))
    assert found == [
        ("no record", 0, False),
        ("running", 0, False),
        ("running", 0, False),
        ("running", 0, False),
        ("running", 2, False),
        ("running", 2, False),
        ("running", 3, False),
        ("running", 4, False),
        ("running", STEPS, False),
        ("finished", STEPS, False),
    ]
    assert warm.run(killed.arguments("--resume")) == 0
    killed.assert_equals(whole)
    leftovers = [path.name for path in killed.out.rglob(".*") if path.name != ".lock"]
    assert leftovers == []


def test_killed_by_the_clock(every_step, warm: Warm) -> None:
    whole, killed = every_step("whole"), every_step("killed")
    started = time.monotonic()
    assert warm.run(whole.arguments()) == 0
    delay = (time.monotonic() - started) / 2
    fired = 0
    for _ in range(12):
        child = warm.start(killed.arguments(*["--resume"] * killed.out.exists()))
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)  # a child that has ended is not reaped before this
        if warm.end() == -signal.SIGKILL:
            fired += 1
        else:  # it was faster than the clock: begin again, and strike earlier
            shutil.rmtree(killed.out)
            fired, delay = 0, delay / 2
        if fired == 3:
            break
    assert fired >= 2, "too few kills fired"
    assert warm.run(killed.arguments("--resume")) == 0
    killed.assert_equals(whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_with_its_code_and_a_checkpoint(every_step, warm: Warm, number: int, code: int) -> None:
    whole, stopped = every_step("whole"), every_step("stopped")
    whole.train()
    strike = {"call": "lite_align.train.engine:Engine.update", "nth": 2, "signal": int(number)}
    assert warm.run(stopped.arguments(), **strike) == code
    assert "Stopped after step 2 of 6" in warm.log.read_text()
    assert "--resume" in warm.log.read_text()
    assert "Traceback" not in warm.log.read_text()
    assert left(stopped.out) == ("interrupted", 2, False)
    assert warm.run(stopped.arguments("--resume")) == 0
    stopped.assert_equals(whole)


def test_signals_outside_the_loop(every_step, warm: Warm) -> None:
    """In the reference pass nothing is lost, so the process ends at once; a second start goes on from the cache."""
    whole, stopped = every_step("whole"), every_step("stopped")
    whole.train()
    for number, code, status in ((signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, -15, "running")):
        strike = {"call": "lite_align.stages.dpo:DPO.prove_start", "nth": 1, "signal": int(number)}
        assert warm.run(stopped.arguments(*["--resume"] * stopped.out.exists()), **strike) == code
        assert left(stopped.out) == (status, 0, False)
    assert warm.run(stopped.arguments("--resume")) == 0
    stopped.assert_equals(whole)


def test_the_fault_variable_of_a_real_command(every_step, warm: Warm, tmp_path: Path) -> None:
    """`python -m lite_align` itself, ended before the rename that gives checkpoint 3 its name."""
    whole, killed = every_step("whole"), every_step("killed")
    operations: list[files.Operation] = []
    with files.observed(operations.append):
        whole.train()
    renames = [operation.target for operation in operations if operation.kind == "rename"]
    nth = 1 + renames.index(whole.out / "checkpoints" / "step-00000003")
    environment = os.environ | ENVIRONMENT | {"LA_FAULT": f"rename:{nth}"}
    command = [sys.executable, "-m", "lite_align", *killed.arguments()]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert ended.returncode == files.KILLED, ended.stderr
    assert left(killed.out) == ("running", 2, False)
    assert list(killed.out.glob("checkpoints/.tmp-00000003-*/MANIFEST.json"))
    assert warm.run(killed.arguments("--resume")) == 0
    killed.assert_equals(whole)
