"""lite-align against TRL on the same reward model: CPU seconds a pair and peak memory, against what is to be reached.

`python -m benchmarks.reward` makes models and rows and runs both sides in turn, each in a process of its own. Same
rows, weights, LoRA shape, pairs a step, epochs, threads and precision; TRL as `opponent_reward.py` says. Loading,
tokenising and saving are counted on neither side. `python -m benchmarks.reward 15m/nf4` measures one case anew.
"""

from collections.abc import Sequence

from benchmarks import cases, dpo, lite_reward, opponent_reward, record
from benchmarks.cases import Benchmark, Case
from benchmarks.sides import LITE, Side

RESULT = record.RESULTS / "reward-cpu.json"
CASES = {
    "15m/bf16": Case("15m", "bf16", 2.0, memory=1.0),
    "15m/nf4": Case("15m", "nf4", 2.0, memory=1.0),
    "60m/bf16": Case("60m", "bf16", 2.0, memory=1.0),
}
TOY = {"toy/bf16": Case("toy", "bf16", 0.0, memory=99.0, examples=16)}


def sides(precision: str, sets: Sequence[str]) -> dict[str, Side]:
    """Ours and all variants of TRL's."""
    return {LITE: lite_reward.side(precision, sets), **opponent_reward.sides(precision)}


BENCHMARK = Benchmark("pair", RESULT, CASES, TOY, sides, dpo.BENCHMARK.work)

if __name__ == "__main__":
    cases.main(BENCHMARK, __doc__)
