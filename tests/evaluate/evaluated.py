"""What `eval` and its gates leave in a run folder, with invented figures."""

import json
from pathlib import Path
from typing import Any

from lite_align.data.types import Message
from lite_align.data.votes import Comparison, Vote

CATEGORIES = ("fact", "howto", "feeling", "unsafe", "borderline")


def figure(value: float, half: float, before: float | None, *, unit: str, better: str = "higher") -> dict:
    """A figure whose interval is `half` to each side."""
    change = None
    if before is not None:
        change = {"value": value - before, "low": value - before - half, "high": value - before + half}
    ends = [value - half, value + half]
    if unit == "share":
        ends = [max(0.0, ends[0]), min(1.0, ends[1])]
    return {
        **{"value": value, "low": ends[0], "high": ends[1], "count": 60, "unit": unit},
        **{"before": before, "better": better, "change": change},
    }


def evaluation() -> dict[str, Any]:
    """An eval.json."""
    figures = {
        "loss": figure(0.52, 0.04, 0.693, unit="nats", better="lower"),
        "accuracy": figure(0.78, 0.09, 0.5, unit="share"),
        "margin": figure(1.31, 0.3, 0.0, unit="", better="higher"),
        "kl": figure(1.9, 0.4, None, unit="nats", better=""),
        "tokens": figure(22.4, 1.9, 24.0, unit="tokens", better=""),
        "refusal/unsafe": figure(0.95, 0.05, 0.8, unit="share"),
        "refusal/borderline": figure(0.2, 0.12, 0.5, unit="share", better="lower"),
        "over_refusal": figure(0.04, 0.03, 0.1, unit="share", better="lower"),
        "under_refusal": figure(0.05, 0.05, 0.2, unit="share", better="lower"),
        "distinct_2": figure(0.61, 0.05, 0.6, unit="share"),
    }
    for number, name in enumerate(CATEGORIES):
        figures[f"accuracy/{name}"] = figure(0.6 + 0.08 * number, 0.2, 0.5, unit="share")
        figures[f"kl/{name}"] = figure(1.0 + number / 2, 0.6, None, unit="nats", better="")
    for number, name in enumerate(("length-short", "length-middle", "length-long")):
        figures[f"accuracy/{name}"] = figure(0.85 - 0.1 * number, 0.15, 0.5, unit="share")
    return {
        **{"schema": 1, "time": "2026-01-05T11:00:00+00:00", "command": ["lite-align", "eval", "runs/a"]},
        **{"data": {"path": "held.jsonl", "sha256": "ab" * 32, "prompts": 60, "pairs": 60}},
        **{"probes": {"path": "probes.jsonl", "prompts": 24}, "figures": figures},
    }


def gates() -> dict[str, Any]:
    """A gates.json with one of each verdict."""
    row = {"value": 0.95, "low": 0.86, "high": 0.98, "count": 60}
    return {
        "schema": 1,
        "gates": [
            {**row, "gate": "refusal/unsafe>=0.8", "figure": "refusal/unsafe", "verdict": "passed"}
            | {"why": "the whole interval lies above 0.8"},
            {**row, "gate": "kl<=1", "figure": "kl", "verdict": "failed", "value": 1.9}
            | {"low": 1.5, "high": 2.3, "why": "the whole interval lies above 1"},
            {"gate": "alpha>=0.4", "figure": "alpha", "verdict": "too little evidence", "value": None}
            | {"low": None, "high": None, "count": 0, "why": "no labels were given"},
        ],
    }


def promotion() -> dict[str, Any]:
    """A promotion.json of a run that was refused."""
    return {
        **{"schema": 1, "time": "2026-01-05T13:00:00+00:00", "who": "ann", "why": "fewer needless refusals"},
        **{
            "run": "runs/b",
            "against": "runs/a",
            "project": "project",
            "passed": False,
            "gates": gates()["gates"],
        },
        "figures": {"kl": figure(1.9, 0.4, None, unit="nats", better="lower")},
    }


def put(folder: Path, **files: Any) -> Path:
    """Write JSON files into a folder: `put(folder, eval=…, gates=…)`."""
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def comparison() -> dict[str, Any]:
    """A compare.json of side b against side a."""
    figures = {
        "win_rate": figure(0.64, 0.09, None, unit="share"),
        "lc_win_rate": figure(0.57, 0.1, None, unit="share"),
    }
    for number, name in enumerate(CATEGORIES):
        figures[f"win_rate/{name}"] = figure(0.45 + 0.08 * number, 0.2, None, unit="share")
    return {
        **{"schema": 1, "time": "2026-01-05T12:00:00+00:00", "figures": figures},
        **{"command": ["lite-align", "compare", "runs/a", "runs/b"], "sides": ["runs/a", "runs/b"]},
        **{"judge": "reward runs/reward-0001", "ranking": None, "same": 2, "flagged": 0},
        "position_bias": {"value": 0.52, "low": 0.43, "high": 0.61, "count": 120},
        "failures": {"no verdict": 1},
        "agreement": {
            "proved": True,
            "figures": {
                "kappa": figure(0.61, 0.2, None, unit=""),
                "kappa/fact": figure(0.5, 0.3, None, unit=""),
            },
        },
    }


def judged(count: int = 12) -> list[dict[str, Any]]:
    """Rows of comparisons.jsonl."""
    choices = ("b", "a", "tie", "bad")
    return [
        Vote(
            comparison=Comparison(
                prompt=(Message("user", f"Question {number} of a visitor?"),),
                a="The library opens at ten. It is a nice building.",
                b="The library opens at ten on Saturday.",
                category=CATEGORIES[number % len(CATEGORIES)],
                model_a="runs/a",
                model_b="runs/b",
            ),
            choice=choices[number % 4],  # type: ignore[arg-type]
            annotator="reward-0001",
            kind="reward",
            first="both",
            preference=0.3,
        ).record()
        for number in range(count)
    ]


def compared(folder: Path, record: dict[str, Any] | None = None, rows: list[dict] | None = None) -> Path:
    """A folder of `compare`."""
    folder.mkdir()
    given = judged() if rows is None else rows
    text = "".join(json.dumps(row) + "\n" for row in given)
    (folder / "comparisons.jsonl").write_text(text, encoding="utf-8")
    return put(folder, compare=comparison() if record is None else record)
