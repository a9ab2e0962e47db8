"""Proofs and gates in a word each."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lite_align.evaluate.folder import read
from lite_align.evaluate.pages.badges import gate_badges, gates, promotion, proofs

Builder = Callable[..., Path]


def test_badges_say_what_was_proved_and_what_was_not(build: Builder) -> None:
    fine = proofs(read(build()))
    assert [badge.look for badge in fine] == ["passed"] * 4
    bad = build(
        "unproved",
        run={
            "status": "failed",
            "reference": {"base_sha256": "ab", "proof": {"loss": 0.75, "expected": 0.6931}},
        },
        metrics=[{"step": 1, "loss": float("nan"), "moved": 0.004}],
    )
    assert [(badge.name, badge.word) for badge in proofs(read(bad))] == [
        ("starts at its reference", "FAILED"),
        ("adapter moves", "FAILED"),
        ("all losses finite", "FAILED"),
    ]


def test_gates_have_three_looks_and_anything_unknown_is_no_pass(build: Builder) -> None:
    folder = build()
    known = {"value": 0.61, "low": 0.52, "high": 0.69, "count": 120}
    rows = [
        {"gate": "win_rate>=0.55", "figure": "win_rate", "verdict": "passed", "why": "above", **known},
        {"gate": "kl<=20", "figure": "kl", "verdict": "failed", "value": 31.0, "low": None, "high": None},
        {"gate": "alpha>=0.4", "figure": "alpha", "verdict": "too little evidence", "value": None},
        {"gate": "odd", "verdict": "PASSED!"},
        "no object",
    ]
    (folder / "gates.json").write_text(json.dumps({"schema": 1, "gates": rows}))
    evaluation = {"figures": {"win_rate": {"unit": "share"}, "kl": {"unit": "nats"}}}
    (folder / "eval.json").write_text(json.dumps(evaluation))
    found = gates(read(folder).gates, read(folder).evaluation)
    assert [(gate.figure, gate.threshold, gate.look, gate.word) for gate in found] == [
        ("kl", "<=20", "failed", "FAILED"),
        ("alpha", ">=0.4", "open", "too little evidence"),
        ("odd", "odd", "open", "PASSED!"),
        ("win_rate", ">=0.55", "passed", "passed"),
    ]
    assert [(gate.value, gate.interval, gate.count) for gate in found] == [
        ("31 nats", "–", "–"),
        ("–", "–", "–"),
        ("–", "–", "–"),
        ("61 %", "[52 %, 69 %]", "120"),
    ]
    assert [badge.evidence for badge in gate_badges(found)] == ["31 nats", "–", "–", "61 % [52 %, 69 %]"]


def test_gates_take_units_from_every_record() -> None:
    known = {"value": 0.61, "low": 0.52, "high": 0.69, "count": 120, "verdict": "passed"}
    rows = [{"gate": f"{name}>=0.5", "figure": name, **known} for name in ("win_rate", "accuracy")]
    found = gates(
        {"gates": rows},
        {"figures": {"win_rate": {"unit": "share"}}},
        {"figures": {"accuracy": {"unit": "share"}}},
    )
    assert [gate.value for gate in found] == ["61 %", "61 %"]


@pytest.mark.parametrize(
    ("passed", "look", "word"),
    [(True, "passed", "promoted"), (False, "failed", "refused"), (1, "open", "not decided")],
)
def test_a_promotion_is_what_was_decided_and_nothing_else(passed: object, look: str, word: str) -> None:
    rows = [{"gate": "kl<=20", "figure": "kl", "verdict": "passed"}]
    found = promotion({"passed": passed, "who": "ann", "why": "", "gates": rows})
    assert found is not None
    assert (found.look, found.word) == (look, word)
    assert dict(found.facts)["who"] == "ann"
    assert dict(found.facts)["gates"] == "1 of 1 passed"
    assert "against" not in dict(found.facts)
    assert promotion({}) is None
