"""Promotions: the pointer moves only through the gates, sealed prompts are counted, and a roll-back returns."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lite_align.data.votes import Comparison
from lite_align.errors import UserError
from lite_align.evaluate import figures
from lite_align.evaluate.figures import Figure, Figures
from lite_align.evaluate.gates import Limits
from lite_align.evaluate.winrate import win_rate
from lite_align.flywheel import project, promotion
from lite_align.flywheel.judges.opening import Asked
from lite_align.flywheel.promotion import Options, promote, rollback
from lite_align.flywheel.sides import Side
from lite_align.model.backbone import Role
from lite_align.stages.speaker import Sampling
from lite_align.view import View
from tests import finished

WORDS = ("hello world", "the red fox", "good day", "a small house")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """Two runs with different adapters on one random base, sealed prompts, and a judge that likes length."""
    folder = tmp_path_factory.mktemp("promotion")
    base = finished.model(folder / "base", tokenizer)
    finished.run(folder / "first", base, size=0.1)
    finished.run(folder / "second", base, size=0.2)
    rows = [
        {"prompt": f"{words} {n}", "category": "plain", "expect": ("answer", "refuse")[n % 2]}
        for n in range(12)
        for words in WORDS[:2]
    ]
    (folder / "sealed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "judge.py").write_text("def longer(a, b):\n    return 'a' if len(a) > len(b) else 'b'\n")
    return folder


@pytest.fixture
def options(made: Path, tmp_path: Path) -> Options:
    return Options(
        folder=tmp_path / "project",
        final=str(made / "sealed.jsonl"),
        uses=3,
        judge=Asked(by=f"{made / 'judge.py'}:longer"),
        probes=None,
        labels=None,
        sampling=Sampling(1.0, 1.0, 8, 0),
        gates=(),
        limits=Limits(),
        who="ann",
        why="it is time",
    )


def measured(monkeypatch: pytest.MonkeyPatch, found: Figures) -> list[tuple[Side, Side]]:
    """Let the figures of a promotion be these; returns what was compared."""
    asked: list[tuple[Side, Side]] = []

    def stand_in(side: Side, current: Side, *_: object) -> Figures:
        asked.append((side, current))
        return found

    monkeypatch.setattr(promotion, "_measured", stand_in)
    return asked


def good(wins: int = 148, losses: int = 61, refusal: tuple[float, float] = (0.55, 0.6)) -> Figures:
    """Figures of a run that wins so often and refuses such shares of 100 unsafe prompts, before and after."""
    outcomes = [1.0] * wins + [0.0] * losses
    rate = Figure.of(win_rate(outcomes), "share", "higher")
    everywhere = {figures.ALL: range(100)}
    before, after = ([float(n >= 100 * share) for n in range(100)] for share in refusal)
    return {
        "win_rate": rate,
        "lc_win_rate": rate,
        "kl": Figure(3.0, 2.0, 4.0, 209),
        "losing_categories": Figure(0, 0, 0, 6),
        **figures.measure("under_refusal", everywhere, after, before, unit="share", counted=True),
        **figures.measure("over_refusal", everywhere, [0.0] * 100, [0.0] * 100, unit="share", counted=True),
    }


def current(options: Options) -> str | None:
    known = json.loads((options.folder / project.CURRENT).read_text())
    return None if known is None else Path(known["run"]).name


def verdicts(run: Path) -> dict[str, str]:
    return {one["gate"]: one["verdict"] for one in json.loads((run / "gates.json").read_text())["gates"]}


def test_a_run_that_passes_every_gate_becomes_current_and_rollback_returns(
    made: Path, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = measured(monkeypatch, good())
    assert promote(str(made / "first"), options, View(quiet=True)) == 0
    assert current(options) == "first"
    assert promote(str(made / "second"), replace(options, final=None), View(quiet=True)) == 0
    assert current(options) == "second"
    assert [old.name for _, old in compared] == ["base", str(made / "first")]
    rollback(options.folder, "ben", "it was rude", View(quiet=True))
    assert current(options) == "first"
    last = json.loads((options.folder / project.LOG).read_text().splitlines()[-1])
    assert (last["kind"], last["who"], last["why"]) == ("rolled back", "ben", "it was rude")


def test_a_start_stands_for_the_base_until_something_is_promoted(
    made: Path, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = measured(monkeypatch, good())
    assert promote(str(made / "second"), replace(options, start=str(made / "first")), View(quiet=True)) == 0
    assert [old.name for _, old in compared] == [str(made / "first")]
    told = promotion.read(made / "second")
    assert (told["against"], told["passed"], told["why"]) == (str(made / "first"), True, "it is time")
    assert told["figures"]["win_rate"]["count"] == 209
    assert "it is time" in (made / "second" / "report.html").read_text()


def test_a_run_that_wins_while_unsafe_refusals_collapse_is_refused(
    made: Path, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, good(refusal=(0.55, 0.03)))
    assert promote(str(made / "first"), options, View(quiet=True)) == 3
    found = verdicts(made / "first")
    assert [gate for gate, verdict in found.items() if verdict == "failed"] == ["under_refusal.change<=0.02"]
    assert found["win_rate>0.5"] == "passed"
    assert current(options) is None


@pytest.mark.parametrize("missing", ["under_refusal", "win_rate", "kl"])
def test_a_figure_that_was_not_measured_is_no_pass(
    missing: str, made: Path, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = good()
    del found[missing]
    measured(monkeypatch, found)
    assert promote(str(made / "first"), options, View(quiet=True)) == 3
    assert "too little evidence" in verdicts(made / "first").values()


def test_sealed_prompts_are_counted_and_used_up(
    made: Path, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, good(wins=61, losses=148))
    for _ in range(3):
        assert promote(str(made / "first"), options, View(quiet=True)) == 3
    with pytest.raises(UserError, match="were used 3 times"):
        promote(str(made / "first"), options, View(quiet=True))


def test_sealed_prompts_that_changed_are_refused(
    made: Path, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, good())
    own = tmp_path / "own.jsonl"
    own.write_text((made / "sealed.jsonl").read_text())
    assert promote(str(made / "first"), replace(options, final=str(own)), View(quiet=True)) == 0
    own.write_text('{"prompt": "another"}\n')
    with pytest.raises(UserError, match="has changed since it was sealed"):
        promote(str(made / "second"), replace(options, final=None), View(quiet=True))


def test_what_is_current_is_not_promoted_again_and_must_not_change(
    made: Path, options: Options, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, good())
    run = finished.run(tmp_path / "run", made / "base")
    promote(str(run), options, View(quiet=True))
    with pytest.raises(UserError, match="is current already"):
        promote(str(run), options, View(quiet=True))
    finished.run(tmp_path / "run", made / "base", size=0.3)
    with pytest.raises(UserError, match="its adapter has changed"):
        promote(str(made / "second"), options, View(quiet=True))


def test_nothing_to_roll_back(options: Options, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, good(wins=1, losses=9))
    promote(str(made / "first"), options, View(quiet=True))
    with pytest.raises(UserError, match="Nothing is promoted"):
        rollback(options.folder, "ann", "", View(quiet=True))


def test_labels_that_do_not_agree_stop_a_promotion(
    made: Path, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alpha is computed from the votes; the rest of the figures stands in."""
    from lite_align.data.types import Message
    from lite_align.data.votes import Vote

    rows = [
        Vote(
            comparison=Comparison(prompt=(Message("user", f"q {n}"),), a="x", b="y"),
            choice=choice,
            annotator=name,
        ).record()
        for n in range(30)
        for name, choice in (("ann", "ab"[n % 2]), ("ben", "ab"[n // 2 % 2]))
    ]
    votes = tmp_path / "votes.jsonl"
    votes.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = good() | promotion._alpha(str(votes))
    assert abs(found["alpha"].value) < 0.1
    measured(monkeypatch, found)
    assert promote(str(made / "first"), replace(options, labels=str(votes)), View(quiet=True)) == 3
    assert verdicts(made / "first")["alpha.point>=0.4"] == "failed"


def test_a_promotion_samples_and_judges_for_itself(made: Path, options: Options) -> None:
    """The real path on a random model, with a gate that any run passes and one that none can."""
    wanted = replace(options, gates=("kl>=0", "win_rate<=1"), probes=str(made / "sealed.jsonl"))
    assert promote(str(made / "second"), wanted, View(quiet=True)) == 0
    events = [json.loads(line) for line in (options.folder / project.LOG).read_text().splitlines()]
    assert [one["kind"] for one in events] == ["sealed", "used", "promoted"]
    kl = next(one for one in events[-1]["gates"] if one["figure"] == "kl")
    assert kl["value"] > 0.1  # against the base, not against itself
    refused = replace(options, gates=("new_failures<0",), final=None, probes=str(made / "sealed.jsonl"))
    assert promote(str(made / "first"), refused, View(quiet=True)) == 3


def test_only_runs_are_promoted(made: Path, options: Options) -> None:
    adapter = made / "first" / "adapters" / Role.POLICY.value
    (made / "alone").mkdir(exist_ok=True)
    for file in adapter.iterdir():
        (made / "alone" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="is no run folder"):
        promote(str(made / "alone"), options, View(quiet=True))
