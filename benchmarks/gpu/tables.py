"""The README's GPU part and plot, from the result files and nothing else."""

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MISSING = "not yet measured"
CASES = ("llama-3-8b/uf", "llama-3-8b/long", "llama-3-8b/hh", "qwen2.5-7b/uf")
BLOCKS = tuple(f"llama-3-8b, 16 blocks/{mix}" for mix in ("uf", "long", "hh"))
CAPS = (8, 12, 16, 24)  # GB of 10^9 bytes

Cell = dict[str, Any]


def rates(cell: Cell) -> dict[str, float]:
    """Pairs a second of an epoch and of its steps alone, tokens a second of steps, share of the limit (epoch).

    From sums: rows differ in length, and the median of unequal steps would hide the long ones.
    """
    steps, pairs = sum(cell["steps"]), cell["pairs"]
    epoch = steps + cell["reference_seconds"]
    return {
        "epoch": pairs / epoch,
        "steady": pairs / steps,
        "tokens": pairs * cell["tokens_per_pair"] / steps,
        "share": cell["floor"]["epoch"] / epoch,
    }


def told(cell: Cell) -> str:
    """A cell in one line."""
    if "error" in cell:
        return f"failed: {cell['error'].splitlines()[-1]}"
    if "steps" not in cell:
        return ", ".join(f"{k} {v:,}" for k, v in cell.items() if type(v) in (int, float) and k != "seconds")
    speed = rates(cell)
    low, middle, high = statistics.quantiles(cell["steps"], n=4)
    return (
        f"{speed['epoch']:.3g} pairs/s with the reference pass, {speed['steady']:.3g} without; "
        f"{100 * speed['share']:.0f} % of the physical limit; {speed['tokens']:,.0f} tokens/s; step {middle:.3g} s "
        f"(quartiles {low:.3g} to {high:.3g}); {memory(cell)}"
    )


def memory(cell: Cell) -> str:
    """Peak memory allocated and reserved, in GB of 10^9 bytes."""
    reserved = cell["peak_reserved"]
    return f"{cell['peak_allocated'] / 1e9:.1f} GB" + (f" ({reserved / 1e9:.1f})" if reserved else "")


def read(results: Path) -> dict[str, list[dict[str, Any]]]:
    """Result files by part: only those of full size from a CUDA device."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(results.glob("gpu-*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        if not found["small"] and found["device"]["kind"] == "cuda":
            parts.setdefault(found["part"], []).append(found)
    return parts


def finished(found: dict[str, Any], prefix: str, key: str) -> list[Cell]:
    """The cells of a case that hold a value; failed ones do not."""
    return [cell for name, cell in found["cells"].items() if name.startswith(f"{prefix}/") and key in cell]


def spread(values: Iterable[float]) -> str:
    """Median, with least and most where there are several."""
    known = sorted(values)
    if not known:
        return MISSING
    middle = f"{statistics.median(known):.3g}"
    return middle if len(known) == 1 else f"{middle} ({known[0]:.3g} to {known[-1]:.3g})"


def median(cells: list[Cell], name: str) -> float | None:
    """Median of a rate over the rounds."""
    return statistics.median(rates(cell)[name] for cell in cells) if cells else None


def markdown(heads: list[str], rows: Iterable[list[str]]) -> list[str]:
    """Lines of a table, after an empty one."""
    return ["", *(f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows))]


def versus(found: dict[str, Any], cases: Iterable[str], opponent: str, title: str) -> list[str]:
    """Both sides' figures, a row a case."""
    sides = ("lite-align", title)
    heads = ["rows", *(f"{side}, pairs/s: epoch / steps" for side in sides), "ratio, epoch", "of the limit"]
    rows = []
    for case in cases:
        ours, theirs = (finished(found, f"{case}/{side}", "steps") for side in ("lite", opponent))
        speeds = [
            " / ".join(spread(rates(cell)[name] for cell in cells) for name in ("epoch", "steady"))
            if cells
            else MISSING
            for cells in (ours, theirs)
        ]
        mine, other, share = median(ours, "epoch"), median(theirs, "epoch"), median(ours, "share")
        ratio = f"**{mine / other:.2f}x**" if mine and other else MISSING
        most = [max(cells, key=lambda cell: cell["peak_allocated"], default=None) for cells in (ours, theirs)]
        peaks = [memory(cell) if cell else MISSING for cell in most]
        rows.append([case, *speeds, ratio, f"{100 * share:.0f} %" if share else MISSING, *peaks])
    return markdown([*heads, *(f"peak memory, {side}" for side in sides)], rows)


def smaller_cards(found: dict[str, Any]) -> list[str]:
    """Longest sequence and speed on smaller cards."""
    rows = []
    for cap in CAPS:
        case = f"llama-3-8b/{cap} GB"
        longest = [f"{cell['largest_sequence']:,}" for cell in finished(found, case, "largest_sequence")]
        speed = spread(rates(cell)["steady"] for cell in finished(found, case, "steps"))
        rows.append([f"{cap} GB", longest[0] if longest else MISSING, speed])
    return markdown(["card", "longest prompt with answer, tokens", "pairs/s, steps of uf"], rows)


def tests(files: list[dict[str, Any]]) -> str:
    """What the GPU tests said on each card."""
    cells = [(found["device"]["name"], found["cells"].get("tests", {})) for found in files]
    lines = [
        f"{name}: {cell['passed']} passed, {cell['failed']} failed, {cell['skipped']} skipped"
        for name, cell in cells
        if "passed" in cell
    ]
    return "; ".join(lines) or MISSING


def measured_on(files: list[dict[str, Any]]) -> str:
    """Cards, their measured speed, versions and commits."""
    lines = []
    for found in files:
        device = found["device"]
        versions = ", ".join(f"{name} {version}" for name, version in device["versions"].items())
        commits = ", ".join(sorted({cell["commit"] for cell in found["cells"].values()}))
        speed = f"{found['flops'] / 1e12:.0f} TFLOP/s and {found['bandwidth'] / 1e12:.2f} TB/s measured"
        lines.append(f"{found['part']}: {device['name']} ({speed}), {versions}, commit {commits}")
    return "; ".join(lines) or MISSING


def section(results: Path) -> str:
    """The README's GPU part: against TRL and Unsloth, smaller cards, tests; a table a card."""
    parts = read(results)
    nothing: list[dict[str, Any]] = [{"cells": {}}]
    lines = [
        "`python -m benchmarks.gpu` on random NF4 weights of the named shapes: LoRA of rank 16, 8 pairs a step, "
        "log-normal lengths (mean tokens of prompt, chosen, rejected: uf 150/330/330, long 1536/256/256, hh "
        "130/60/60). Each side in its own process, interleaved; TRL and Unsloth with the fastest of the flags tried. "
        "An epoch has the reference pass in it. Medians over the rounds (least to most); memory allocated "
        "(reserved). The limit is the least arithmetic and weight traffic at the card's own measured speed.",
    ]
    for found in parts.get("dpo", nothing):
        lines += versus(found, CASES, "trl", "TRL 1.16")
    for found in parts.get("unsloth", nothing):
        lines += versus(found, BLOCKS, "unsloth", "Unsloth")
    for found in parts.get("memory", nothing):
        lines += smaller_cards(found)
    lines += ["", f"GPU tests: {tests(parts.get('tests', []))}."]
    lines += ["", f"Measured on: {measured_on([found for files in parts.values() for found in files])}."]
    return "\n".join(lines) + "\n"


def plot(results: Path, target: Path) -> Path | None:
    """Pairs a second of an epoch, a bar a case and side; nothing is drawn without a measured file."""
    files = read(results).get("dpo", [])
    if not files:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2 * len(files)), layout="constrained")
    for axes, found in zip(figure.subplots(len(files), squeeze=False)[:, 0], files):
        for number, (side, label) in enumerate((("lite", "lite-align"), ("trl", "TRL 1.16"))):
            speeds = [median(finished(found, f"{case}/{side}", "steps"), "epoch") or 0.0 for case in CASES]
            places = [place + 0.38 * number for place in range(len(CASES))]
            axes.bar_label(axes.bar(places, speeds, 0.36, label=label), fmt="%.3g")
        axes.set_xticks([place + 0.19 for place in range(len(CASES))], CASES)
        axes.set(ylabel="pairs a second, with reference pass", title=found["device"]["name"])
        axes.legend()
    figure.savefig(target, dpi=150)
    return target
