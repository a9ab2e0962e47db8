"""Write the generated parts of the README: losses, formats, and the benchmark's figures.

`python -m benchmarks.readme` after a change of either; a test compares.
"""

import json
from pathlib import Path
from typing import Any

from lite_align.data.formats import FORMATS
from lite_align.losses.preference import markdown_table

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "dpo-cpu.json"


def formats_table() -> str:
    """One row a format."""
    rows = [f"| `{f.name}` | {f.kind} | {f.description} |" for f in FORMATS.values() if f.kind != "refused"]
    return "\n".join(["| format | kind | looks like |", "|---|---|---|", *rows]) + "\n"


def benchmark_table() -> str:
    """The figures of the result file with the machine named."""
    found: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))
    machine = found["machine"]
    lines = [
        "`python -m benchmarks.dpo` against TRL 1.16 on the same rows, weights, LoRA shape, batch and precision, "
        "interleaved in one run, reference pass included, medians. TRL with its best flags and its completion-only "
        "head switched on for the CPU (as installed it is several times slower there). A 15M-parameter model, "
        "prompts of about 115 and answers of about 47 tokens. Both sides with OpenMP's default waiting; the command "
        "line sets OMP_WAIT_POLICY=PASSIVE where it is unset.",
        "",
        "| precision | epochs | TRL, CPU s a pair | lite-align | pairs per CPU second | memory |",
        "|---|---|---|---|---|---|",
    ]
    for result in found["results"]:
        theirs, ours = result["trl"][result["best_trl"]], result["lite"]
        lines.append(
            f"| {result['precision']} | {result['epochs']} | {theirs['seconds_per_pair']:.3f} | "
            f"{ours['seconds_per_pair']:.3f} | **{result['speed_ratio']:.2f}x** | "
            f"**{result['memory_ratio']:.2f}x** |"
        )
    counters = found["results"][0]["counters"]
    per_pair = found["results"][0]["trl"][found["results"][0]["best_trl"]]["tokens_per_pair"]
    lines += [
        "",
        f"Tokens a pair: {counters['tokens per pair']:.0f}, TRL {per_pair:.0f} with padding. Matrix products a "
        f"micro-batch: {counters['matrix products per microbatch']:.0f}; saved for the backward pass: "
        f"{counters['saved bytes per token'] / 1000:.0f} kB a token.",
        "",
        f"Machine: {machine['cpu']}, {machine['memory']}, {found['threads']} threads; {machine['versions']}; "
        f"commit {machine['commit']}. GPU: not measured yet.",
    ]
    return "\n".join(lines) + "\n"


def between(text: str, begin: str, end: str, content: str) -> str:
    """Replace what stands between two markers."""
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    return head + begin + content + end + tail


def main() -> None:
    """Replace each generated part between its markers."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    parts = {"benchmark": benchmark_table(), "losses": markdown_table(), "formats": formats_table()}
    for name, content in parts.items():
        text = between(text, f"<!-- {name} -->\n", f"<!-- end of {name} -->", content)
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
