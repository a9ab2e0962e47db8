"""Resuming a PPO run with something changed: refused, asked for or free, as the schema says; contents by their hash."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lite_align.errors import DriftError
from lite_align.recipe import drift_classes, flatten
from lite_align.stages import training
from tests.behaviour.conftest import Job

CLASSES = {
    key: kind for key, kind in drift_classes("ppo").items() if key.partition(".")[0] in ("ppo", "guards")
}
CHANGES: dict[str, object] = {
    "ppo.reward": "OTHER",  # another reward run
    "ppo.reward_weight": 0.5,
    "ppo.reward_clip": 3.0,
    "ppo.reward_fn": "COPY",  # the same function in another file
    "ppo.reward_fn_weight": 0.5,
    "ppo.reward_fn_timeout": 20.0,
    "ppo.rules": {"repetition": 1.0},
    "ppo.force": True,
    "ppo.advantage": "rloo",
    "ppo.rollouts": 4,
    "ppo.samples": 2,
    "ppo.max_new_tokens": 9,
    "ppo.temperature": 0.9,
    "ppo.top_p": 0.9,
    "ppo.top_k": 5,
    "ppo.missing_stop": -2.0,
    "ppo.passes": 1,
    "ppo.clip": 0.1,
    "ppo.gae_lambda": 0.9,
    "ppo.update_kl": 0.1,
    "ppo.kl": 0.1,
    "ppo.target_kl": 3.0,
    "ppo.kl_horizon": 77,
    "ppo.kl_in": "loss",
    "ppo.value": "policy",
    "ppo.value_weight": 0.2,
    "ppo.value_learning_rate": 1e-3,
    "ppo.pairs": "PAIRS",
    "ppo.rule_score": "off",
    "guards.enabled": False,
    "guards.patience": 3,
    "guards.hacking": "stop",
    "guards.length": "warn",
    "guards.length_warning": 1.2,
    "guards.length_limit": 2.0,
    "guards.kl": "stop",
    "guards.kl_limit": 3.0,
    "guards.category": "warn",
    "guards.category_limit": 0.2,
    "guards.refusal": "warn",
    "guards.refusal_limit": 0.2,
    "guards.over_refusal_limit": 0.2,
    "guards.entropy": "stop",
    "guards.entropy_limit": 0.4,
    "guards.repetition": "warn",
    "guards.distinct_limit": 0.5,
    "guards.repeat_limit": 3.0,
    "guards.stop_rate": "stop",
    "guards.stop_limit": 0.9,
    "guards.value": "warn",
}


class Reached(Exception):
    """The run was taken up: everything before the model is loaded went through."""


@pytest.fixture
def started(ppo_job, letters: str, reward_run: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A run that ended before its model was loaded, with all three kinds of reward."""

    def load_backbone(*_: object) -> None:
        raise Reached

    monkeypatch.setattr(training, "load_backbone", load_backbone)
    rewards = {"ppo.reward": str(reward_run), "ppo.reward_fn": letters, "ppo.rules": {"repetition": 0.5}}
    run = ppo_job().changed(**rewards)
    with pytest.raises(Reached):
        run.train()
    return run


def changed(run: Job, key: str, reward_run: Path) -> Job:
    value, folder = CHANGES[key], run.out.parent
    if value == "OTHER":
        value = str(shutil.copytree(reward_run, folder / "other"))
    elif value == "COPY":
        value = f"{shutil.copy(folder / 'own.py', folder / 'copy.py')}:letters"
    elif value == "PAIRS":
        value = str(shutil.copy(reward_run.parent / "pairs.jsonl", folder / "held_out_pairs.jsonl"))
    return run.changed(**{key: value})


def test_the_table_has_every_key_of_both_blocks() -> None:
    assert CHANGES.keys() == CLASSES.keys()


def keys_of(kind: str) -> list[str]:
    return [key for key, found in CLASSES.items() if found == kind]


def all_changed(run: Job, keys: list[str], reward_run: Path) -> Job:
    for key in keys:
        run = changed(run, key, reward_run)
    return run


def test_what_makes_another_run_is_refused_whatever_is_accepted(started: Job, reward_run: Path) -> None:
    keys = keys_of("refuse")
    other = all_changed(started, keys, reward_run)
    for accept in ((), tuple(keys)):
        with pytest.raises(DriftError) as told:
            other.train(resume=True, accept=accept)
        assert told.value.exit_code == 2
        found = {line.partition(": ")[0] for line in told.value.details if "cannot change" in line}
        assert {key for key in found if not key.startswith("--accept-drift")} == set(keys)
    with pytest.raises(Reached):
        started.train(resume=True)


def test_guards_are_asked_for(started: Job, reward_run: Path) -> None:
    keys = keys_of("ask")
    assert {"guards.enabled", "guards.length_limit", "ppo.value_learning_rate"} <= set(keys)
    before = flatten(started.record()["recipe"])
    run = all_changed(started, keys, reward_run)
    with pytest.raises(DriftError) as told:
        run.train(resume=True, accept=tuple(keys[1:]))
    expected = f"{keys[0]}: {json.dumps(before[keys[0]])} → {json.dumps(CHANGES[keys[0]])} (not accepted)"
    assert expected in told.value.details
    with pytest.raises(Reached):
        run.train(resume=True, accept=tuple(keys))
    after = flatten(run.record()["recipe"])
    assert {key: after[key] for key in keys} == {key: CHANGES[key] for key in keys}


def test_what_changes_no_number_is_free(started: Job, reward_run: Path) -> None:
    assert keys_of("free") == ["ppo.reward_fn_timeout", "ppo.force"]
    for key in keys_of("free"):
        with pytest.raises(Reached):
            changed(started, key, reward_run).train(resume=True)


def refused(run: Job) -> list[str]:
    with pytest.raises(DriftError) as told:
        run.train(resume=True)
    assert run.record()["status"] == "interrupted"
    return [line.partition(": ")[0] for line in told.value.details]


def test_contents_are_bound_by_their_hash(
    ppo_job, letters: str, reward_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file of the reward function, the prompts, and the weights of the reward model before they are copied."""

    def build(*_: object) -> None:
        raise Reached

    monkeypatch.setattr(training, "build", build)  # the hashes are in the record by then
    reward = shutil.copytree(reward_run, tmp_path / "reward")
    run = ppo_job().changed(**{"ppo.reward": str(reward), "ppo.reward_fn": letters})
    with pytest.raises(Reached):
        run.train()
    for file, old, new, expected in (
        (tmp_path / "own.py", "/ 40", "/ 41", ["hash.reward_fn"]),
        (run.data, "the", "a", ["hash.data", "hash.tokens"]),
    ):
        text = file.read_text()
        file.write_text(text.replace(old, new, 1))
        assert refused(run) == expected
        file.write_text(text)
    head = reward / "adapters" / "reward" / "head.safetensors"
    before, tensors = head.read_bytes(), load_file(head)
    save_file({name: value * 1.5 for name, value in tensors.items()}, head)
    assert refused(run) == ["hash.reward"]
    head.write_bytes(before)
    with pytest.raises(Reached):
        run.train(resume=True)
