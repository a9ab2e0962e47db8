"""Peak memory of a round of PPO against that of a DPO step on as many tokens, each in a process of its own.

`python -m benchmarks.step_memory`. A PPO minibatch of two answers to each of eight prompts has the trees of a DPO step
on eight pairs: the same prompts, and answers of the same length. PPO's peak is that of whole rounds, with sampling and
scoring; it also holds the reward model's adapter and the value head.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import cases, lite, lite_ppo, machine, ppo, record, sides, workload
from benchmarks.sides import Side, Work
from benchmarks.workload import BATCH, NEW_TOKENS

RESULT = record.RESULTS / "step-memory-cpu.json"
GOAL = 1.3
PROMPTS = 2 * BATCH
CASES = {name: (case.size, case.precision) for name, case in ppo.CASES.items()}
TOY = {"toy/bf16": ("toy", "bf16")}
OWN = lite_ppo.OWN | {
    "ppo.samples": 2,
    "ppo.rollouts": 2 * BATCH,
    "train.batch_size": 2 * BATCH,
    "ppo.passes": 1,
}


def work_of(folder: Path, size: str) -> Work:
    """Pairs whose answers are as long as PPO's, and their prompts beside them."""
    model = workload.make_model(folder, size)
    rows = workload.make_rows(model, PROMPTS)
    same = [row | {side: longest(row[side], model) for side in ("chosen", "rejected")} for row in rows]
    file = folder / f"{model.name}-step-memory.jsonl"
    workload.write_rows(prompts_beside(file), [{"prompt": row["prompt"]} for row in rows])
    return Work(str(model), str(workload.write_rows(file, same)), PROMPTS)


def prompts_beside(rows: Path) -> Path:
    """The file of the prompts of a file of pairs."""
    return rows.with_name(f"{rows.stem}-prompts.jsonl")


def longest(answer: list[dict[str, str]], model: Path) -> list[dict[str, str]]:
    """An answer that has as many tokens as PPO's, with its end."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    ids = tokenizer.encode(answer[0]["content"]).ids * NEW_TOKENS
    for size in range(NEW_TOKENS - 2, 0, -1):
        text = tokenizer.decode(ids[:size])
        if len(tokenizer.encode(text).ids) <= NEW_TOKENS - 1:
            return [{"role": "assistant", "content": text}]
    return answer


def measure(work: Work, settings: dict[str, Any]) -> dict[str, float]:
    """Two steps of DPO or two rounds of PPO: the peak above the start, and the tokens of the steps."""
    held = machine.resident_bytes()
    machine.reset_peak()
    tokens = (dpo_steps if settings["stage"] == "dpo" else ppo_rounds)(work, settings["precision"])
    return {"memory": machine.peak_bytes() - held, "tokens": tokens}


def dpo_steps(work: Work, precision: str) -> int:
    """Tokens of all steps, each over eight pairs."""
    stage, engine = lite.prepare(work, precision, ()).start()
    return sum(step.tokens for step in lite.run(stage, engine))


def ppo_rounds(work: Work, precision: str) -> int:
    """Tokens of all steps, each over two answers to eight prompts."""
    work = replace(work, rows=str(prompts_beside(Path(work.rows))))
    stage, engine = lite_ppo.prepare(work, lite_ppo.resolve(work, precision, (), OWN))
    tokens = 0
    for step in range(stage.steps_per_round * (work.examples // stage.prompts_per_round)):
        window = stage.window(step)
        engine.update(window, stage.loss)
        tokens += sum(batch.tokens for batch in window.batches)
    return tokens


def compare(work: Work, precision: str, repeats: int) -> dict[str, Any]:
    """Both, in turn, and how many times DPO's memory PPO takes."""
    named = {
        stage: Side("benchmarks.step_memory", {"stage": stage, "precision": precision})
        for stage in ("dpo", "ppo")
    }
    runs = sides.interleave(named, work, repeats)
    summary = sides.summary(runs)
    ratio = summary["ppo"]["memory"]["median"] / summary["dpo"]["memory"]["median"]
    return {
        "machine": machine.describe(),
        "threads": work.threads,
        "sides": summary,
        "runs": runs,
        "ratio": ratio,
    }


def told(name: str, found: dict[str, Any]) -> str:
    """A line for a person."""
    each = (
        f"{stage} {found['sides'][stage]['memory']['median'] / 2**20:,.0f} MiB" for stage in ("dpo", "ppo")
    )
    return f"{name}: {', '.join(each)}: {found['ratio']:.2f}x ({cases.verdict(found['ratio'], GOAL, least=False)})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the named cases, print them and put them into the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all if left out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=cases.FOLDER, help="of models and rows")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args(arguments)
    known = CASES | TOY
    if unknown := [name for name in args.cases if name not in known]:
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    for name in args.cases or CASES:
        size, precision = known[name]
        found = compare(replace(work_of(args.folder, size), threads=args.threads), precision, args.repeats)
        print(told(name, found), flush=True)
        record.add(args.out, name, found)


if __name__ == "__main__":
    main()
