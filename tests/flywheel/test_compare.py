"""`compare`: who wins by a judge whose verdicts are known, what is asked of it, and what stands in the files."""

import itertools
import json
import math
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from lite_align import cli
from lite_align.data.types import Message
from lite_align.data.votes import Comparison, Vote
from lite_align.flywheel import bench as benches
from lite_align.flywheel import compare as comparing
from lite_align.flywheel import sides
from lite_align.flywheel.judges.judgement import Judgement
from lite_align.stages.scorer import Scorer
from lite_align.train.finished import read_finished
from lite_align.view import View
from tests.flywheel.small import Made, lines
from tests.stages.test_scorer import reward_run

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


def test_samples_with_the_same_two_answers_are_outcomes_of_their_own() -> None:
    question = (Message("user", "question"),)
    texts = [("x", "y"), ("x", "y"), ("z", "w"), ("y", "x")]  # the last one: with the models exchanged
    played = [Comparison(prompt=question, a=a, b=b, model_a="old", model_b="new") for a, b in texts]
    votes = comparing.judge_all(played, Stub(["b", "b", "a", "a"]), View(quiet=True)).votes
    found = comparing.figures_of(votes, "new")["win_rate"]
    assert (found.value, found.count) == (0.5, 1)
    assert comparing.figures_of(votes[:3], "new")["win_rate"].value == pytest.approx(2 / 3)


def test_the_ranking_by_hand() -> None:
    three = {"old": 0, "new": 1, "other": 2}
    votes = []
    for first, second in itertools.combinations(three, 2):
        pairs = [replace(comparison(n), model_a=first, model_b=second) for n in range(5)]
        votes += comparing.judge_all(pairs, Stub(["b", "b", "b", "b", "a"]), View(quiet=True)).votes
    found = comparing.ranking(votes)
    assert list(found) == ["other", "new", "old"]
    assert sum(one["value"] for one in found.values()) == pytest.approx(0, abs=1e-6)
    duel = comparing.ranking(votes[:5])  # 4 of 5 won, with half a win for each: log(4.5 / 1.5)
    assert duel["new"]["value"] - duel["old"]["value"] == pytest.approx(math.log(3), abs=1e-3)
    assert duel["new"]["count"] == 5


def test_a_category_that_loses_beyond_chance_is_counted() -> None:
    judge = Stub(["ba"[n % 2] for n in range(40)])  # wins every a, loses every b
    votes = comparing.judge_all([comparison(n) for n in range(40)], judge, View(quiet=True)).votes
    assert comparing.figures_of(votes, "new")["losing_categories"].value == 1


def test_two_runs_by_a_function(made: Made, tmp_path: Path) -> None:
    by = ("--by", f"{made.judge}:longer")
    arguments = (made.first, made.second, "--data", made.prompts, "--samples", 3, *by)
    code, record, votes = compared(tmp_path / "one", *arguments)
    assert code == 0
    contract = {"schema", "time", "command", "sides", "judge", "figures", "position_bias", "failures"}
    assert contract | {"agreement"} <= record.keys()
    assert record["schema"] == 1
    assert record["failures"] == {}
    assert {"win_rate", "win_rate/a", "win_rate/b", "lc_win_rate", "losing_categories"} == set(
        record["figures"]
    )
    assert {"value", "low", "high", "count", "unit", "before", "better", "change"} == set(
        record["figures"]["win_rate"]
    )
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


def test_three_sides_are_ranked_and_their_votes_counted_again_without_a_model(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("base", str(made.first), str(made.second))
    flags = ("--data", made.prompts, "--samples", 2, "--by", f"{made.judge}:longer")
    _, record, votes = compared(tmp_path / "three", *names, *flags)
    pairs = [(vote.comparison.model_a, vote.comparison.model_b) for vote in votes]
    assert {pair: pairs.count(pair) for pair in pairs} == dict.fromkeys(itertools.combinations(names, 2), 10)
    assert set(record["ranking"]) == set(names)
    assert cli.run(["report", str(tmp_path / "three")]) == 0
    monkeypatch.setattr(benches, "load_model", lambda *a, **k: pytest.fail("a model was loaded"))
    monkeypatch.setattr(sides, "find", lambda name: pytest.fail("a side was looked for"))
    again_by = tmp_path / "three" / "comparisons.jsonl"
    _, again, _ = compared(tmp_path / "again", *names, "--votes", again_by)
    same = ("figures", "ranking", "same")
    assert [again[name] for name in same] == [record[name] for name in same]
    assert again["judge"] == f"votes of {again_by}"


def test_equal_adapters_tie_on_every_prompt_and_nobody_is_asked(made: Made, tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    shutil.copytree(made.first, twin)
    judge = tmp_path / "judge.py"
    judge.write_text("def never(a, b):\n    raise RuntimeError('asked')\n")
    _, record, votes = compared(
        tmp_path / "tie", made.first, twin, "--data", made.prompts, "--by", f"{judge}:never"
    )
    assert record["failures"] == {}
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


def test_a_reward_run_judges_by_its_scores(made: Made, tmp_path: Path) -> None:
    reward, _ = reward_run(tmp_path / "reward", made.base)
    arguments = (made.first, made.second, "--data", made.prompts, "--by", reward)
    code, record, votes = compared(tmp_path / "out", *arguments)
    assert code == 0
    assert record["judge"].startswith("reward reward ")
    policy = read_finished(made.first)
    score = Scorer(policy.backbone("cpu"), read_finished(reward))
    for vote in votes:
        one = vote.comparison
        gap = score(one.prompt, one.a).raw - score(one.prompt, one.b).raw
        assert vote.kind == "reward"
        assert vote.preference == pytest.approx(1 / (1 + math.exp(-gap)), abs=1e-3)
    assert {"a", "b"} & {vote.choice for vote in votes}


def test_the_order_of_the_sides_turns_the_win_rate_round(made: Made, tmp_path: Path) -> None:
    flags = ("--data", made.prompts, "--samples", 2, "--by", f"{made.judge}:longer")
    _, one, _ = compared(tmp_path / "one", made.first, made.second, *flags)
    _, other, _ = compared(tmp_path / "other", made.second, made.first, *flags)
    rates = [record["figures"]["win_rate"] for record in (one, other)]
    assert rates[0]["value"] + rates[1]["value"] == pytest.approx(1)
    assert rates[0]["low"] + rates[1]["high"] == pytest.approx(1)


def test_votes_that_were_corrected_or_taken_back_do_not_count(made: Made, tmp_path: Path) -> None:
    rows = [
        Vote(comparison=comparison(n), choice=choice, annotator="ann").record()
        for n, choice in ((0, "a"), (0, "b"), (1, "b"), (2, "a"), (2, "none"))
    ]
    votes = lines(tmp_path / "votes.jsonl", rows)
    _, record, kept = compared(tmp_path / "out", "old", "new", "--votes", votes)
    assert [vote.choice for vote in kept] == ["b", "b"]
    assert record["figures"]["win_rate"]["value"] == 1.0
    assert record["figures"]["win_rate"]["count"] == 2


def test_votes_of_several_are_no_judge_to_measure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        Vote(comparison=comparison(n), choice="a", annotator=who).record()
        for n in range(2)
        for who in ("ann", "ben")
    ]
    votes = str(lines(tmp_path / "votes.jsonl", rows))
    arguments = ["old", "new", "--votes", votes, "--humans", votes, "--out", str(tmp_path / "out")]
    assert cli.run(["compare", *arguments]) == 2
    assert "measures one judge" in " ".join(capsys.readouterr().err.split())


def test_votes_of_people_are_read_before_anything_is_loaded_and_measure_the_judge(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--data", made.prompts, "--samples", 8, "--by", f"{made.judge}:longer")
    _, _, votes = compared(tmp_path / "one", made.first, made.second, *flags)
    human = [replace(vote, kind="human", annotator="ann").record() for vote in votes]
    people = lines(tmp_path / "people.jsonl", human)
    _, record, _ = compared(tmp_path / "two", made.first, made.second, *flags, "--humans", people)
    kappa = record["agreement"]["figures"]["kappa"]
    assert (kappa["value"], kappa["count"]) == (1.0, len(votes))
    monkeypatch.setattr(benches, "load_model", lambda *a, **k: pytest.fail("a model was loaded"))
    missing = ["--humans", str(tmp_path / "missing.jsonl"), "--out", str(tmp_path / "three")]
    assert cli.run(["compare", "base", str(made.first), *missing]) == 2


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
