"""lite-align against TRL on the same DPO work: CPU seconds a pair and peak memory, against what is to be reached.

`python -m benchmarks.dpo` makes models and rows and runs both sides in turn, each in a process of its own. Same
rows, weights, LoRA shape, batch size, epochs, threads and precision; TRL as `opponent.py` says. The reference pass
is counted on both sides; loading, tokenising and saving on neither. `python -m benchmarks.dpo 15m/nf4` measures one
case anew; the others stay in the result file.
"""

from collections.abc import Sequence
from pathlib import Path

from benchmarks import cases, lite, opponent, record, workload
from benchmarks.cases import Benchmark, Case
from benchmarks.sides import LITE, Side, Work

RESULT = record.RESULTS / "dpo-cpu.json"
CASES = {
    "15m/bf16": Case("15m", "bf16", 2.5, epochs=(1, 3)),
    "15m/nf4": Case("15m", "nf4", 2.2, epochs=(1, 3)),
    "60m/bf16": Case("60m", "bf16", 2.0),
    "15m-131k/bf16": Case("15m", "bf16", 2.5, vocabulary=131072),
}
TOY = {"toy/bf16": Case("toy", "bf16", 0.0, memory=99.0, examples=16)}


def make_work(
    folder: Path,
    size: str,
    examples: int,
    *,
    vocabulary: int | None = None,
    prompt: float = workload.PROMPT,
    answer: float = workload.ANSWER,
) -> Work:
    """Make model and rows where they are not there yet."""
    model = workload.make_model(folder, size, vocabulary)
    rows = workload.make_rows(model, examples, prompt_tokens=prompt, answer_tokens=answer)
    file = folder / f"{model.name}-{examples}-{prompt:g}-{answer:g}.jsonl"
    return Work(str(model), str(workload.write_rows(file, rows)), examples)


def work_of(folder: Path, case: Case) -> Work:
    """Model and rows of a case."""
    return make_work(folder, case.size, case.examples, vocabulary=case.vocabulary)


def sides(precision: str, sets: Sequence[str]) -> dict[str, Side]:
    """Ours and all variants of TRL's."""
    return {LITE: lite.side(precision, sets), **opponent.sides(precision)}


BENCHMARK = Benchmark("pair", RESULT, CASES, TOY, sides, work_of)

if __name__ == "__main__":
    cases.main(BENCHMARK, __doc__)
