"""Loops on a small random base: steps made once, going on after a stop anywhere, waiting for people, and refusals."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lite_align.data.votes import Vote
from lite_align.errors import GateFailed, LiteAlignError, RunInUse, UserError
from lite_align.flywheel import judge, loop, promotion, rounds, sample
from lite_align.flywheel.bench import Bench
from lite_align.flywheel.items import read
from lite_align.flywheel.label.ballot import Ballot
from lite_align.flywheel.round import Round, Waiting, prepare, worth
from lite_align.model.backbone import adapter_digest
from lite_align.recipe import load_loop
from lite_align.train.engine import Engine
from lite_align.train.lock import FolderLock
from lite_align.view import View
from tests.flywheel.small import Made, lines

RECIPE = """loop: {{name: small, rounds: {rounds}}}
sample: {{prompts: {prompts}, per_round: 4, max_new_tokens: 6, n: 3}}
judge: {{by: "{judge}:longer", pairs: 3, force: true}}
final: {{prompts: {sealed}}}
gates: {{conditions: ["kl<=1000"]}}
model: {{name: {base}, quantization: none, dtype: float32}}
data: {{held_out: 0, max_length: 128}}
lora: {{rank: 4, alpha: 8.0}}
train: {{max_steps: 3, batch_size: 4, save_steps: 1, eval_steps: 3, learning_rate: 1e-3}}
"""


@dataclass
class Small:
    """A loop in a folder of its own."""

    folder: Path
    recipe: Path

    def run(self, *sets: str, name: str = "loop", dry_run: bool = False) -> tuple[int, str]:
        """Exit code, and what a person sees."""
        out = io.StringIO()
        plan = load_loop(self.recipe, sets)
        view = View(file=out, errors=out, width=400)
        return loop.loop(
            plan, self.folder / name, "lite-align loop r.yaml", view, dry_run=dry_run
        ), out.getvalue()

    def rounds(self, name: str = "loop") -> list[dict[str, Any]]:
        return json.loads((self.folder / name / rounds.FILE).read_text())["rounds"]

    def events(self, name: str = "loop") -> list[dict[str, Any]]:
        log = self.folder / name / "project" / "promotions.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.fixture
def small(made: Made, tmp_path: Path) -> Small:
    prompts = lines(tmp_path / "prompts.jsonl", [{"prompt": f"say {n} words"} for n in range(6)])
    sealed = lines(tmp_path / "sealed.jsonl", [{"prompt": f"count to {n}"} for n in range(4)])
    recipe = tmp_path / "r.yaml"
    places = {"prompts": prompts, "sealed": sealed, "judge": made.judge, "base": made.base}
    recipe.write_text(RECIPE.format(rounds=2, **places))
    return Small(tmp_path, recipe)


def test_rounds_follow_each_other_and_are_made_once(small: Small) -> None:
    code, shown = small.run()
    assert code == 0
    assert "2 of 2 rounds were promoted" in shown
    assert shown.count(" next ") == 1
    first, second = small.rounds()
    assert (first["from"], second["from"]) == ("base", str(small.folder / "loop" / "round-1" / "dpo"))
    for n, one in enumerate((first, second), 1):
        folder = small.folder / "loop" / f"round-{n}"
        record = json.loads((folder / "dpo" / "run.json").read_text())
        assert record["recipe"]["data"]["path"] == str(folder / "pairs.jsonl")
        assert [parent["run"] for parent in record["parents"]] == [one["from"]][n == 1 :]
    drift = [[one["figures"][name]["value"] for name in ("kl", "kl_start")] for one in (first, second)]
    assert drift[0][0] == pytest.approx(drift[0][1])  # what was current is the start
    assert drift[1][0] != pytest.approx(drift[1][1])
    assert "round 1 of the loop small" in (folder.parent / "round-1" / "dpo" / "report.html").read_text()
    # The prompts of the second round are the next ones, and the file begins anew at its end.
    asked = [
        [json.loads(line)["prompt"][0]["content"] for line in path.read_text().splitlines()]
        for path in sorted((small.folder / "loop").glob("round-*/candidates.jsonl"))
    ]
    assert asked == [[f"say {n} words" for n in part] for part in ((0, 1, 2, 3), (4, 5, 0, 1))]
    # What is promoted stays, also where the recipe is another one; further rounds go on from it.
    events = len(small.events())
    code, shown = small.run("train.learning_rate=2e-3")
    assert (code, len(small.events())) == (0, events)
    assert shown.count("skipped") == 2
    # What a person takes back does not come back.
    promotion.rollback(small.folder / "loop" / "project", "ann", "it is rude", View(quiet=True))
    code, shown = small.run()
    assert (code, [one["status"] for one in small.rounds()]) == (3, ["promoted", "rolled back"])
    assert "Round 2, rolled back: by ann: it is rude." in shown


def stopped_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> list[int]:
    """Let a call of a function be the last one of its process; returns how often it was called."""
    real, calls = getattr(owner, name), [0]

    def stop(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, stop)
    return calls


def test_a_loop_that_is_stopped_in_every_step_comes_to_what_an_uninterrupted_one_comes_to(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "TOGETHER", 2)
    monkeypatch.setattr(judge, "TOGETHER", 3)
    one_round = "loop.rounds=1"
    for owner, name, call in (
        (Bench, "answers", 2),  # two prompts of four have their answers
        (Ballot, "append", 5),
        (Engine, "update", 3),  # two steps of three are saved
        (promotion, "_record", 1),  # measured and judged, not yet decided
    ):
        with monkeypatch.context() as patched:
            calls = stopped_at(patched, owner, name, call)
            with pytest.raises((KeyboardInterrupt, LiteAlignError)):
                small.run(one_round)
            assert calls[0] == call, name
    code, shown = small.run(one_round)
    assert (code, small.rounds()[0]["status"]) == (0, "promoted")
    assert "sample" not in shown.partition("round 1")[2]  # the first steps were done
    assert small.run(one_round, name="whole")[0] == 0
    for file in ("candidates.jsonl", "pairs.jsonl"):
        both = [(small.folder / name / "round-1" / file).read_bytes() for name in ("loop", "whole")]
        assert both[0] == both[1], file
    digests = {
        adapter_digest(small.folder / n / "round-1" / "dpo" / "adapters" / "policy")
        for n in ("loop", "whole")
    }
    assert len(digests) == 1
    assert [event["kind"] for event in small.events()] == ["sealed", "used", "used", "promoted"]
    assert small.rounds()[0]["figures"] == small.rounds("whole")[0]["figures"]


def test_a_refused_round_stops_the_loop_until_something_changes(small: Small) -> None:
    refuse = 'gates.conditions=["kl>=1000"]'
    code, shown = small.run(refuse)
    assert code == 3
    assert "0 of 2 rounds were promoted; base is current." in shown
    assert "Round 1, refused: kl>=1000: failed." in shown
    assert len(small.rounds()) == 1
    used = [event["kind"] for event in small.events()].count("used")
    assert small.run(refuse)[0] == 3
    assert [event["kind"] for event in small.events()].count("used") == used == 1
    # Another training is another round, in a folder of its own; other gates judge the run that is there.
    assert small.run(refuse, "train.learning_rate=2e-3")[0] == 3
    assert (small.rounds()[0]["folder"], used) == ("round-1-0002", 1)
    assert small.run("train.learning_rate=2e-3", "loop.rounds=1")[0] == 0
    assert (small.rounds()[0]["folder"], small.rounds()[0]["status"]) == ("round-1-0002", "promoted")


def vote_as(annotator: str, candidates: Path, votes: Path, count: int, choices: str = "ab") -> None:
    ballot = Ballot(votes)
    for n, one in enumerate(read(str(candidates), pairs=3).comparisons[:count]):
        ballot.append(Vote(comparison=one, choice=choices[n % 2], annotator=annotator, kind="human"))
    ballot.close()


def test_it_waits_for_people_and_for_their_agreement(small: Small) -> None:
    people = (
        "judge.by=people",
        "judge.force=false",
        "judge.labels=10",
        "loop.rounds=1",
        f"final.by={judge_of(small)}",
    )
    code, shown = small.run(*people)
    candidates = small.folder / "loop" / "round-1" / "candidates.jsonl"
    assert code == 0
    assert "waiting: 0 of 10 comparisons of round 1 are labelled" in shown
    assert f"lite-align label {candidates} --pairs 3" in shown
    votes = candidates.with_name("candidates.votes.jsonl")
    vote_as("ann", candidates, votes, 9)
    assert "9 of 10" in small.run(*people)[1]
    vote_as("ann", candidates, votes, 10)
    with pytest.raises(GateFailed, match="cannot be used"):
        small.run(*people)
    assert small.rounds()[0]["status"] == "stopped"
    vote_as("ben", candidates, votes, 10, "ba")
    with pytest.raises(GateFailed, match="do not agree enough"):
        small.run(*people)
    vote_as("ben", candidates, votes, 10)
    assert small.run(*people)[0] == 0
    assert small.rounds()[0]["agreement"]["alpha"]["value"] == 1
    assert small.rounds()[0]["pairs"] == 10


def judge_of(small: Small) -> str:
    return load_loop(small.recipe).own.recipe.judge.by


def test_labels_of_one_person_are_trained_on_by_force(small: Small) -> None:
    forced = ("judge.by=people", "judge.labels=4", "loop.rounds=1", f"final.by={judge_of(small)}")
    one = Round(1, load_loop(small.recipe, forced), small.folder, small.folder, "base")
    with pytest.raises(Waiting):
        prepare(one, View(quiet=True))
    vote_as("ann", one.candidates, one.votes, 4)
    prepare(one, View(quiet=True))
    assert len(one.pairs.read_text().splitlines()) == 4
    assert worth(one)["alpha"]["value"] is None


def test_a_judge_that_never_decides_is_told(small: Small) -> None:
    (small.folder / "even.py").write_text("def even(a, b):\n    return 'tie'\n")
    with pytest.raises(GateFailed, match="has nothing to learn from"):
        small.run(f"judge.by={small.folder / 'even.py'}:even")
    assert small.rounds()[0]["status"] == "stopped"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("sample.prompts=none.jsonl", "none.jsonl"),
        ("final.prompts=none.jsonl", "none.jsonl"),
        ("judge.humans=[none.jsonl]", "none.jsonl"),
        ("judge.by=runs/none", "runs/none"),
        ("judge.by=none.py:better", "none.py"),
        ("final.by=http://127.0.0.1/v1", "Which model"),
        ("judge.rubric=none.yaml", "none.yaml"),
        ("loop.start=runs/none", "runs/none"),
        ('gates.conditions=["win_rate"]', "is no gate"),
    ],
)
def test_what_would_stop_a_later_step_is_told_before_the_first(small: Small, change: str, told: str) -> None:
    extra = ["judge.by=base"] if "rubric" in change else []
    with pytest.raises(LiteAlignError) as caught:
        small.run(change, *extra)
    assert told in " ".join([caught.value.what, *caught.value.details])
    assert not (small.folder / "loop").exists()


def test_sealed_prompts_may_not_be_trained_on(small: Small) -> None:
    with (small.folder / "sealed.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "say 3 words"}) + "\n")
    with pytest.raises(UserError, match="1 of the sealed prompts") as caught:
        small.run()
    assert list(caught.value.details) == [f"{small.folder / 'sealed.jsonl'}:5"]


def test_a_dry_run_shows_the_plan_and_writes_nothing(small: Small) -> None:
    code, shown = small.run(dry_run=True)
    assert code == 0
    assert "4 prompts a round, 3 answers each, some prompts in several rounds" in shown
    assert "final.by" in shown  # the judge of the labels judges the gate
    assert "kl<=1000" in shown
    assert not (small.folder / "loop").exists()


def test_a_folder_in_use_is_left_alone(small: Small) -> None:
    folder = small.folder / "loop"
    folder.mkdir()
    lock = FolderLock.acquire(folder, loop.LOCK)
    (folder / loop.STATE).write_text("{}")
    with pytest.raises(RunInUse):
        small.run()
    lock.release()
    (folder / loop.STATE).unlink()
    with pytest.raises(UserError, match="is not the folder of a loop"):
        small.run()


def test_inputs_are_contents(small: Small, tmp_path: Path) -> None:
    plan = load_loop(small.recipe)
    asked, _ = loop.look(plan)
    known = loop.inputs(plan, 1, "base", asked)
    assert loop.inputs(plan, 1, "base", asked) == known
    assert loop.inputs(plan, 2, "base", asked) != known
    free = load_loop(small.recipe, ["loop.rounds=7", "final.uses=2", "gates.kl=3", "judge.force=true"])
    assert loop.inputs(free, 1, "base", asked) == known
    for text in ("sample.n=4", "judge.pairs=1", "train.learning_rate=5e-4", "train.seed=1"):
        assert loop.inputs(load_loop(small.recipe, [text]), 1, "base", asked) != known, text
    moved = lines(tmp_path / "moved.jsonl", [{"prompt": f"say {n} words"} for n in range(6)])
    renamed = load_loop(small.recipe, [f"sample.prompts={moved}"])
    assert loop.inputs(renamed, 1, "base", loop.look(renamed)[0]) == known
    lines(moved, [{"prompt": f"tell {n} words"} for n in range(6)])
    assert loop.inputs(renamed, 1, "base", loop.look(renamed)[0]) != known
    copied = tmp_path / "copied.py"
    judge_file = Path(judge_of(small).rpartition(":")[0])
    copied.write_bytes(judge_file.read_bytes())
    other = load_loop(small.recipe, [f"judge.by={copied}:longer"])
    assert loop.inputs(other, 1, "base", asked) == known
    copied.write_text(copied.read_text() + "# another\n")
    assert loop.inputs(other, 1, "base", asked) != known
