"""`python -m benchmarks.gpu PART`: measure on a CUDA card, within a budget of minutes, and write a result file.

Parts: `tests` (the marked GPU tests), `dpo` (against TRL), `unsloth` (against Unsloth), `memory` (8 to 24 GB).
What does not fit the budget is left out and listed; `--only` makes up for it later, and the file keeps both.
`--small` runs the same code on small shapes, on a CPU too; its files are no measurement and never counted as one.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as xml
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.gpu.job import MIXES, Job
from benchmarks.gpu.opponents import TRL, UNSLOTH
from benchmarks.gpu.sides import ROOT, Scratch
from benchmarks.gpu.tables import CAPS, rates, told

LAYERS = 16  # of the checkpoint that Unsloth loads
SCOUT = {"warmup": 1, "steps": 3}
SMALL = {"small": True, "batch": 2, "warmup": 1, "steps": 2}
EXPECTED = 60.0  # seconds of a job that nobody has seen yet
SCOUT_LIMIT = 90.0  # most seconds that trying a variant may take


class Record:
    """The result file of a part: cells by name, each with its commit; a cell that is done again replaces itself."""

    def __init__(self, path: Path, head: dict[str, Any], commit: str) -> None:
        self.path, self.commit = path, commit
        self.found = {**head, "cells": {}}
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if known.get("device") == head["device"]:
            self.found["cells"] = known["cells"]

    def add(self, key: str, cell: dict[str, Any]) -> None:
        """Put a cell in place and write the file, so that what was measured survives whatever comes."""
        self.found["cells"][key] = {**cell, "commit": self.commit}
        self.write()
        print(f"{key}: {told(cell)}", flush=True)

    def write(self) -> None:
        """Write the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")


class Part:
    """One run of a part: what is left of its budget, and where its cells go."""

    def __init__(self, args: argparse.Namespace, scratch: Scratch) -> None:
        self.args, self.scratch = args, scratch
        self.deadline = time.monotonic() + 60 * args.minutes
        self.longest: dict[str, float] = {}
        self.left_out: list[str] = []
        card = scratch.run(Job("card"), self.left)
        if "error" in card:
            raise SystemExit(f"The device cannot be measured:\n{card['error']}")
        self.card = (card["flops"], card["bandwidth"])
        self.cuda = card["device"]["kind"] == "cuda"
        if not self.cuda and not args.small:
            raise SystemExit("There is no CUDA device. --small runs everything in CPU size, to try the kit.")
        slug = re.sub(r"[^a-z0-9]+", "-", card["device"]["name"].lower()).strip("-")
        name = f"{'small' if args.small else 'gpu'}-{args.part}-{slug}.json"
        head = {
            "part": args.part,
            "small": args.small,
            **{k: card[k] for k in ("device", "flops", "bandwidth")},
        }
        self.record = Record(args.out / name, head, args.commit)
        print(
            f"{card['device']['name']}: {card['flops'] / 1e12:.0f} TFLOP/s, {card['bandwidth'] / 1e12:.2f} TB/s"
        )

    @property
    def left(self) -> float:
        """Seconds left of the budget."""
        return max(1.0, self.deadline - time.monotonic())

    def wanted(self, key: str) -> bool:
        """Whether `--only` names this cell."""
        return not self.args.only or any(word in key for word in self.args.only)

    def run(self, key: str, job: Job, *, limit: float | None = None) -> dict[str, Any]:
        """Do a job and record its cell; without the time for it, list it as left out."""
        kind = f"{job.side} {job.steps}"
        if self.left < self.longest.get(kind, 1.0 if self.args.small else EXPECTED):
            self.left_out.append(key)
            return {"error": "left out: no time"}
        if self.args.small:
            job = replace(job, **SMALL)
        job = replace(job, settings=tuple(self.args.set), card=self.card)
        cell = self.scratch.run(job, min(self.left, limit or self.left))
        self.longest[kind] = max(self.longest.get(kind, 0.0), cell["seconds"])
        self.record.add(key, cell)
        return cell

    def best(self, side: str, variants: list[str], about: dict[str, Any]) -> str | None:
        """Try every variant of an opponent shortly and return the fastest, reference pass included."""
        found = {}
        for name in variants:
            job = Job(side, variant=name, **SCOUT, **about)
            cell = self.run(f"try {side}/{name}", job, limit=SCOUT_LIMIT)
            if "error" not in cell:
                found[name] = rates(cell)["epoch"]
        if not found:
            return None
        name = max(found, key=lambda name: found[name])
        print(f"{side} is the fastest with: {name}", flush=True)
        return name

    def close(self) -> None:
        """Say what was left out, and where the file is."""
        if not self.record.found["cells"]:
            return
        self.record.found["left_out"] = self.left_out
        self.record.write()
        if self.left_out:
            print("left out for lack of time (see --only):", *self.left_out, sep="\n  ")
        print(f"written: {self.record.path}")


def interleaved(part: Part, cases: list[tuple[str, dict[str, Any]]], opponent: str, best: str | None) -> None:
    """Both sides of every case in turn, then all of it again: what is worth most comes first."""
    for repeat in range(part.args.repeats):
        for name, about in cases:
            sides = [("lite", ""), *([] if best is None else [(opponent, best)])]
            for side, variant in sides if repeat % 2 == 0 else sides[::-1]:
                key = f"{name}/{side}/{repeat}"
                if part.wanted(key):
                    part.run(key, Job(side, variant=variant, **about))


def dpo(part: Part) -> None:
    """Against TRL at its best flags, three mixes of lengths and a second architecture."""
    variants = [part.args.variant] if part.args.variant else list(TRL)
    best = variants[0] if len(variants) == 1 else part.best("trl", variants, {})
    cases = [(f"llama-3-8b/{mix}", {"mix": mix}) for mix in MIXES]
    cases.append(("qwen2.5-7b/uf", {"model": "qwen2.5-7b"}))
    interleaved(part, cases, "trl", best)


def against_unsloth(part: Part) -> None:
    """Against Unsloth on a checkpoint of 16 blocks, which both sides load."""
    if not part.cuda:
        print("not run: needs a CUDA device")
        return
    folder = str(part.scratch.folder / "checkpoint")
    made = part.run("checkpoint", Job("checkpoint", layers=LAYERS, folder=folder))
    if "error" in made:
        return
    about = {"layers": LAYERS, "folder": folder}
    variants = [part.args.variant] if part.args.variant else list(UNSLOTH)
    best = variants[0] if len(variants) == 1 else part.best("unsloth", variants, about)
    cases = [(f"llama-3-8b, {LAYERS} blocks/{mix}", {**about, "mix": mix}) for mix in MIXES]
    interleaved(part, cases, "unsloth", best)


def memory(part: Part) -> None:
    """Smaller cards: the longest sequence that fits, and the speed of what the planner chooses there."""
    for variant in ("largest", "speed"):
        for cap in CAPS:
            key = f"llama-3-8b/{cap} GB/{variant}"
            if part.wanted(key):
                job = Job("memory", cap=cap * 10**9, variant=variant, warmup=2, steps=5)
                part.run(key, job)


def tests(part: Part) -> None:
    """The marked GPU tests."""
    files = sorted(
        str(file)
        for file in (ROOT / "tests").rglob("test_*.py")
        if "pytest.mark.gpu" in file.read_text(encoding="utf-8") and file.parent.name != "benchmarks"
    )
    report = part.scratch.folder / "tests.xml"
    # A warning of another version is no failure here, and the project's own options ask for plugins of pytest.
    options = [
        "-o",
        "addopts=",
        "-m",
        "gpu",
        "-q",
        "-W",
        "default",
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
    ]
    visible = {} if part.args.small else {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0")}
    try:
        subprocess.run(
            [sys.executable, "-m", "pytest", *options, *files],
            cwd=ROOT,
            env=part.scratch.environment() | visible,
            timeout=part.left,
            check=False,
        )
    except subprocess.TimeoutExpired:
        part.left_out.append("tests: stopped for lack of time")
    part.record.add("tests", counted(report))


def counted(report: Path) -> dict[str, Any]:
    """Numbers of tests in a JUnit report, and the names of those that failed."""
    if not report.exists():
        return {"error": "pytest wrote no report"}
    cases = list(xml.parse(report).getroot().iter("testcase"))
    broken = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {
        "passed": len(cases) - len(broken) - skipped,
        "failed": len(broken),
        "skipped": skipped,
        "failures": [f"{case.get('classname')}::{case.get('name')}" for case in broken],
    }


PARTS = {"tests": tests, "dpo": dpo, "unsloth": against_unsloth, "memory": memory}


def commit() -> str:
    """The commit of this checkout, marked if files differ from it."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def words(text: str) -> Iterator[str]:
    """The parts of a comma-separated list."""
    return filter(None, (word.strip() for word in text.split(",")))


def main() -> None:
    """Parse, run one part, write its file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--small", action="store_true", help="CPU-sized shapes, to try the kit")
    parser.add_argument("--minutes", type=float, default=9.5, help="budget of the whole run")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of results")
    parser.add_argument(
        "--only", type=lambda t: list(words(t)), help="cells whose name has one of these words"
    )
    parser.add_argument("--variant", help="of the opponent, in place of trying all of them")
    parser.add_argument("--repeats", type=int, default=2, help="rounds over all cases, as far as time allows")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of lite-align's recipe"
    )
    parser.add_argument("--commit", default=commit(), help="where there is no git")
    parser.add_argument("--kit", type=Path, help="folder of wheels to use before the machine's packages")
    args = parser.parse_args()
    known = {"dpo": TRL, "unsloth": UNSLOTH}.get(args.part, {})
    if args.variant and args.variant not in known:
        parser.error(f"--variant {args.variant}: {args.part} has {', '.join(known) or 'none'}")
    with tempfile.TemporaryDirectory() as folder:
        part = Part(args, Scratch(Path(folder), args.kit))
        PARTS[args.part](part)
        part.close()


if __name__ == "__main__":
    main()
