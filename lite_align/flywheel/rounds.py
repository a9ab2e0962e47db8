"""What came of the rounds of a loop: a record each, for `rounds.json`, and the table of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from lite_align.evaluate.figures import Figure
from lite_align.evaluate.statistics import bracket, percent
from lite_align.flywheel import promotion, round
from lite_align.flywheel.round import Round
from lite_align.view import View

FILE = "rounds.json"

PROMOTED, REFUSED, ROLLED_BACK, WAITING, STOPPED = "promoted", "refused", "rolled back", "waiting", "stopped"
"""Status of a round. The next one starts from what was promoted; after any other status the loop stops: a gate did not
pass, a person took the promotion back, people have to label first, or the labels were not good enough."""

SHOWN = {"win_rate": "win rate [95 %]", "rule_score": "rule score", "kl": "KL", "kl_start": "KL to start"}
"""Figures of a round that the table has, against what was current before it."""

_WITH = {"kappa": "with people", "alpha": "among people", "rule": "with the rule"}


def record(one: Round, status: str, why: str = "") -> dict[str, Any]:
    """A round that was decided."""
    found = promotion.read(one.run)
    failed = [f"{gate['gate']}: {gate['verdict']}" for gate in found["gates"] if gate["verdict"] != "passed"]
    return {
        "round": one.number,
        "status": status,
        "why": why or "; ".join(failed if status != PROMOTED else ()),
        "folder": one.folder.name,
        "from": found["against"],
        "pairs": len(one.pairs.read_bytes().splitlines()),
        "agreement": round.worth(one),
        "figures": found["figures"],
    }


def show(name: str, records: Sequence[Mapping[str, Any]], view: View) -> None:
    """A table of rounds: gain, KL and agreement."""
    rows = [
        (
            str(one["round"]),
            f"{one['pairs']:,}" if "pairs" in one else "–",
            agreement(one.get("agreement", {})),
            *(_figure(one.get("figures", {}), figure) for figure in SHOWN),
            one["status"],
        )
        for one in records
    ]
    view.table(f"Loop {name}", ("round", "pairs", "kappa", *SHOWN.values(), ""), rows)


def agreement(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """`0.61 with people, 0.55 with the rule`; that it was not measured where there is none."""
    told = [
        f"{figure['value']:.2f} {_WITH[name]}"
        for name, figure in figures.items()
        if figure["value"] is not None
    ]
    return ", ".join(told) or "not measured"


def _figure(figures: Mapping[str, Mapping[str, Any]], name: str) -> str:
    """A win rate with its interval, a figure that has one with what was before it, else the figure."""
    if name not in figures:
        return "–"
    figure = Figure.read(figures[name])
    if name == "win_rate":
        return f"{percent(figure.value)} {bracket(figure.interval)}"
    if figure.before is not None:
        return f"{figure.before:.2f} → {figure.value:.2f}"
    return f"{figure.value:.2f}"
