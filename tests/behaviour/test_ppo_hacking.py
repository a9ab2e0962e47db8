"""A reward that pays for length, on the built-in model: without guards it is hacked, and the report shows it; with
guards the run is stopped and rolled back."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.behaviour.conftest import Job

pytestmark = pytest.mark.slow
PROMPTS = Path(__file__).resolve().parents[2] / "data_samples" / "prompts.jsonl"
STEPS_A_ROUND, ROUNDS = 4, 5
SETTINGS = {
    "data.held_out": 0.04,  # of 300 prompts
    "ppo.advantage": "rloo",
    "ppo.samples": 4,
    "ppo.rollouts": 32,
    "ppo.max_new_tokens": 56,
    "ppo.missing_stop": 5.0,  # not even ending is needed
    "ppo.kl": 0.0,
    "ppo.target_kl": None,
    "ppo.update_kl": None,
    "train.batch_size": 16,
    "train.tokens_per_microbatch": 2048,
    "train.learning_rate": 5e-3,
    "train.warmup": 0.0,
    "train.schedule": "constant",
    "train.max_steps": STEPS_A_ROUND * ROUNDS,
    "train.save_steps": STEPS_A_ROUND,
    "train.log_steps": STEPS_A_ROUND,
}


@pytest.fixture
def hackable(job, tmp_path: Path) -> Callable[..., Job]:
    """Make a job whose reward is the number of words."""
    (tmp_path / "own.py").write_text("def words(answer):\n    return len(answer.split()) / 10\n")

    def make(name: str, **changes: object) -> Job:
        base = job().recipe | {"ppo.reward_fn": f"{tmp_path / 'own.py'}:words"}
        recipe = {key: value for key, value in (base | SETTINGS).items() if key != "lora.rank"}
        return Job(PROMPTS, Path("tiny"), tmp_path / name, recipe, stage="ppo").changed(**changes)

    return make


def lengths(run: Job) -> list[float]:
    return [row["eval/length"] for row in run.metrics() if "eval/length" in row]


def test_without_guards_it_is_hacked_and_the_report_shows_it(hackable):
    run = hackable("off", guards__enabled=False, train__eval_steps=STEPS_A_ROUND * ROUNDS)
    run.train()
    before, after = lengths(run)
    assert after > 1.5 * before
    record = run.record()
    assert record["ppo"]["guards"] == []
    verdict = record["verdict"]
    assert verdict["word"] == "worse"
    said = " ".join(verdict["sentences"] + verdict["warnings"])
    assert "Guards were off" in said
    assert "% longer" in said
    page = (run.out / "report.html").read_text()
    assert "length is the commonest hack" in page
    assert "Guards were off" in page


def test_with_guards_it_is_stopped_and_rolled_back(hackable):
    run = hackable("on", guards__patience=1, train__eval_steps=STEPS_A_ROUND)
    run.train()
    record = run.record()
    told = record["ppo"]
    assert told["rounds"] < ROUNDS
    assert told["rolled_back_to"] is not None
    stopped_by = [one["guard"] for one in told["guards"] if one["action"] == "roll_back"]
    assert stopped_by
    assert told["ended"]
    rows = [row for row in run.metrics() if "eval/rule_score" in row]
    good = next(row for row in rows if row["step"] == told["rolled_back_to"])
    assert good["eval/rule_score"] > rows[-1]["eval/rule_score"]
    assert record["verdict"]["word"] != "better"
    page = (run.out / "report.html").read_text()
    assert stopped_by[0] in page
