"""A PPO run stopped anywhere and resumed ends as if it had never stopped: policy, value head, figures, samples."""

import json
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.behaviour.conftest import Job, Warm

pytestmark = pytest.mark.slow
KILL = {"signal": int(signal.SIGKILL)}
MOMENTS: dict[str, dict[str, object]] = {
    "while the start is measured": {"call": "lite_align.stages.rollouts:Collector.sample", "nth": 1},
    "sampling the first round": {"call": "lite_align.stages.rollouts:Collector.sample", "nth": 2},
    "learning of the first round": {"call": "lite_align.train.engine:Engine.update", "nth": 3},
    "in the first save": {"call": "lite_align.train.checkpoint:_publish", "nth": 1},
    "scoring the second round": {"call": "lite_align.stages.rollouts:Collector.score", "nth": 4},
    "in the middle of the third round": {"call": "lite_align.train.engine:Engine.update", "nth": 6},
    "logged, not saved": {"call": "lite_align.train.checkpoint:save", "nth": 1},
    "measuring the end": {"call": "lite_align.stages.answers:before_and_after", "nth": 1},
}


@pytest.fixture
def gae(ppo_job, reward_run: Path):
    """GAE with a reward model, a rule and a probe that reads the reward model's states."""
    return lambda name: ppo_job(name, ppo__reward=str(reward_run), ppo__rules="{repetition: 0.5}")


@pytest.fixture
def rloo(ppo_job, letters: str):
    """RLOO with a reward function, which is another process."""
    return lambda name: ppo_job(
        name, ppo__reward_fn=letters, ppo__advantage="rloo", ppo__samples=2, ppo__rollouts=8
    )


def newest(job: Job) -> int:
    return max((int(path.name[5:]) for path in job.out.glob("checkpoints/step-*")), default=0)


def killed_in_turn(job: Job, warm: Warm, moments: Sequence[str]) -> list[int]:
    """Kill and resume at each moment; the newest checkpoint that each kill left."""
    found = []
    for moment in moments:
        again = ["--resume"] * job.out.exists()
        assert warm.run(job.arguments(*again), **MOMENTS[moment], **KILL) == -signal.SIGKILL, moment
        found.append(newest(job))
    return found


def said(warm: Warm) -> str:
    return " ".join(warm.log.read_text().split())


def test_gae_with_a_reward_model_killed_at_each_moment(gae, reward_run: Path, warm: Warm, tmp_path: Path):
    """At the end also without the reward run: its copy is in the run's own folder, bound by its hash."""
    copy = shutil.copytree(reward_run, tmp_path / "reward")
    whole, killed = (gae(name).changed(ppo__reward=str(copy)) for name in ("whole", "killed"))
    assert warm.run(whole.arguments()) == 0
    names = whole.tensors()
    assert any("value weight" in name for name in names)
    assert any("reward score.weight" in name for name in names)
    assert whole.record()["ppo"]["preference"]["pairs"] == 5
    *early, last = MOMENTS
    assert killed_in_turn(killed, warm, early) == [0, 0, 0, 0, 4, 8, 8]
    shutil.rmtree(copy)
    head = killed.out / "adapters" / "reward" / "head.safetensors"
    before = head.read_bytes()
    head.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert warm.run(killed.arguments("--resume")) != 0
    assert "is not the reward model that this run started with" in said(warm)
    head.write_bytes(before)
    assert killed_in_turn(killed, warm, [last]) == [12]
    assert warm.run(killed.arguments("--resume")) == 0
    killed.assert_equals(whole)


def test_rloo_with_a_function_killed_and_interrupted(rloo, warm: Warm):
    whole, stopped = rloo("whole"), rloo("stopped")
    assert warm.run(whole.arguments()) == 0
    assert killed_in_turn(stopped, warm, ["learning of the first round"]) == [0]
    strike = {"call": "lite_align.train.engine:Engine.update", "nth": 6, "signal": int(signal.SIGINT)}
    assert warm.run(stopped.arguments("--resume"), **strike) == 130
    assert "Stopped after step 8 of 12" in said(warm), "at the end of the round"
    assert stopped.record()["status"] == "interrupted"
    assert warm.run(stopped.arguments("--resume")) == 0
    stopped.assert_equals(whole)


def test_a_run_that_a_guard_ended_stays_ended(ppo_job, letters: str, warm: Warm):
    """Killed after the checkpoint of the roll-back: what is left is measuring."""
    settings = {"guards__length": "roll_back", "guards__length_limit": 0.5, "ppo__reward_fn": letters}
    whole, killed = (ppo_job(name, **settings) for name in ("whole", "killed"))
    assert warm.run(whole.arguments()) == 0
    told = whole.record()["ppo"]
    assert (told["rolled_back_to"], told["rounds"]) == (0, 1)
    assert [one["guard"] for one in told["guards"]][:1] == ["length"]
    assert killed_in_turn(killed, warm, ["measuring the end"]) == [4]
    assert warm.run(killed.arguments("--resume")) == 0
    killed.assert_equals(whole)
    rows = [json.loads(line) for line in (whole.out / "held_out.jsonl").read_text().splitlines()]
    assert all(row["before"] == row["after"] for row in rows), "it is the start again"
