"""`compare`: who wins by a judge whose verdicts are known, what is asked of it, and what stands in the files."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lite_align import cli
from lite_align.data.types import Message
from lite_align.data.votes import Comparison, Vote
from lite_align.flywheel import bench as benches
from lite_align.flywheel import compare as comparing
from lite_align.flywheel.judges.judgement import Judgement
from lite_align.view import View
from tests.flywheel.small import Made, lines

QUICK = ("--max-tokens", "8", "--quiet")


@dataclass
class Stub:
    """Prefers the answers of whom it is told, in the order of the comparisons."""

    verdicts: list[str]
    name: str = "stub"
    kind: Any = "rule"
    rubric: Any = None
    asked: list[Comparison] = field(default_factory=list)

    def judge(self, comparisons: Any, advance: Any = lambda count: None) -> list[Judgement]:
        self.asked += comparisons
        return [Judgement(verdict) for verdict in self.verdicts]  # type: ignore[arg-type]

    def tell(self) -> list[str]:
        return []

    def close(self) -> None:
        pass


def comparison(n: int, a: str = "x", b: str = "y") -> Comparison:
    prompt = (Message("user", f"question {n}"),)
    return Comparison(prompt=prompt, a=a, b=b, category="ab"[n % 2], model_a="old", model_b="new")


def compared(out: Path, *arguments: object) -> tuple[int, dict[str, Any], list[Vote]]:
    code = cli.run(["compare", *map(str, arguments), "--out", str(out), *QUICK])
    record = json.loads((out / "compare.json").read_text(), parse_constant=lambda text: 1 / 0)
    rows = (out / "comparisons.jsonl").read_text().splitlines()
    return code, record, [Vote.read(json.loads(line)) for line in rows]


def test_the_same_answer_ties_without_being_judged() -> None:
    judge = Stub(["b", "a"])
    found = comparing.judge_all(
        [comparison(0), comparison(1, "z", "z"), comparison(2)], judge, View(quiet=True)
    )
    assert [vote.choice for vote in found.votes] == ["b", "tie", "a"]
    assert [one.a for one in judge.asked] == ["x", "x"]
    assert found.votes[1].note == comparing.SAME


def test_the_win_rate_by_hand() -> None:
    judge = Stub(["b", "b", "tie", "a", "b", "b"])
    votes = comparing.judge_all([comparison(n) for n in range(6)], judge, View(quiet=True)).votes
    found = comparing.figures_of(votes, "new")
    assert found["win_rate"].value == pytest.approx(4.5 / 6)
    assert found["win_rate/a"].value == pytest.approx(2.5 / 3)  # b, tie, b
    assert found["win_rate/b"].value == pytest.approx(2 / 3)  # b, a, b
    assert found["losing_categories"].value == 0
    assert comparing.figures_of(votes, "old")["win_rate"].value == pytest.approx(1.5 / 6)


def test_a_category_that_loses_beyond_chance_is_counted() -> None:
    judge = Stub(["ba"[n % 2] for n in range(40)])  # wins every a, loses every b
    votes = comparing.judge_all([comparison(n) for n in range(40)], judge, View(quiet=True)).votes
    assert comparing.figures_of(votes, "new")["losing_categories"].value == 1


def test_two_runs_by_a_function(made: Made, tmp_path: Path) -> None:
    by = ("--by", f"{made.judge}:longer")
    arguments = (made.first, made.second, "--data", made.prompts, "--samples", 3, *by)
    code, record, votes = compared(tmp_path / "one", *arguments)
    assert code == 0
    assert record["sides"] == [str(made.first), str(made.second)]
    assert len(votes) == 15
    longer = [
        (len(v.comparison.b) > len(v.comparison.a)) + 0.5 * (len(v.comparison.b) == len(v.comparison.a))
        for v in votes
    ]
    assert record["figures"]["win_rate"]["value"] == pytest.approx(sum(longer) / 15)
    assert record["figures"]["win_rate"]["count"] == 5
    assert {vote.kind for vote in votes} == {"rule"}
    assert record["agreement"] is None
    assert record["ranking"] is None


def test_three_sides_are_ranked_and_every_two_compared(made: Made, tmp_path: Path) -> None:
    arguments = ("base", made.first, made.second, "--data", made.prompts, "--by", f"{made.judge}:longer")
    _, record, votes = compared(tmp_path / "three", *arguments)
    pairs = {(vote.comparison.model_a, vote.comparison.model_b) for vote in votes}
    assert pairs == {
        ("base", str(made.first)),
        ("base", str(made.second)),
        (str(made.first), str(made.second)),
    }
    assert set(record["ranking"]) == {"base", str(made.first), str(made.second)}
    assert cli.run(["report", str(tmp_path / "three")]) == 0


def test_equal_adapters_tie_on_every_prompt(made: Made, tmp_path: Path) -> None:
    _, record, votes = compared(
        tmp_path / "tie", made.first, made.adapter, "--data", made.prompts, "--by", f"{made.judge}:longer"
    )
    assert {vote.choice for vote in votes} == {"tie"}
    assert record["same"] == 5
    rate = record["figures"]["win_rate"]
    assert rate["value"] == 0.5
    assert rate["low"] < 0.5 < rate["high"]


def test_the_base_judges_what_a_run_held_out_and_gates_decide(made: Made, tmp_path: Path) -> None:
    code, record, _ = compared(
        tmp_path / "base", "base", made.first, "--prompts", 4, "--gate", "win_rate>0.99"
    )
    assert code == 3
    assert record["judge"].startswith("base")
    assert record["figures"]["win_rate"]["count"] == 4
    assert json.loads((tmp_path / "base" / "gates.json").read_text())["gates"][0]["verdict"] != "passed"


def test_people_get_a_file_to_label_and_their_votes_are_counted_without_a_model(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("base", str(made.second))
    out = tmp_path / "people"
    arguments = ["compare", *names, "--data", str(made.prompts), "--by", "people", "--out", str(out), *QUICK]
    assert cli.run(arguments) == 0
    assert [file.name for file in out.iterdir()] == ["to-label.jsonl"]
    rows = [Comparison.read(json.loads(line)) for line in (out / "to-label.jsonl").read_text().splitlines()]
    votes = lines(
        tmp_path / "votes.jsonl",
        [Vote(comparison=one, choice="b", annotator="ann").record() for one in rows],
    )
    monkeypatch.setattr(benches, "load_model", lambda *a, **k: pytest.fail("a model was loaded"))
    _, record, _ = compared(tmp_path / "counted", *names, "--votes", votes)
    assert record["figures"]["win_rate"]["value"] == 1.0
    assert record["figures"]["win_rate"]["count"] == len(rows) > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{first}"], "Two different sides"),
        (["{first}", "{first}"], "Two different sides"),
        (["{first}", "{adapter}"], "Nothing says what to ask"),
        (["base", "{first}", "--out", "{base}"], "is not empty|exists|already"),
        (["base", "{first}", "--votes", "{pairs}"], "No vote compares"),
    ],
)
def test_what_cannot_be_compared_is_told(
    arguments: list[str], said: str, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    places = {name: getattr(made, name) for name in ("first", "adapter", "base", "pairs")}
    flags = [] if "--out" in arguments else ["--out", str(tmp_path / "new")]
    assert cli.run(["compare", *(text.format(**places) for text in arguments), *flags]) == 2
    assert re.search(said, " ".join(capsys.readouterr().err.split()))
