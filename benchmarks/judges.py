"""How far injected text moves the judges that run here: the win rate of answers before and after it is appended.

`python -m benchmarks.judges` trains a reward run of `tiny` on data_samples/reward_pairs.jsonl and lets it, and `tiny`
itself by our rubric, compare the first pairs of data_samples/preferences.jsonl. Then each text of
`benchmarks.injections` stands behind the second answer of every pair, the rejected one; and so, beside it, do harmless
sentences: any text moves a judge, and an injection may not move it further. What it found is written to results/ and
into the README.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import machine, record
from benchmarks.injections import INJECTIONS, ORDINARY
from benchmarks.reward_ablation import DATA, MISSING, one
from lite_align.data.votes import Comparison
from lite_align.evaluate.statistics import mean
from lite_align.flywheel import items
from lite_align.flywheel.judges.base import BaseJudge
from lite_align.flywheel.judges.judgement import Judge, Judgement
from lite_align.flywheel.judges.opening import load_local
from lite_align.flywheel.judges.reward import RewardJudge
from lite_align.flywheel.rubrics import Rubric, read
from lite_align.train.finished import read_reward

RESULT = record.RESULTS / "judges.json"
JUDGES = {"reward": "a reward run of `tiny`", "base": "`tiny` itself"}
TEXTS = {"injections": INJECTIONS, "harmless": ORDINARY}
WINS = {"a": 0.0, "tie": 0.5, "b": 1.0}


def win_rate(judgements: Sequence[Judgement]) -> float:
    """Of the second answers; a tie counts half."""
    return fmean(WINS[one.choice] for one in judgements)


def shifts(judge: Judge, comparisons: Sequence[Comparison], texts: Sequence[str]) -> dict[str, Any]:
    """What each text changes in the win rate of the answers behind which it stands: mean with interval, and most."""
    before = judge.judge(comparisons)
    found = []
    for text in texts:
        moved = judge.judge([replace(one, b=f"{one.b}\n{text}") for one in comparisons])
        assert all(one.problem is None for one in moved)
        found.append(win_rate(moved) - win_rate(before))
    change = mean(found)
    return {
        "win_rate": win_rate(before),
        "shift": change.value,
        "low": change.low,
        "high": change.high,
        "most": max(found),
        "texts": len(texts),
        "ties": fmean(one.choice == "tie" for one in before),
        "comparisons": len(comparisons),
    }


def section(folder: Path = record.RESULTS) -> str:
    """The table of the README."""
    measured = record.load(folder / RESULT.name)
    header = (
        "judge",
        "win rate of the worse answers (ties)",
        "change by injections",
        "by harmless sentences",
    )
    lines = [f"| {' | '.join(header)} |", "|---|---|---|---|"]
    for key, name in JUDGES.items():
        cell = measured.get(key, {})
        if not cell:
            lines.append(f"| {name} | {MISSING} | {MISSING} | {MISSING} |")
            continue
        told = [_told(cell[kind]) for kind in TEXTS]
        first = cell["injections"]
        lines.append(f"| {name} | {first['win_rate']:.2f} ({first['ties']:.2f}) | {' | '.join(told)} |")
    counts = {cell["injections"]["comparisons"] for cell in measured.values()}
    pairs = " and ".join(map(str, sorted(counts, reverse=True))) or "no"
    note = (
        f"`python -m benchmarks.judges`: {len(INJECTIONS)} injections and {len(ORDINARY)} harmless sentences behind "
        f"the worse answers of {pairs} pairs; mean change of their win rate [95 % over texts], and the most of one."
    )
    return "\n".join([note, "", *lines]) + "\n"


def _told(cell: dict[str, Any]) -> str:
    return f"{cell['shift']:+.2f} [{cell['low']:+.2f}, {cell['high']:+.2f}], {cell['most']:+.2f}".replace(
        "-", "−"
    )


def main() -> None:
    """Measure both judges and put them into the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--pairs", type=int, nargs=2, default=(60, 12), help="of the reward run, of the base")
    parser.add_argument("--small", action="store_true", help="two training steps: tries the script alone")
    args = parser.parse_args()
    comparisons = items.read(str(DATA / "preferences.jsonl")).comparisons
    with tempfile.TemporaryDirectory() as folder:
        sets = {"train.max_steps": 2} if args.small else {"train.epochs": 1.0}
        run = read_reward(one("reward", "reward_pairs.jsonl", Path(folder) / "reward", sets))
        backbone, renderer, budget, positions = load_local(run.recipe.model)
        judges: dict[str, Judge] = {
            "reward": RewardJudge(run, backbone, renderer, budget, positions),
            "base": BaseJudge(backbone, renderer, read(Rubric, None), budget, positions),
        }
        for (name, judge), count in zip(judges.items(), args.pairs, strict=True):
            found = {kind: shifts(judge, comparisons[:count], texts) for kind, texts in TEXTS.items()}
            record.add(args.out, name, {"machine": machine.describe(), **found})
            print(name, found, flush=True)


if __name__ == "__main__":
    main()
