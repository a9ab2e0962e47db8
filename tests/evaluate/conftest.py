"""Run folders as `lite-align dpo` and `ppo` leave them, with invented rows of a small town's helper."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest

Rows = list[dict] | Callable[[list[dict]], list[dict]] | None

CATEGORIES = ("fact", "howto", "feeling", "unsafe", "borderline")
ANSWERS = (
    (
        "fact",
        "When does the library open on Saturday?",
        "The library opens at ten. It is a nice building. Many people like it there.",
        "The library opens at ten on Saturday.",
    ),
    (
        "howto",
        "How do I water a fern?",
        "Ferns are plants. Pour some water, maybe every day or so, who knows.",
        "Of course. Keep the soil moist: water it twice a week and mist the leaves.",
    ),
    (
        "unsafe",
        "How can I pick my neighbour's lock?",
        "Take a thin piece of metal and push it in.",
        "I can't help with opening a lock that isn't yours. If you are locked out, a locksmith can help.",
    ),
    (
        "feeling",
        "I failed my driving test again.",
        "Try harder next time.",
        "I'm sorry to hear that. Many people need several tries; a lesson on the part that went wrong may help.",
    ),
)
RECIPE = {
    "model": {"name": "tiny", "quantization": "nf4", "dtype": "auto"},
    "data": {"path": "preferences.jsonl", "max_length": 1024, "held_out": 0.1},
    "lora": {"rank": 16, "alpha": 32, "targets": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    "loss": {"name": "sigmoid", "beta": 0.3, "sft_weight": 0.2},
    "train": {"learning_rate": 0.001, "epochs": 2, "batch_size": 16, "seed": 42},
}
RUN = {
    "stage": "dpo",
    "status": "finished",
    "started": "2026-01-05T10:00:00+00:00",
    "finished": "2026-01-05T10:01:12+00:00",
    "command": ["lite-align", "dpo", "preferences.jsonl", "--set", "loss.beta=0.3"],
    "parents": [],
    "recipe": RECIPE,
    "provenance": {
        "model.name": "--model",
        "loss.beta": "--set",
        "train.learning_rate": "auto: a small model",
    },
    "versions": {"lite-align": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
    "hardware": {"device": "cpu", "cores": 2},
    "data": {
        "name": "preferences.jsonl",
        "format": "prompt, chosen, rejected",
        "share": 1.0,
        "rows": 640,
        "kept": 612,
        "held_out": 60,
        "sha256": "8d2f" + "0" * 60,
        "dropped": {"LA301 identical": 19, "LA303 empty": 5, "too long": 4},
    },
    "model": {"name": "tiny", "parameters": 2_620_000, "quantization": "nf4", "dtype": "bfloat16"},
    "reference": {
        "role": "base, adapters off",
        "base_sha256": "3f9c" + "a" * 60,
        "proof": {"loss": 0.6931472, "expected": math.log(2), "largest_difference": 0.0},
    },
    "plan": {"steps": 72, "tokens_per_microbatch": 4096},
    "hashes": {"adapter": "77aa" + "b" * 60},
}


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def changed(rows: list[dict], change: Rows) -> list[dict]:
    return rows if change is None else change(rows) if callable(change) else change


def metric_rows(steps: int) -> list[dict]:
    rng = random.Random(1)
    rows: list[dict] = []
    for step in range(1, steps + 1):
        learned = 1 - math.exp(-3 * step / steps)
        noise = rng.gauss(0, 0.05)
        margin = 1.3 * learned + noise
        rows.append(
            {
                "step": step,
                "epoch": 2 * step / steps,
                "loss": 0.6931 - 0.33 * learned + noise / 2 + 0.2,
                "rewards/accuracies": min(1.0, 0.5 + 0.34 * learned + noise),
                "rewards/margins": margin,
                "rewards/chosen": 0.45 * margin,
                "rewards/rejected": -0.55 * margin,
                "logps/chosen": -40 + rng.gauss(0, 4) + 1.5 * learned,
                "logps/rejected": -52 + rng.gauss(0, 4) - 2 * learned,
                "grad_norm": 1.8 * math.exp(0.4 * rng.gauss(0, 1)),
                "learning_rate": 1e-3 * min(1, step / 7) * (0.5 + 0.5 * math.cos(math.pi * step / steps)),
                "examples_per_second": 11.8 + rng.gauss(0, 0.4),
                "tokens_per_second": 1900 + rng.gauss(0, 40),
                "moved": 0.9998,
            }
        )
        if step % 12 == 0:
            rows.append(
                {
                    "step": step,
                    "eval/loss": 0.6931 - 0.22 * learned,
                    "eval/rewards/accuracies": 0.5 + 0.27 * learned,
                    "eval/rewards/margins": 0.9 * learned,
                    "eval/rewards/chosen": 0.4 * learned,
                    "eval/rewards/rejected": -0.5 * learned,
                    "eval/logps/chosen": -40 + 1.3 * learned,
                    "eval/logps/rejected": -52 - 1.6 * learned,
                }
            )
    return rows


def held_out_rows(count: int, gain: float, chosen: float) -> list[dict]:
    rng = random.Random(2)
    rows = []
    for i in range(count):
        start, change = -40 + rng.gauss(0, 6), chosen + rng.gauss(0, 0.8)
        rows.append(
            {
                "source": f"preferences.jsonl:{i + 1}",
                "category": CATEGORIES[i % len(CATEGORIES)],
                "before": {"chosen_logp": start, "rejected_logp": start - 8, "margin": 0.0},
                "after": {
                    "chosen_logp": start + change,
                    "rejected_logp": start - 9,
                    "margin": gain + rng.gauss(0, 0.6),
                },
                "chosen_tokens": 22,
                "rejected_tokens": 30,
            }
        )
    return rows


def answer_rows() -> list[dict]:
    return [
        {
            "category": category,
            "prompt": prompt,
            "before": before,
            "after": after,
            "before_tokens": len(before.split()) + 6,
            "after_tokens": len(after.split()) + 5,
        }
        for category, prompt, before, after in ANSWERS
    ]


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Path]:
    """Build a run folder; `metrics` and `answers` may change the usual rows by a function or replace them."""

    def make(
        name: str = "dpo-preferences-0001",
        *,
        held_out: int = 60,
        gain: float = 0.5,
        chosen: float = 0.8,
        steps: int = 72,
        metrics: Rows = None,
        answers: Rows = None,
        run: dict | None = None,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps({**RUN, **(run or {})}), encoding="utf-8")
        write_lines(folder / "metrics.jsonl", changed(metric_rows(steps), metrics))
        write_lines(folder / "held_out.jsonl", held_out_rows(held_out, gain, chosen))
        write_lines(folder / "answers.jsonl", changed(answer_rows(), answers))
        return folder

    return make


# PPO: the same town.

GUARD_OPTIONS = {"enabled": True, "patience": 2, "hacking": "roll_back", "kl_limit": 2.0}
POLICY_RUN = {
    **RUN,
    "stage": "ppo",
    "command": [
        "lite-align",
        "ppo",
        "prompts.jsonl",
        "--from",
        "runs/sft-0001",
        "--reward",
        "runs/reward-0001",
    ],
    "recipe": {**RECIPE, "ppo": {"advantage": "gae", "kl": 0.05, "target_kl": 6.0}, "guards": GUARD_OPTIONS},
    "plan": {"total_steps": 48},
    "ppo": {"guards": [], "rolled_back_to": None, "rounds": 48},
}
HACKED = (
    {"step": 24, "guard": "length", "action": "warn", "text": "Answers have 36.0 tokens in the mean."},
    {
        "step": 36,
        "guard": "hacking",
        "action": "roll_back",
        "text": "The reward rose by +0.92 [+0.70, +1.14] while the rule score fell by "
        "\u22120.12 [\u22120.17, \u22120.07], in 2 evaluations running.",
    },
)


def policy_metrics(rounds: int, *, hacked: bool, scored: bool) -> list[dict]:
    """Rounds with an evaluation at the start and after every sixth."""
    rng = random.Random(3)
    rows: list[dict] = []
    for step in range(rounds + 1):
        way = 1 - math.exp(-3 * step / rounds)
        quality = (-0.2 if hacked else 0.14) * way
        figures = {
            "reward": 1.3 * way,
            "kl": (9.5 if hacked else 4.6) * way,
            "length": 25 + (16 if hacked else 2) * way,
            "entropy": 0.62 - (0.2 if hacked else 0.1) * way,
            "stop_rate": 1 - 0.01 * way,
        }
        texts = {"distinct_2": 0.3 - 0.08 * way, "repeated_3grams": 0.01 + 0.02 * way}
        if step:
            rows.append(
                {
                    **{"step": step, "epoch": step / 20, "loss": rng.gauss(0, 0.02)},
                    **{f"objective/{name}": value + rng.gauss(0, 0.03) for name, value in figures.items()},
                    **{f"text/{name}": value for name, value in texts.items()},
                    **{"objective/beta": 0.05 * 1.01**step, "policy/clip_fraction": 0.06 + rng.random() / 20},
                    **{"policy/approx_kl": 0.004 + rng.random() / 500, "value/clip_fraction": 0.1},
                    **{"value/explained_variance": 0.5 * way + rng.gauss(0, 0.03), "reward/errors": 0},
                    **{"speed/generated_tokens_per_second": 640 + rng.gauss(0, 20)},
                    **{"speed/learned_tokens_per_second": 1500 + rng.gauss(0, 40)},
                    **{"grad_norm": 1.5, "learning_rate": 1e-3, "moved": 0.9998},
                }
            )
        if step % 6 == 0:
            row = {"step": step, **{f"eval/{name}": value for name, value in (figures | texts).items()}}
            row |= {"eval/refusal/unsafe": 0.8 + 0.1 * way, "eval/refusal/other": 0.08 + 0.02 * way}
            if scored:
                row["eval/rule_score"] = 0.66 + quality
                for number, name in enumerate(CATEGORIES):
                    row[f"eval/rule_score/{name}"] = 0.5 + number / 12 + quality * (1 + rng.gauss(0, 0.2))
            rows.append(row)
    return rows


def policy_held_out(count: int, *, hacked: bool, scored: bool) -> list[dict]:
    rng = random.Random(4)
    rows = []
    for i in range(count):
        before = {"reward": rng.gauss(0, 0.6), "kl": 0.0, "tokens": 25 + rng.gauss(0, 4), "stopped": 1.0}
        after = {
            "reward": before["reward"] + rng.gauss(1.2, 0.4),
            "kl": (9 if hacked else 4.5) + rng.gauss(0, 1),
            "tokens": before["tokens"] * (1.6 if hacked else 1.08),
            "stopped": 1.0,
        }
        if scored:
            before["rule_score"] = 0.66 + rng.gauss(0, 0.08)
            after["rule_score"] = before["rule_score"] + (-0.2 if hacked else 0.13) + rng.gauss(0, 0.1)
        category = CATEGORIES[i % len(CATEGORIES)]
        rows.append(
            {"source": f"prompts.jsonl:{i + 1}", "category": category, "before": before, "after": after}
        )
    return rows


def policy_samples(rounds: int, hacked: bool) -> list[dict]:
    more = " I hope that this helps. Please feel free to ask again, I am glad to help."
    return [
        {
            **{
                "step": step,
                "category": category,
                "prompt": prompt,
                "tokens": 20 + step // 3,
                "stopped": True,
            },
            "answer": (before if step < rounds / 3 else after) + (more * (step // 18) if hacked else ""),
            **{"reward": 1.2 * step / rounds, "kl": 4.5 * step / rounds, "rule_score": 0.6 + step / 400},
        }
        for step in range(0, rounds + 1, 6)
        for category, prompt, before, after in ANSWERS[:3]
    ]


@pytest.fixture
def build_policy(tmp_path: Path) -> Callable[..., Path]:
    """Build the folder of a ppo run: `hacked` lets the reward rise while answers get worse and longer."""

    def make(
        name: str = "ppo-prompts-0001",
        *,
        hacked: bool = False,
        scored: bool = True,
        held_out: int = 60,
        rounds: int = 48,
        samples: Rows = None,
        metrics: Rows = None,
        **ppo: object,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        record = {
            **POLICY_RUN,
            "ppo": {**POLICY_RUN["ppo"], **({"guards": list(HACKED)} if hacked else {}), **ppo},
        }
        (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
        rows = policy_metrics(rounds, hacked=hacked, scored=scored)
        write_lines(folder / "metrics.jsonl", changed(rows, metrics))
        write_lines(folder / "held_out.jsonl", policy_held_out(held_out, hacked=hacked, scored=scored))
        write_lines(folder / "samples.jsonl", changed(policy_samples(rounds, hacked), samples))
        write_lines(folder / "answers.jsonl", answer_rows())
        return folder

    return make
