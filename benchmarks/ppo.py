"""lite-align against a PPO of four models: CPU seconds an episode and peak memory, against what is to be reached.

`python -m benchmarks.ppo` makes models and prompts and runs both sides in turn, each in a process of its own. Same
prompts in the same rounds, weights, LoRA shapes, answers, minibatches, passes, mathematics, threads and precision; the
opponent as `opponent_ppo.py` says. Generation, scores and learning are counted, loading and tokenising on neither
side. Random weights hardly ever stop by themselves: answers have the greatest length, the same number of tokens on
both sides. `python -m benchmarks.ppo 15m/nf4` measures one case anew; `toy/bf16` is over at once, and too small to
compare anything.
"""

from collections.abc import Sequence
from pathlib import Path

from benchmarks import cases, lite_ppo, opponent_ppo, record, workload
from benchmarks.cases import Benchmark, Case
from benchmarks.sides import LITE, PARTS, Side, Work

RESULT = record.RESULTS / "ppo-cpu.json"
CASES = {
    "15m/bf16": Case("15m", "bf16", 1.5, memory=0.5, examples=3 * workload.ROLLOUTS),
    "15m/nf4": Case("15m", "nf4", 1.5, memory=0.5, examples=3 * workload.ROLLOUTS),
    "60m/bf16": Case("60m", "bf16", 1.5, memory=0.5, examples=2 * workload.ROLLOUTS),
}
TOY = {"toy/bf16": Case("toy", "bf16", 0.0, memory=99.0, examples=2 * workload.ROLLOUTS)}


def work_of(folder: Path, case: Case) -> Work:
    """Model and prompts of a case, made where they are not there yet."""
    model = workload.make_model(folder, case.size, case.vocabulary)
    rows = workload.make_prompts(model, case.examples)
    file = folder / f"{model.name}-prompts-{case.examples}.jsonl"
    return Work(str(model), str(workload.write_rows(file, rows)), case.examples)


def sides(precision: str, sets: Sequence[str]) -> dict[str, Side]:
    """Ours and all variants of the opponent."""
    return {LITE: lite_ppo.side(precision, sets), **opponent_ppo.sides(precision)}


BENCHMARK = Benchmark("answer", RESULT, CASES, TOY, sides, work_of, parts=PARTS)

if __name__ == "__main__":
    cases.main(BENCHMARK, __doc__)
