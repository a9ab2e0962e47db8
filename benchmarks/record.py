"""Result files: cases by name, each with the machine, the versions and the commit that it was measured on."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def load(path: Path) -> dict[str, dict[str, Any]]:
    """Cases of a result file by name; none if the file is not there or of another layout."""
    if not path.exists():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return content.get("cases", {})


def add(path: Path, name: str, case: dict[str, Any]) -> None:
    """Put one case into a result file; the other cases stay as they are."""
    cases = load(path) | {name: case}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cases": cases}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
