"""What `lite-align ppo` settles, plans, refuses and leaves, from a file of prompts to the report."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lite_align.data.types import Message, Prompt, Source
from lite_align.errors import RecipeError, UserError
from lite_align.model.backbone import adapter_digest
from lite_align.recipe import PPORecipe, load
from lite_align.stages import answers, training
from lite_align.stages.command import CommandOptions
from lite_align.stages.train_ppo import ROUNDS, PPOProcedure, samples_of, scores_by_rule
from tests.stages import small, small_ppo

PROCEDURE = PPOProcedure()


def resolved(**ppo: Any):
    flags = {f"ppo.{name}": value for name, value in ppo.items()}
    return load("ppo", data="prompts.jsonl", flags=flags)


def given(ppo: dict[str, Any] | None = None, **train: Any) -> PPORecipe:
    return small_ppo.recipe({"rules": {"repetition": 1.0}, **(ppo or {})}, **train)


# Before anything is read.


def test_there_must_be_a_reward():
    for source in (
        {"reward": "runs/a"},
        {"reward_fn": f"{__file__}:samples_of"},
        {"rules": {"repetition": 1}},
    ):
        if "reward_fn" not in source:
            PROCEDURE.check(small_ppo.recipe(source))
    with pytest.raises(RecipeError, match="ppo has no reward") as told:
        PROCEDURE.check(small_ppo.recipe())
    assert "--reward-fn" in told.value.remedy


def test_a_value_head_cannot_read_a_reward_model_that_is_not_there():
    with pytest.raises(RecipeError, match="ppo.value is reward"):
        PROCEDURE.check(given({"value": "reward"}))
    PROCEDURE.check(given({"value": "reward", "reward": "runs/a"}))


@pytest.mark.parametrize(
    ("ppo", "train", "remedy"),
    [
        ({"samples": 4, "rollouts": 18}, {}, "Set ppo.rollouts=16."),
        ({"samples": 4}, {"batch_size": 6}, "Set train.batch_size=8."),
        ({"samples": 4}, {"batch_size": 1}, "Set train.batch_size=4."),
        ({"samples": "auto", "advantage": "grpo"}, {"batch_size": 2}, "Set train.batch_size=4."),
    ],
)
def test_rounds_and_minibatches_hold_whole_prompts(ppo, train, remedy: str):
    with pytest.raises(RecipeError, match="stay together") as told:
        PROCEDURE.check(given(ppo, **train))
    assert told.value.remedy == remedy


@pytest.mark.parametrize(
    "ppo", [{"rules": {"no_such_rule": 1.0}}, {"rules": {}, "reward_fn": "missing.py:f"}]
)
def test_rewards_that_cannot_be_used(ppo):
    with pytest.raises(RecipeError):
        PROCEDURE.check(given(ppo))


def test_the_function_is_bound_by_its_contents_and_the_model_by_its_weights(tiny_llama: Path, tmp_path: Path):
    file = tmp_path / "own.py"
    file.write_text("def f(answer): return 1.0\n")
    reward = small_ppo.reward_run(tmp_path / "reward", tiny_llama)
    recipe = small_ppo.recipe({"reward_fn": f"{file}:f", "reward": str(reward)})
    first = PROCEDURE.inputs(recipe, None)
    assert first["reward"] == adapter_digest(reward / "adapters" / "reward")
    file.write_text("def f(answer): return 2.0\n")
    second = PROCEDURE.inputs(recipe, None)
    assert first["reward_fn"] != second["reward_fn"]
    assert PROCEDURE.inputs(given(), None) == {}


# Settings.


def test_what_depends_on_the_advantages_is_settled():
    examples = [(Prompt(Source("p", n), messages=()), None) for n in range(32)]

    def settled(**ppo: Any):
        return PROCEDURE.settle(resolved(**ppo), examples).recipe  # pyright: ignore[reportArgumentType]

    gae, rloo = settled(rollouts=64), settled(rollouts=64, advantage="rloo")
    assert (gae.ppo.samples, rloo.ppo.samples) == (1, 4)
    assert gae.ppo.kl_horizon == 25 * 64
    assert (gae.ppo.value, settled(reward="runs/a").ppo.value) == ("policy", "reward")
    assert settled(value="policy", reward="runs/a").ppo.value == "policy"
    assert gae.train.epochs == ROUNDS * 64 / 32
    assert rloo.train.epochs == ROUNDS * 64 / 4 / 32
    assert samples_of(gae.ppo) == 1
    assert PROCEDURE.count(rloo, 32) == 128


@pytest.mark.parametrize(
    ("ppo", "train", "steps"),
    [
        # 16 answers in minibatches of 8, two passes: 4 steps a round; 4 prompts a round.
        ({}, {"epochs": 2.0}, 4 * (2 * 20 // 4)),
        ({}, {"epochs": 0.01}, 4),
        ({"passes": 3}, {"epochs": 1.0}, 6 * 5),
        ({}, {"max_steps": 11}, 8),  # whole rounds
        ({}, {"max_steps": 3}, 4),
        ({}, {"batch_size": 12, "epochs": 1.0}, 4 * 5),  # the second minibatch is smaller
    ],
)
def test_steps_are_those_of_whole_rounds(ppo, train, steps: int):
    assert PROCEDURE.steps(given(ppo, **train), 20) == steps


def test_the_plan_counts_answers_of_the_greatest_length(tokenizer):
    from lite_align.data import forest
    from lite_align.data.types import Rendered

    trees = [forest.single(n, Rendered((1, 2, 3), (False, False, True))) for n in range(2)]
    examples = [(Prompt(Source("p", n), messages=()), tree) for n, tree in enumerate(trees)]
    found = PROCEDURE.trees(given(), examples)
    assert [tree.tokens for tree in found] == [2 + 4 * 12] * 2
    apart = given().model_copy(update={"speed": given().speed.model_copy(update={"share_prompts": False})})
    assert [tree.tokens for tree in PROCEDURE.trees(apart, examples)] == [4 * (2 + 12)] * 2


def test_the_rule_scores_tiny_and_what_is_asked_for():
    def wish(name: str, value: str) -> bool:
        recipe = given({"rule_score": value})
        return scores_by_rule(
            recipe.model_copy(update={"model": recipe.model.model_copy(update={"name": name})})
        )

    assert [wish("tiny", value) for value in ("auto", "on", "off")] == [True, True, False]
    assert [wish("other", value) for value in ("auto", "on", "off")] == [False, True, False]


# The whole run.

SETTINGS = {
    "model.quantization": "none",
    "model.dtype": "float32",
    "data.held_out": 0.3,
    "data.max_length": 256,
    "lora.rank": 4,
    "ppo.rollouts": 8,
    "ppo.max_new_tokens": 10,
    "ppo.passes": 1,
    "train.batch_size": 4,
    "train.max_steps": 6,
    "train.learning_rate": 1e-2,
    "train.log_steps": 2,
    "train.eval_steps": 2,
    "train.save_steps": 2,
}


@pytest.fixture(scope="module")
def base(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_ppo.talkative(tiny_llama, tmp_path_factory.mktemp("talkative") / "model")


@pytest.fixture(scope="module")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three rounds with a reward model and a rule, six of twenty prompts held out."""
    folder = tmp_path_factory.mktemp("ppo")
    pairs = {"path": str(small.write(folder / "pairs.jsonl", small.rows(12))), "held_out": 0.5}
    reward = small_ppo.reward_run(folder / "reward", base, data=pairs)
    data = small.write(folder / "prompts.jsonl", prompts(20))
    flags = {"model.name": str(base), "ppo.reward": str(reward), **SETTINGS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "PROBE_TOKENS", 8)
        made = load("ppo", data=str(data), flags=flags, sets=["ppo.rules={repetition: 0.5}"])
        run = training.train(made, CommandOptions(folder / "run"), small.silent())
    assert run is not None
    return run


def prompts(count: int) -> list[dict[str, str]]:
    rows = small.rows(count)
    return [{"prompt": row["prompt"], "category": row["category"]} for row in rows]


def lines(run: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def record(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


def test_a_run_leaves_its_figures(finished: Path):
    told = record(finished)
    assert told["status"] == "finished"
    assert told["plan"] == {"total_steps": 6, "prompts": 14}
    assert told["ppo"]["rounds"] == 3
    assert told["reference"]["proof"] == {"kl": pytest.approx(0.0, abs=1e-4)}
    assert {"data", "base", "reward", "tokens", "template"} <= told["hashes"].keys()
    assert (finished / "adapters" / "reward" / "head.safetensors").is_file()
    assert (finished / "report.html").is_file()
    rows = lines(finished, "metrics.jsonl")
    assert [row["step"] for row in rows if "eval/reward" in row] == [0, 2, 4, 6]
    trained = [row for row in rows if "loss" in row]
    assert [row["step"] for row in trained] == [2, 4, 6]
    expected = {
        *(f"objective/{n}" for n in ("reward", "kl", "kl_k3", "entropy", "length", "stop_rate", "beta")),
        *(f"reward/{n}" for n in ("model", "rule/repetition", "errors")),
        *(
            f"policy/{n}"
            for n in ("loss", "clip_fraction", "approx_kl", "ratio_error", "sampler_gap", "skipped")
        ),
        *(f"value/{n}" for n in ("loss", "clip_fraction", "explained_variance")),
        *(f"text/{n}" for n in ("distinct_2", "repeated_3grams")),
        *(f"speed/{n}_tokens_per_second" for n in ("generated", "learned")),
        *("grad_norm", "learning_rate", "epoch", "moved"),
    }
    assert [expected - row.keys() for row in trained] == [set()] * 3
    assert trained[0]["objective/kl"] == pytest.approx(0.0, abs=1e-4)
    assert all(row["policy/ratio_error"] < 1e-4 for row in trained)


def test_held_out_prompts_before_and_after(finished: Path):
    rows = lines(finished, "held_out.jsonl")
    assert len(rows) == 6
    for row in rows:
        assert row.keys() == {"source", "category", "before", "after"}
        assert row["before"].keys() == row["after"].keys() == {"reward", "kl", "tokens", "stopped"}
        assert row["before"]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert any(row["after"]["kl"] != 0 for row in rows)
    samples = lines(finished, "samples.jsonl")
    assert sorted({row["step"] for row in samples}) == [0, 2, 4, 6]
    assert len(samples) == 4 * 6
    assert lines(finished, "answers.jsonl")
    preference = record(finished)["ppo"]["preference"]
    assert preference["pairs"] == 6


def test_a_dry_run_says_what_is_optimised(base: Path, tmp_path: Path):
    import io

    from lite_align.view import View

    data = small.write(tmp_path / "prompts.jsonl", prompts(20))
    flags = {"model.name": str(base), **SETTINGS}
    made = load("ppo", data=str(data), flags=flags, sets=["ppo.rules={repetition: 0.5}", "ppo.target_kl=3"])
    out = io.StringIO()
    view = View(file=out, errors=out)
    assert training.train(made, CommandOptions(tmp_path / "run", dry_run=True), view) is None
    assert not (tmp_path / "run").exists()
    said = " ".join(out.getvalue().split())
    assert "reward: repetition · gae, 1 to a prompt, 8 a round, 1 passes · KL 0.05 towards 3 nats" in said


def test_a_rule_score_that_was_asked_for_needs_prompts_of_the_world(base: Path, tmp_path: Path):
    data = small.write(tmp_path / "prompts.jsonl", prompts(10))
    flags = {"model.name": str(base), "ppo.rule_score": "on", **SETTINGS}
    made = load("ppo", data=str(data), flags=flags, sets=["ppo.rules={repetition: 0.5}"])
    with pytest.raises(UserError, match="not from the built-in world"):
        training.train(made, CommandOptions(tmp_path / "run"), small.silent())


def test_the_next_command_talks_to_it():
    assert PROCEDURE.next(Path("runs/a")) == "lite-align chat runs/a"
    kind = PROCEDURE.kind(given())
    assert replace(kind, noun="").prompt(Prompt(Source("p", 1), messages=(Message("user", "a"),))) == (
        Message("user", "a"),
    )
