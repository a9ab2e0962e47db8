"""What each shortcut of the recipe is worth on a CPU: one run with all of them, one without it, in turn.

`python -m benchmarks.shortcuts` measures the 15M model. Shortcuts that need a GPU, and those that save time outside of
the steps, are listed as not measured.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import lite, machine, record
from benchmarks.cases import FOLDER
from benchmarks.dpo import make_work
from benchmarks.sides import compare, interleave, summary

RESULT = record.RESULTS / "shortcuts-cpu.json"
ALL = "all shortcuts"


@dataclass(frozen=True)
class Switch:
    """A shortcut of the recipe.

    Args:
        without: the setting that leaves it out.
        saves: what it does, in a few words.
        precision: of the runs; None where it is not measured.
        because: why not.
        with_: the setting that takes it, where that is not the recipe's default on a CPU.
    """

    without: str
    saves: str
    precision: str | None = "bf16"
    because: str = ""
    with_: str | None = None

    @property
    def key(self) -> str:
        """Its dotted key."""
        return self.without.partition("=")[0]


SWITCHES = (
    Switch("speed.share_prompts=false", "a prompt is computed once for all of its answers"),
    Switch("speed.fused_lora=false", "the adapter in one fused product, without casts and copies"),
    Switch("speed.frozen_head=false", "log-probs and their gradient in one pass over the head"),
    Switch("speed.fused_optimizer=false", "AdamW as one kernel over one buffer"),
    Switch(
        "speed.unnest_scales=off",
        "scales of 4-bit weights are unpacked once",
        "nf4",
        with_="speed.unnest_scales=on",
    ),
    Switch("model.gradient_checkpointing=on", "nothing is computed twice where the memory is there"),
    Switch("speed.compile=off", "compiled decoder blocks", None, "GPU"),
    Switch("speed.offload_embeddings=off", "the embedding in the memory of the host", None, "GPU"),
    Switch(
        "speed.load_while_reading=false", "weights are loaded while rows are tokenised", None, "before step 1"
    ),
)


def main() -> None:
    """Measure the named switches, print what they are worth and put it into the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    measurable = {switch.key: switch for switch in SWITCHES if switch.precision}
    parser.add_argument("switches", nargs="*", metavar="KEY", help=f"of {', '.join(measurable)}")
    parser.add_argument("--size", default="15m")
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of model and rows")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    if unknown := [key for key in args.switches if key not in measurable]:
        parser.error(f"{', '.join(unknown)} cannot be measured here; {', '.join(measurable)} can")
    wanted = [measurable[key] for key in args.switches or measurable]
    work = replace(make_work(args.folder, args.size, args.pairs), threads=args.threads)
    for precision in dict.fromkeys(switch.precision for switch in wanted):
        assert precision is not None
        own = [switch for switch in wanted if switch.precision == precision]
        taken = [switch.with_ for switch in own if switch.with_]
        sides = {ALL: lite.side(precision, taken)}
        for switch in own:
            others = [setting for setting in taken if setting != switch.with_]
            sides[switch.key] = lite.side(precision, [*others, switch.without])
        figures = summary(interleave(sides, work, args.repeats))
        for switch in own:
            ratio = compare(figures, ALL, [switch.key])
            print(f"{switch.key:32s} speed {ratio.speed:.2f}x  memory {ratio.memory:.2f}x", flush=True)
            case = {"machine": machine.describe(), "threads": args.threads, "size": args.size}
            pair = {name: figures[name] for name in (ALL, switch.key)}
            more = {"examples": args.pairs, "repeats": args.repeats, "precision": precision}
            record.add(args.out, switch.key, {**case, **more, "sides": pair})


if __name__ == "__main__":
    main()
