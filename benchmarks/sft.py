"""lite-align against TRL on the same SFT work: CPU seconds a row and peak memory, against what is to be reached.

`python -m benchmarks.sft` makes models and rows and runs both sides in turn, each in a process of its own. Same
rows, weights, LoRA shape, rows a step, epochs, threads, precision and trained tokens; TRL as `opponent_sft.py` says.
Loading, tokenising and saving are counted on neither side. `python -m benchmarks.sft 15m/nf4` measures one case anew.
"""

from collections.abc import Sequence
from pathlib import Path

from benchmarks import cases, lite_sft, opponent_sft, record, workload
from benchmarks.cases import Benchmark, Case
from benchmarks.sides import LITE, Side, Work

RESULT = record.RESULTS / "sft-cpu.json"
CASES = {
    "15m/bf16": Case("15m", "bf16", 1.8, memory=1.0, examples=96),
    "15m/nf4": Case("15m", "nf4", 1.8, memory=1.0, examples=96),
    "60m/bf16": Case("60m", "bf16", 1.8, memory=1.0, examples=96),
    "15m-131k/bf16": Case("15m", "bf16", 1.8, memory=1.0, examples=96, vocabulary=131072),
}
TOY = {"toy/bf16": Case("toy", "bf16", 0.0, memory=99.0, examples=16)}


def work_of(folder: Path, case: Case) -> Work:
    """Model and rows of a case, made where they are not there yet."""
    model = workload.make_model(folder, case.size, case.vocabulary)
    rows = workload.make_conversations(model, case.examples)
    file = folder / f"{model.name}-sft-{case.examples}.jsonl"
    return Work(str(model), str(workload.write_rows(file, rows)), case.examples)


def sides(precision: str, sets: Sequence[str]) -> dict[str, Side]:
    """Ours and all variants of TRL's."""
    return {LITE: lite_sft.side(precision, sets), **opponent_sft.sides(precision)}


BENCHMARK = Benchmark("row", RESULT, CASES, TOY, sides, work_of)

if __name__ == "__main__":
    cases.main(BENCHMARK, __doc__)
