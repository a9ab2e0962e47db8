"""Write the generated parts of the README: losses, formats, and what the benchmarks measured.

`python -m benchmarks.readme` after a change of any; a test compares.
"""

from collections.abc import Callable
from pathlib import Path

from benchmarks import (
    evaluation,
    figure,
    judges,
    loop,
    pipeline,
    record,
    reward_ablation,
    tables,
    value_heads,
)
from benchmarks.gpu import tables as gpu_tables
from lite_align.data.formats import FORMATS
from lite_align.losses.catalogue import markdown_table

ROOT = Path(__file__).resolve().parents[1]


def formats_table() -> str:
    """One row a format."""
    rows = [f"| `{f.name}` | {f.kind} | {f.description} |" for f in FORMATS.values() if f.kind != "refused"]
    return "\n".join(["| format | kind | looks like |", "|---|---|---|", *rows]) + "\n"


PARTS: dict[str, Callable[[], str]] = {
    "benchmark": tables.section,
    "gpu": lambda: gpu_tables.section(record.RESULTS),
    "evaluation": evaluation.section,
    "judges": judges.section,
    "loop": loop.section,
    "pipeline": pipeline.section,
    "reward-ablation": reward_ablation.section,
    "value-heads": value_heads.section,
    "losses": markdown_table,
    "formats": formats_table,
}
"""What stands between `<!-- NAME -->` and `<!-- end of NAME -->`, by name."""


def between(text: str, begin: str, end: str, content: str) -> str:
    """Replace what stands between two markers."""
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    return head + begin + content + end + tail


def main() -> None:
    """Draw the picture and replace each generated part between its markers."""
    figure.main()
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    for name, part in PARTS.items():
        text = between(text, f"<!-- {name} -->\n", f"<!-- end of {name} -->", part())
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
