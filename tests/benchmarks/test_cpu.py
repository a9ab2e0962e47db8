"""CPU benchmarks: from result files to the README, what is counted, the opponent's flags, and one small run."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import (
    cases,
    dpo,
    figure,
    lite_reward,
    lite_sft,
    opponent,
    opponent_ppo,
    opponent_reward,
    opponent_sft,
    ppo,
    record,
    reward,
    scaling,
    sft,
    shortcuts,
    sides,
    step_memory,
    tables,
    workload,
)
from benchmarks.sides import LITE, Step, Work, compare, summary, timing
from lite_align.recipe.schema import SpeedOptions

TRL = "TRL, bf16 base, bf16 autocast"
SLOW_TRL = "TRL, fp32 base, bf16 autocast"
Measure = Callable[..., dict[str, Any]]
MACHINE = {"cpu": "A processor, 2 cores", "memory": "8 GiB", "versions": "torch 9", "commit": "abc1234"}


def run(seconds: float, memory: float) -> dict[str, float]:
    """Figures of one run of a side."""
    counted = {"tokens_per_example": 200.0, "products_per_microbatch": 108.0, "saved_bytes_per_token": 8000.0}
    return {
        "seconds_per_example": seconds,
        "memory": memory,
        "prompt_share": 0.5,
        "parameters": 1e6,
        **counted,
    }


def case(ours: float, theirs: float, slow: float = 9.0, **more: Any) -> dict[str, Any]:
    """A case as the benchmark writes it, with CPU seconds a pair of both sides and 1 to 2 GiB."""
    sides = summary({LITE: [run(ours, 2**30)], SLOW_TRL: [run(slow, 1)], TRL: [run(theirs, 2**31)]})
    return {
        "machine": MACHINE,
        "threads": 2,
        "examples": 8,
        "repeats": 1,
        "epochs": {"1": {"sides": sides}},
        **more,
    }


# From runs to ratios.


def test_the_first_step_counts_at_the_speed_of_the_others():
    """Two warm steps take 6 s for 300 tokens; 400 tokens take 8 s: 0.5 s for each of 16 trained pairs."""
    steps = [Step(100.0, 100), Step(2.0, 100), Step(4.0, 200)]
    found = timing(4.0, steps, Work("model", "rows", examples=8, epochs=2))
    assert found["step_seconds_per_example"] == 0.5
    assert found["tokens_per_example"] == 25.0
    # The reference pass of 4 s is shared by 8 pairs and 2 epochs.
    assert found["reference_seconds_per_example"] == 0.5
    assert found["seconds_per_example"] == 0.75


def test_a_summary_has_the_median_and_the_range():
    runs = [{"memory": value} for value in (5.0, 1.0, 3.0)]
    assert summary({"a": runs}) == {"a": {"memory": {"median": 3.0, "low": 1.0, "high": 5.0}}}


def test_the_fastest_variant_is_the_opponent_with_its_own_memory():
    sides = case(ours=0.25, theirs=0.5)["epochs"]["1"]["sides"]
    assert compare(sides, LITE, [SLOW_TRL, TRL]) == (TRL, 2.0, 0.5)


@pytest.mark.parametrize(
    ("value", "wanted", "least", "expected"),
    [
        (2.5, 2.5, True, "at least 2.5 wanted: reached"),
        (2.3, 2.5, True, "2.5 wanted: missed by 0.20"),
        (0.6, 0.6, False, "at most 0.6 wanted: reached"),
        (0.75, 0.6, False, "0.6 wanted: missed by 0.15"),
    ],
)
def test_a_goal_is_reached_or_missed_by_so_much(value: float, wanted: float, least: bool, expected: str):
    assert cases.verdict(value, wanted, least=least) == expected


# From files to the README.


def test_no_file_is_not_yet_measured(tmp_path: Path):
    text = tables.section(tmp_path)
    assert "| 15M, nf4 | 3 |" + 4 * " not yet measured |" in text
    assert "prompt share, length, vocabulary, model size: not yet measured." in text
    assert "| GPU: not yet measured | GPU: not yet measured |" in text
    assert "Measured on" not in text


def test_a_file_of_another_layout_is_not_read(tmp_path: Path):
    (tmp_path / dpo.RESULT.name).write_text('{"machine": {}, "results": [{"precision": "bf16"}]}')
    assert tables.section(tmp_path) == tables.section(tmp_path / "nothing")


def test_a_measured_case_stands_beside_its_goal(tmp_path: Path):
    record.add(tmp_path / dpo.RESULT.name, "15m/bf16", case(ours=0.25, theirs=0.5))
    text = tables.section(tmp_path)
    assert (
        "| 15M, bf16 | 1 | 0.500 (0.500–0.500) | 0.250 (0.250–0.250) | **2.00x** (goal: at least 2.5) "
        "| **0.50x** (goal: at most 0.6) |" in text
    )
    assert "| 15M, bf16 | 3 |" + 4 * " not yet measured |" in text
    assert "108 matrix products a micro-batch; 8 kB a token saved" in text
    assert "Measured on A processor, 2 cores, 8 GiB, 2 threads; torch 9; commit abc1234." in text


def test_a_case_that_is_measured_again_replaces_itself_alone(tmp_path: Path):
    file = tmp_path / dpo.RESULT.name
    record.add(file, "15m/bf16", case(0.25, 0.5))
    record.add(file, "15m/nf4", case(0.25, 0.5))
    before = record.load(file)
    again = case(0.2, 0.5, machine=MACHINE | {"commit": "def5678"})
    record.add(file, "15m/nf4", again)
    assert record.load(file) == before | {"15m/nf4": again}
    text = tables.section(tmp_path)
    assert "commit abc1234 (15m/bf16)." in text
    assert "commit def5678 (15m/nf4)." in text


def test_a_shortcut_is_told_by_its_ratios(tmp_path: Path):
    sides = summary({shortcuts.ALL: [run(0.2, 300)], "speed.fused_lora": [run(0.3, 400)]})
    measured = {"machine": MACHINE, "threads": 2, "precision": "bf16", "sides": sides}
    record.add(tmp_path / shortcuts.RESULT.name, "speed.fused_lora", measured)
    (row,) = [line for line in tables.section(tmp_path).splitlines() if "`speed.fused_lora`" in line]
    assert row.endswith("| 1.50x (bf16) | 0.75x |")


def test_every_switch_of_the_recipe_is_listed_once():
    keys = [switch.key for switch in shortcuts.SWITCHES]
    assert len(set(keys)) == len(keys)
    assert set(keys) == {f"speed.{name}" for name in SpeedOptions.model_fields} | {
        "model.gradient_checkpointing"
    }


def test_the_picture_shows_the_measured_sweeps(tmp_path: Path):
    picture = tmp_path / figure.PICTURE.name
    assert not figure.draw({}, picture)
    assert not picture.exists()
    file = tmp_path / scaling.RESULT.name
    points = []
    for vocabulary in (32768, 131072):
        sides = summary({LITE: [run(0.2, 2**30), run(0.3, 2**30)], TRL: [run(0.5, 2**31), run(0.6, 2**31)]})
        points.append({"point": {"vocabulary": vocabulary}, "sides": sides})
    record.add(file, "vocabulary", {"machine": MACHINE, "threads": 2, "points": points})
    assert figure.draw(record.load(file), picture)
    drawn = picture.read_text()
    assert figure.draw(record.load(file), picture)
    assert picture.read_text() == drawn  # the same figures, the same file
    text = tables.section(tmp_path)
    assert f"](benchmarks/results/{figure.PICTURE.name})" in text
    assert "prompt share, length, model size: not yet measured." in text


# The opponent.


def test_the_opponent_has_its_best_flags_each_with_a_reason():
    values = {name: flag.value for name, flag in opponent.DPO_FLAGS.items()}
    best = {
        "precompute_ref_log_probs": True,
        "gradient_checkpointing": False,
        "train_sampling_strategy": "sequential",
        "gradient_accumulation_steps": 1,
        "dataloader_num_workers": 0,
    }
    assert best.items() <= values.items()
    assert all(flag.reason for flag in opponent.DPO_FLAGS.values())


def test_both_sides_train_alike():
    from benchmarks.lite import resolve

    recipe = resolve(Work("tiny", "rows.jsonl", examples=8, epochs=3), "nf4", ["loss.sft_weight=0.5"])
    flags = {name: flag.value for name, flag in opponent.DPO_FLAGS.items()}
    assert (
        recipe.train.batch_size == flags["per_device_train_batch_size"] * flags["gradient_accumulation_steps"]
    )
    assert recipe.train.learning_rate == flags["learning_rate"]
    assert recipe.train.schedule == flags["lr_scheduler_type"]
    assert recipe.train.seed == flags["seed"]
    assert recipe.train.epochs == 3
    assert recipe.loss.beta == flags["beta"]
    assert recipe.loss.sft_weight == 0.5  # a setting of the command line wins
    assert recipe.data.max_length == flags["max_length"]
    assert (recipe.model.quantization, recipe.model.dtype) == ("nf4", "bfloat16")


def test_bf16_has_both_variants_and_names_are_unique():
    names = [variant.name for variants in opponent.VARIANTS.values() for variant in variants]
    assert len(set(names)) == len(names)
    assert [(v.base, v.autocast) for v in opponent.VARIANTS["bf16"]] == [("bf16", True), ("fp32", True)]
    assert {case.precision for case in dpo.CASES.values()} <= opponent.VARIANTS.keys()


@pytest.mark.slow
@pytest.mark.trl
def test_a_small_comparison_from_the_command_line(
    forked: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Rows are made by a seed: what both sides compute of them is known to the token. Ours is a fresh process."""
    fresh, out = sides.run, tmp_path / "out.json"
    monkeypatch.setattr(
        sides,
        "run",
        lambda side, work: (
            fresh(side, work) if side.module == "benchmarks.lite" else forked(sides.measure, side, work)
        ),
    )
    line = f"toy/bf16 --repeats 1 --threads 1 --folder {tmp_path} --out {out} --set train.log_steps=2"
    monkeypatch.setattr(sys, "argv", ["dpo", *line.split()])
    monkeypatch.chdir(Path(dpo.__file__).parents[1])
    cases.main(dpo.BENCHMARK, dpo.__doc__)
    assert "TRL, bf16 base, bf16 autocast" in capsys.readouterr().out
    measured = record.load(out)["toy/bf16"]
    assert measured["sets"] == ["train.log_steps=2"]
    found = measured["epochs"]["1"]["sides"]
    assert set(found) == {LITE, TRL, SLOW_TRL}
    assert all(
        figures[key]["median"] > 0 for figures in found.values() for key in ("seconds_per_example", "memory")
    )
    # Two layers: see tests/behaviour/test_counters.py.
    assert found[LITE]["products_per_microbatch"]["median"] == 3 * 14 + 2 + 5 * 14 - 6
    # Without padding and with every prompt once.
    (rows,) = tmp_path.glob("*.jsonl")
    ours, theirs = tokens_of(tmp_path, [json.loads(line) for line in rows.read_text().splitlines()])
    assert found[LITE]["tokens_per_example"]["median"] == ours
    assert (
        found[TRL]["tokens_per_example"]["median"]
        == found[SLOW_TRL]["tokens_per_example"]["median"]
        >= theirs
    )


def tokens_of(folder: Path, rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Tokens a pair with the common beginning of its answers once, and with separate answers."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "llama-toy-512")
    once = apart = 0
    for row in rows:
        chosen, rejected = (
            tokenizer.apply_chat_template(row["prompt"] + row[side], tokenize=True, return_dict=False)
            for side in ("chosen", "rejected")
        )
        alike = next((n for n, (a, b) in enumerate(zip(chosen, rejected)) if a != b), 0)
        once += len(chosen) + len(rejected) - alike
        apart += len(chosen) + len(rejected)
    return once / len(rows), apart / len(rows)


# SFT.


def test_a_measured_case_of_sft_has_a_table_of_its_own(tmp_path: Path):
    record.add(tmp_path / sft.RESULT.name, "15m/nf4", case(ours=0.25, theirs=0.5))
    text = tables.section(tmp_path)
    assert (
        "| model, precision | epochs | TRL, CPU s a row | lite-align | rows per CPU second | memory |" in text
    )
    assert (
        "| 15M, nf4 | 1 | 0.500 (0.500–0.500) | 0.250 (0.250–0.250) | **2.00x** (goal: at least 1.8) |"
        in text
    )
    assert "Measured on A processor" in text


def test_both_sides_of_sft_train_alike():
    from benchmarks.lite_sft import resolve

    recipe = resolve(Work("tiny", "rows.jsonl", examples=8, epochs=3), "nf4", [])
    flags = {name: flag.value for name, flag in opponent_sft.SFT_FLAGS.items()}
    assert recipe.loss.train_on == "all_turns"
    assert flags["assistant_only_loss"]
    assert recipe.train.batch_size == flags["per_device_train_batch_size"]
    assert recipe.lora.dropout == 0
    assert all(flag.reason for flag in (*opponent_sft.SFT_FLAGS.values(), *opponent_sft.LAYOUTS.values()))


@pytest.mark.slow
@pytest.mark.trl
def test_a_small_comparison_of_sft_trains_the_same_tokens_from_the_same_loss(
    warm_sides: None, tmp_path: Path
):
    work = sft.work_of(tmp_path, sft.TOY["toy/bf16"])
    ours = sides.run(lite_sft.side("bf16"), replace(work, threads=1))
    theirs = [
        sides.run(opponent_sft.sides("bf16")[f"{TRL}, {layout}"], replace(work, threads=1))
        for layout in opponent_sft.LAYOUTS
    ]
    for found in theirs:
        assert found["trained_tokens"] == ours["trained_tokens"]
        assert found["start_loss"] == pytest.approx(ours["start_loss"], abs=2e-3)
        assert min(found["seconds_per_example"], ours["seconds_per_example"]) > 0
    padded, unpadded = (found["tokens_per_example"] for found in theirs)
    assert unpadded == ours["tokens_per_example"] < padded


# Reward models.


def test_a_measured_case_of_a_reward_model_has_a_table_of_its_own(tmp_path: Path):
    record.add(tmp_path / reward.RESULT.name, "15m/nf4", case(ours=0.25, theirs=0.75))
    text = tables.section(tmp_path)
    assert (
        "| 15M, nf4 | 1 | 0.750 (0.750–0.750) | 0.250 (0.250–0.250) | **3.00x** (goal: at least 2) | "
        "**0.50x** (goal: at most 1) |" in text
    )


def test_both_sides_of_a_reward_model_train_alike():
    from benchmarks.lite_reward import resolve

    recipe = resolve(Work("tiny", "rows.jsonl", examples=8, epochs=3), "nf4", [])
    flags = {name: flag.value for name, flag in opponent_reward.REWARD_FLAGS.items()}
    assert recipe.loss.center_rewards_coefficient == flags["center_rewards_coefficient"]
    assert recipe.loss.judge_suffix is None
    assert recipe.train.batch_size == flags["per_device_train_batch_size"]
    assert all(flag.reason for flag in opponent_reward.REWARD_FLAGS.values())


@pytest.mark.slow
@pytest.mark.trl
def test_a_small_comparison_of_reward_models(warm_sides: None, tmp_path: Path):
    """Both sides check that they train on all pairs, TRL's that its head is trained."""
    work = reward.BENCHMARK.work(tmp_path, reward.TOY["toy/bf16"])
    ours = sides.run(lite_reward.side("bf16"), replace(work, threads=1))
    theirs = sides.run(opponent_reward.sides("bf16")[TRL], replace(work, threads=1))
    assert min(found["seconds_per_example"] for found in (ours, theirs)) > 0
    assert ours["tokens_per_example"] < theirs["tokens_per_example"]


# PPO.


def test_rounds_are_told_by_their_parts_and_the_first_one_warms_up():
    """Two warm rounds of two answers: 1 + 3, 2 + 2 and 4 + 8 seconds for four answers."""
    found = sides.parts([[50.0, 50.0, 50.0], [1.0, 2.0, 4.0], [3.0, 2.0, 8.0]], episodes=2)
    assert found == {
        "generate_seconds_per_example": 1.0,
        "score_seconds_per_example": 1.0,
        "learn_seconds_per_example": 3.0,
        "seconds_per_example": 5.0,
    }


def test_a_measured_case_of_ppo_stands_beside_its_goals(tmp_path: Path):
    def figures(whole: float, memory: float) -> dict[str, float]:
        return run(whole, memory) | {f"{part}_seconds_per_example": whole / 4 for part in sides.PARTS}

    both = summary({LITE: [figures(0.4, 2**30)], "four models": [figures(0.8, 2**31)]})
    measured = {"machine": MACHINE, "threads": 2, "epochs": {"1": {"sides": both}}}
    record.add(tmp_path / ppo.RESULT.name, "15m/bf16", measured)
    record.add(
        tmp_path / step_memory.RESULT.name, "15m/bf16", {"machine": MACHINE, "threads": 2, "ratio": 1.25}
    )
    text = tables.section(tmp_path)
    assert (
        "| 15M, bf16 | 0.800 (0.800–0.800): generate 0.200, score 0.200, learn 0.200 "
        "| 0.400 (0.400–0.400): generate 0.100, score 0.100, learn 0.100 "
        "| **2.00x** (goal: at least 1.5) | **0.50x** (goal: at most 0.5) | 1.25x (goal: at most 1.3) |"
        in text
    )
    assert "| 60M, bf16 |" + 5 * " not yet measured |" in text


def test_both_sides_of_ppo_learn_alike():
    from benchmarks.lite_ppo import resolve
    from benchmarks.plain_ppo import Settings

    recipe = resolve(Work("tiny", "rows.jsonl", examples=64), "nf4", [])
    theirs = Settings()
    assert recipe.ppo.rollouts == workload.ROLLOUTS
    assert recipe.train.batch_size == workload.BATCH
    assert recipe.train.learning_rate == recipe.ppo.value_learning_rate == workload.PPO_RATE
    same = ("advantage", "kl_in", "kl", "target_kl", "temperature", "clip", "gae_lambda", "value_weight")
    for name in (*same, "missing_stop", "reward_clip", "update_kl"):
        assert getattr(recipe.ppo, name) == getattr(theirs, name), name
    assert recipe.train.adam_epsilon == theirs.epsilon
    assert (recipe.train.adam_beta1, recipe.train.adam_beta2) == theirs.betas
    assert (recipe.train.weight_decay, recipe.train.max_grad_norm) == (0.0, theirs.max_grad_norm)
    assert all(flag.reason for flag in opponent_ppo.FLAGS.values())


@pytest.mark.slow
def test_a_small_comparison_of_ppo(warm_sides: None, tmp_path: Path):
    from benchmarks import lite_ppo

    work = replace(ppo.work_of(tmp_path, ppo.TOY["toy/bf16"]), threads=1)
    ours = sides.run(lite_ppo.side("bf16"), work)
    theirs = sides.run(next(iter(opponent_ppo.sides("bf16").values())), work)
    for found in (ours, theirs):
        assert min(found[f"{part}_seconds_per_example"] for part in sides.PARTS) > 0
        assert workload.NEW_TOKENS * 0.8 < found["tokens_per_example"] <= workload.NEW_TOKENS
    assert 0 < ours["memory"] < theirs["memory"]


@pytest.mark.slow
def test_ppo_and_dpo_are_compared_on_as_many_tokens(warm_sides: None, tmp_path: Path):
    found = step_memory.compare(replace(step_memory.work_of(tmp_path, "toy"), threads=1), "bf16", 1)
    tokens = {stage: figures["tokens"]["median"] for stage, figures in found["sides"].items()}
    assert tokens["ppo"] == pytest.approx(
        tokens["dpo"], rel=0.1
    )  # a few answers of so small a vocabulary stop
    assert "ppo" in step_memory.told("toy", found)
