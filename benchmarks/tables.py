"""The CPU part of the README's Speed section, from the result files and nothing else."""

from pathlib import Path
from typing import Any

from benchmarks import dpo, ppo, record, reward, sft, step_memory
from benchmarks.cases import Benchmark, Case
from benchmarks.figure import PICTURE
from benchmarks.scaling import RESULT as SCALING
from benchmarks.scaling import SWEEPS
from benchmarks.shortcuts import ALL, SWITCHES, Switch
from benchmarks.shortcuts import RESULT as SHORTCUTS
from benchmarks.sides import LITE, PARTS, compare, opponents

MISSING = "not yet measured"
INTRODUCTION = (
    "`python -m benchmarks.dpo` against TRL 1.16 on the same rows, weights, LoRA shape, batch and precision, sides in "
    "turn in one run, reference pass included, medians. TRL with its best flags (`benchmarks/opponent.py` has them "
    "with reasons) and its completion-only head switched on for the CPU (as installed it is several times slower "
    "there). Random weights, prompts of about 115 and answers of about 47 tokens. Memory is what a process holds "
    "at its peak above its start. Both sides with OpenMP's default waiting; the command line sets "
    "OMP_WAIT_POLICY=PASSIVE where it is unset."
)


CONVERSATIONS = (
    "`python -m benchmarks.sft` does the same for SFT: conversations of one question and one answer, the loss on "
    "answers alone, the same trained tokens on both sides. TRL padded with rows of like length together, and without "
    "padding, whichever is faster (`benchmarks/opponent_sft.py`)."
)

REWARDS = (
    "`python -m benchmarks.reward` does the same for reward models, on the pairs of the first table. TRL's "
    "RewardTrainer has no way without padding; rows of like length stand together (`benchmarks/opponent_reward.py`)."
)

ROUNDS = (
    "`python -m benchmarks.ppo` does the same for PPO. No library here trains PPO with an adapter on one GPU, so the "
    "opponent is a plain one of four models from transformers and PEFT, each with a copy of the base, with its best "
    "settings (`benchmarks/opponent_ppo.py`); that both compute the same is a test "
    "(`tests/behaviour/test_ppo_agreement.py`). 32 prompts of about 115 tokens a round, answers of 64 tokens (random "
    "weights do not stop by themselves), two passes. Seconds are those of generating, scoring and learning. The last "
    "column is the peak of our PPO against that of our DPO on the same trees (`python -m benchmarks.step_memory`)."
)


def section(folder: Path = record.RESULTS) -> str:
    """Goals, growth and shortcuts, each from its file in a folder."""
    files = (dpo.RESULT, sft.RESULT, reward.RESULT, ppo.RESULT, step_memory.RESULT, SCALING, SHORTCUTS)
    goals, conversations, rewards, rounds, steps, scaling, shortcuts = (
        record.load(folder / file.name) for file in files
    )
    others = {"sft": conversations, "reward": rewards, "ppo": rounds, "memory of ppo": steps}
    named = {f"{stage} {name}": case for stage, cases in others.items() for name, case in cases.items()}
    parts = [
        INTRODUCTION,
        goal_table(dpo.BENCHMARK, goals),
        counted(goals),
        CONVERSATIONS,
        goal_table(sft.BENCHMARK, conversations),
        REWARDS,
        goal_table(reward.BENCHMARK, rewards),
        ROUNDS,
        round_table(rounds, steps),
        "How the cost grows (`python -m benchmarks.scaling`):",
        growth(scaling),
        "What each shortcut is worth (`python -m benchmarks.shortcuts`): with it against without it, all others on.",
        shortcut_table(shortcuts),
        machines({**goals, **named, **scaling, **shortcuts}),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def goal_table(benchmark: Benchmark, cases: dict[str, Any]) -> str:
    """One row for every case and number of epochs, with what is to be reached."""
    noun = benchmark.noun
    rows = [
        f"| model, precision | epochs | TRL, CPU s a {noun} | lite-align | {noun}s per CPU second | memory |",
        "|---|---|---|---|---|---|",
    ]
    for name, case in benchmark.cases.items():
        measured = cases.get(name, {}).get("epochs", {})
        for epochs in map(str, case.epochs):
            rows.append(
                f"| {described(case)} | {epochs} | {' | '.join(goal_cells(case, measured.get(epochs)))} |"
            )
    return "\n".join(rows)


def round_table(rounds: dict[str, Any], steps: dict[str, Any]) -> str:
    """One row for every case of PPO: where the time goes on both sides, and the ratios beside what is wanted."""
    rows = [
        "| model, precision | four models, CPU s an answer | lite-align "
        "| answers per CPU second | memory | PPO / DPO |",
        "|---|---|---|---|---|---|",
    ]
    for name, case in ppo.CASES.items():
        measured = rounds.get(name, {}).get("epochs", {}).get("1")
        cells = [MISSING] * 4
        if measured is not None:
            sides = measured["sides"]
            ratio = compare(sides, LITE, opponents(sides))
            cells = [
                in_parts(sides[ratio.against]),
                in_parts(sides[LITE]),
                f"**{ratio.speed:.2f}x** (goal: at least {case.speed:g})",
                f"**{ratio.memory:.2f}x** (goal: at most {case.memory:g})",
            ]
        step = steps.get(name)
        last = MISSING if step is None else f"{step['ratio']:.2f}x (goal: at most {step_memory.GOAL:g})"
        rows.append(f"| {described(case)} | {' | '.join([*cells, last])} |")
    return "\n".join(rows)


def in_parts(figures: dict[str, Any]) -> str:
    """CPU seconds with their range, and what they are made of."""
    each = (f"{part} {figures[f'{part}_seconds_per_example']['median']:.3f}" for part in PARTS)
    return f"{spread(figures['seconds_per_example'])}: {', '.join(each)}"


def described(case: Case) -> str:
    """A case in words."""
    vocabulary = f", vocabulary {case.vocabulary:,}" if case.vocabulary else ""
    return f"{case.size.upper()}{vocabulary}, {case.precision}"


def goal_cells(case: Case, result: dict[str, Any] | None) -> list[str]:
    """Cost of both sides and the ratios beside what is wanted."""
    if result is None:
        return [MISSING] * 4
    sides = result["sides"]
    ratio = compare(sides, LITE, opponents(sides))
    return [
        spread(sides[ratio.against]["seconds_per_example"]),
        spread(sides[LITE]["seconds_per_example"]),
        f"**{ratio.speed:.2f}x** (goal: at least {case.speed:g})",
        f"**{ratio.memory:.2f}x** (goal: at most {case.memory:g})",
    ]


def spread(figure: dict[str, float]) -> str:
    """Median and range of CPU seconds."""
    return f"{figure['median']:.3f} ({figure['low']:.3f}–{figure['high']:.3f})"


def counted(cases: dict[str, Any]) -> str:
    """Counters of the first measured case, which repeat exactly; nothing if there is none."""
    for name, case in dpo.CASES.items():
        for result in cases.get(name, {}).get("epochs", {}).values():
            sides = result["sides"]
            ours = {key: figure["median"] for key, figure in sides[LITE].items()}
            theirs = sides[compare(sides, LITE, opponents(sides)).against]["tokens_per_example"]["median"]
            return (
                f"Counted in {described(case)}: {ours['tokens_per_example']:.0f} tokens a pair, TRL {theirs:.0f} with "
                f"padding; {ours['products_per_microbatch']:.0f} matrix products a micro-batch; "
                f"{ours['saved_bytes_per_token'] / 1000:.0f} kB a token saved for the backward pass."
            )
    return ""


def growth(sweeps: dict[str, Any]) -> str:
    """The picture, or which of the sweeps it would show are missing."""
    missing = [name for name in SWEEPS if name not in sweeps]
    picture = "" if len(missing) == len(SWEEPS) else f"![cost a pair](benchmarks/results/{PICTURE.name})"
    return "\n\n".join(filter(None, [picture, f"{', '.join(missing)}: {MISSING}." if missing else ""]))


def shortcut_table(cases: dict[str, Any]) -> str:
    """One row for every switch of the recipe."""
    rows = ["| setting | what it does | pairs per CPU second | memory |", "|---|---|---|---|"]
    for switch in SWITCHES:
        rows.append(f"| `{switch.key}` | {switch.saves} | {' | '.join(shortcut_cells(switch, cases))} |")
    return "\n".join(rows)


def shortcut_cells(switch: Switch, cases: dict[str, Any]) -> list[str]:
    """Ratios with a shortcut to without it."""
    case = cases.get(switch.key)
    if case is None:
        return [f"{switch.because}: {MISSING}" if switch.because else MISSING] * 2
    ratio = compare(case["sides"], ALL, [switch.key])
    return [f"{ratio.speed:.2f}x ({case['precision']})", f"{ratio.memory:.2f}x"]


def machines(cases: dict[str, Any]) -> str:
    """What the cases were measured on, one line for each different machine, versions and commit."""
    named: dict[str, list[str]] = {}
    for name, case in cases.items():
        on = case["machine"]
        text = (
            f"{on['cpu']}, {on['memory']}, {case['threads']} threads; {on['versions']}; commit {on['commit']}"
        )
        named.setdefault(text, []).append(name)
    lines = [
        f"Measured on {text}" + (f" ({', '.join(names)})." if len(named) > 1 else ".")
        for text, names in named.items()
    ]
    return "\n\n".join(lines)
