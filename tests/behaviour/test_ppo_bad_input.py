"""PPO and input that is wrong: told before anything is written, or counted and shown while the run goes on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lite_align.errors import DataError, LiteAlignError, RecipeError, TrainingStopped, UserError
from lite_align.stages.reward_function import RewardFunction
from tests.behaviour.conftest import Job
from tests.stages import small, small_ppo

Make = Callable[..., Job]


def refused(job: Job) -> LiteAlignError:
    """The error of a run that ends with exit code 2 and leaves no folder."""
    with pytest.raises(UserError) as told:
        job.train()
    assert told.value.exit_code == 2
    assert not job.out.exists()
    return told.value


# Prompts.


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], ""),
        ([{"answer": "there is no prompt"}], ""),
        ([{"prompt": ""}, {"prompt": "  "}], ""),
        ([{"prompt": "the same"}] * 3, ""),
    ],
)
def test_a_file_without_prompts(ppo_job: Make, letters: str, rows, words: str):
    job = ppo_job(ppo__reward_fn=letters)
    small.write(job.data, rows)
    assert isinstance(refused(job), DataError | RecipeError)


def test_prompts_that_are_all_too_long(ppo_job: Make, letters: str):
    job = ppo_job(ppo__reward_fn=letters)
    small.write(job.data, [{"prompt": f"{'hello world ' * 200} {n}?"} for n in range(6)])
    error = refused(job)
    assert "LA208" in str(error)


def test_some_prompts_that_are_too_long_are_counted(
    ppo_job: Make, letters: str, monkeypatch: pytest.MonkeyPatch
):
    """And no process of a reward function is left behind."""
    sources: list[RewardFunction] = []
    plain = RewardFunction.__call__

    def called(self: RewardFunction, episodes: Any) -> Any:
        sources.append(self)
        return plain(self, episodes)

    monkeypatch.setattr(RewardFunction, "__call__", called)
    job = ppo_job(ppo__reward_fn=letters, data__max_dropped=0.2, train__max_steps=4)
    lines = job.data.read_text().splitlines()
    small.write(job.data, [*lines, {"prompt": "hello world " * 200}])
    job.train()
    data = job.record()["data"]
    assert (data["rows"], data["kept"]) == (21, 20)
    assert data["dropped"] == {"LA208": 1}
    assert sources
    assert all(source.function.child is None for source in sources)


def test_an_answer_longer_than_the_context(ppo_job: Make, letters: str):
    assert "ppo.max_new_tokens" in str(refused(ppo_job(ppo__reward_fn=letters, ppo__max_new_tokens=300)))


# Reward runs.


def test_reward_runs_that_cannot_be_used(ppo_job: Make, tmp_path: Path, talkative: Path, tiny_llama: Path):
    missing = refused(ppo_job(ppo__reward=str(tmp_path / "nothing")))
    assert "is not a run folder" in missing.what
    unfinished = small_ppo.reward_run(tmp_path / "unfinished", talkative, status="interrupted")
    assert "is not finished" in refused(ppo_job(ppo__reward=str(unfinished))).what
    other = small_ppo.reward_run(tmp_path / "other", tiny_llama)
    assert "was trained on another base" in refused(ppo_job(ppo__reward=str(other))).what
    stored = small_ppo.reward_run(tmp_path / "stored", talkative, model={"quantization": "nf4"})
    assert "was trained on another base" in refused(ppo_job(ppo__reward=str(stored))).what
    weak = small_ppo.reward_run(tmp_path / "weak", talkative, held_out=[(0.0, 1.0, 5, 9)])
    assert "--force" in refused(ppo_job(ppo__reward=str(weak))).remedy


# Reward functions.


def function(folder: Path, body: str) -> str:
    (folder / "own.py").write_text(f"import time\n\ndef f(answer, tokens):\n    {body}\n")
    return f"{folder / 'own.py'}:f"


@pytest.mark.parametrize("fails", ["1 / 0", "float('nan')", "time.sleep(60)"])
def test_a_function_that_fails_for_some_answers(ppo_job: Make, tmp_path: Path, fails: str):
    """They take no part; the others do, and the rounds say how many there were."""
    reward = function(tmp_path, f"return {fails} if sum(map(ord, answer)) % 5 == 0 else len(answer) / 9")
    job = ppo_job(ppo__reward_fn=reward, ppo__reward_fn_timeout=0.2, train__max_steps=8)
    job.train()
    errors = [row["reward/errors"] for row in job.metrics() if "loss" in row]
    assert 0 < max(errors) <= 4, errors
    assert job.record()["status"] == "finished"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("raise KeyError('solution')", "raised"),
        ("return float('nan')", ""),
        ("time.sleep(60)", "took over 0.2 s"),
    ],
)
def test_a_function_that_fails_for_most_answers_stops_the_run(ppo_job: Make, tmp_path: Path, body: str, kind):
    """At once, with the counts; the folder stays whole, and the run can go on."""
    job = ppo_job(ppo__reward_fn=function(tmp_path, body), ppo__reward_fn_timeout=0.2, train__max_steps=4)
    with pytest.raises(TrainingStopped, match="answers have no reward") as told:
        job.train()
    assert any(kind in line for line in told.value.details), told.value.details
    record = job.record()
    assert record["status"] == "failed"
    assert "no reward" in json.dumps(record["error"])


def test_a_function_that_fails_later_leaves_the_last_checkpoint(ppo_job: Make, tmp_path: Path):
    """It depends on something outside that fails; with that in order again, the run goes on to its end."""
    flag = tmp_path / "broken"
    reward = function(
        tmp_path, f"assert not __import__('os').path.exists({str(flag)!r}); return len(answer) / 9"
    )
    job, plain = (ppo_job(name, ppo__reward_fn=reward, train__max_steps=8) for name in ("job", "plain"))
    plain.train()

    from lite_align.stages.ppo import PPO

    begin = PPO.begin_round

    def broken(self: PPO, number: int) -> None:
        if number == 1:
            flag.touch()
        begin(self, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PPO, "begin_round", broken)
        with pytest.raises(TrainingStopped, match="answers have no reward") as told:
            job.train()
    assert "--resume" in told.value.remedy
    assert [path.name for path in (job.out / "checkpoints").glob("step-*")] == ["step-00000004"]
    flag.unlink()
    job.train(resume=True)
    job.assert_equals(plain)
