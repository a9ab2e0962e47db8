"""Critique, revision, pair: what trains, what is left out and listed, what is not asked twice."""

import json
from pathlib import Path

import pytest

from lite_align.cli import run
from lite_align.data import formats, sources
from lite_align.data.types import Message, Pair
from lite_align.errors import UserError
from lite_align.flywheel.drafts import Draft
from lite_align.flywheel.judges.opening import Asked
from lite_align.flywheel.revise import revise, revised
from lite_align.flywheel.rubrics import Constitution, Principle, read
from lite_align.flywheel.writers import Written
from lite_align.view import View
from tests.flywheel.judges.endpoint_server import content, serving

CONSTITUTION = Constitution(
    name="c",
    principles=(
        Principle(name="p", critique="What is wrong?", revision="Write it again."),
        Principle(name="q", critique="What harms?", revision="Write it again without."),
    ),
)
HI = (Message("user", "Hi?"),)


class Echo:
    """Writes what a test says of the last turn but one."""

    name = "echo"

    def __init__(self, critiques, revisions):
        self.texts = {**critiques, **revisions}
        self.asked = []

    def write(self, conversations):
        self.asked += conversations
        return [self.texts[turns[-2].content] for turns in conversations]


def test_an_answer_is_criticised_and_then_revised():
    writer = Echo({"One.": Written("It is short.")}, {"It is short.": Written("One, at length.")})
    (found,) = revised(writer, CONSTITUTION, [Draft(HI, "One.", "x")], seed=0)
    first, second = writer.asked
    assert [turn.role for turn in second] == ["user", "assistant", "user", "assistant", "user"]
    assert second[:3] == first
    assert first[-1].content == found.principle.critique
    assert second[-1].content == found.principle.revision
    assert (found.critique, found.text, found.problem) == ("It is short.", "One, at length.", None)


@pytest.mark.parametrize(
    ("critique", "revision", "problem"),
    [
        (Written(problem="cut off: no end"), None, "critique cut off: no end"),
        (Written(""), None, "critique empty"),
        (Written("Why."), Written(problem="refused: no"), "revision refused: no"),
        (Written("Why."), Written(""), "revision empty"),
        (Written("Why."), Written(" One.\n"), "revision unchanged"),
    ],
)
def test_what_is_no_revision_has_a_reason_and_the_others_keep_their_places(critique, revision, problem):
    writer = Echo(
        {"One.": critique, "Two.": Written("Else.")}, {"Why.": revision, "Else.": Written("Three.")}
    )
    first, second = revised(writer, CONSTITUTION, [Draft(HI, "One."), Draft(HI, "Two.")], seed=0)
    assert first.problem == problem
    assert (second.problem, second.text) == (None, "Three.")


def test_the_seed_and_the_answer_decide_the_principle():
    drafts = [Draft(HI, f"{n}.") for n in range(40)]
    writer = Echo({one.answer: Written("") for one in drafts}, {})
    names = [one.principle.name for one in revised(writer, CONSTITUTION, drafts, seed=0)]
    assert set(names) == {"p", "q"}
    assert [one.principle.name for one in revised(writer, CONSTITUTION, drafts[20:], seed=0)] == names[20:]
    assert [one.principle.name for one in revised(writer, CONSTITUTION, drafts, seed=1)] != names


def reply(request):
    """A critique first; then a revision, which of every third answer is the answer itself."""
    turns = request["messages"]
    answer = turns[1]["content"]
    if len(turns) == 3:
        return content(f"{answer} is short.")
    return content(answer if int(answer.split()[1]) % 3 == 0 else f"{answer} At length.")


def written(tmp_path: Path) -> str:
    path = tmp_path / "answers.jsonl"
    rows = [
        {
            "id": str(n),
            "prompt": [{"role": "user", "content": f"Question {n}?"}],
            "category": "fact",
            "answers": [{"text": f"Answer {n} here."}],
        }
        for n in range(20)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_pairs_train_directly_and_a_stopped_command_goes_on(tmp_path, capsys):
    file, out, left_out = (
        written(tmp_path),
        tmp_path / "answers.revised.jsonl",
        tmp_path / "answers.revised.left-out.jsonl",
    )
    with serving(reply) as server:
        command = ["judge", file, "--revise", "--by", server.url, "--model", "m", "--json"]
        assert run(command) == 0
        told = json.loads(capsys.readouterr().out)
        asked = len(server.requests)
        assert run(command) == 0
        assert json.loads(capsys.readouterr().out)["before"] == 20
        assert len(server.requests) == asked == 40
        lines = out.read_text().splitlines(keepends=True)
        out.write_text("".join(lines[:-2]) + lines[-2][:25])  # killed in the middle of a row
        assert run(command) == 0
        assert len(server.requests) == asked + 4
    assert (told["answers"], told["pairs"], told["left_out"]) == (20, 13, {"revision unchanged": 7})
    table = sources.read(str(out))
    detection = formats.detect(table, wanted="pair")
    pairs = [row for row in formats.convert(table, detection) if isinstance(row, Pair)]
    assert detection.name == "pair.chat"
    assert len(pairs) == 13
    assert pairs[0].chosen[0].content == "Answer 1 here. At length."
    assert pairs[0].rejected[0].content == "Answer 1 here."
    assert pairs[0].category == "fact"
    row = json.loads(out.read_text().splitlines()[0])
    assert row["rubric"] == read(Constitution, None).hash
    assert row["judge"].startswith("endpoint m 127.0.0.1:")
    assert row["principle"]
    assert len(left_out.read_text().splitlines()) == 7
    assert "unproved" in capsys.readouterr().err


def test_the_base_revises_with_its_adapters_off(tmp_path, monkeypatch, tiny):
    from lite_align.flywheel import revise as module
    from lite_align.flywheel.judges.opening import Local
    from lite_align.flywheel.writers import BaseWriter
    from lite_align.train.faults import TokenBudget

    monkeypatch.setattr(module, "_writer", lambda *_: BaseWriter(Local(*tiny, TokenBudget(64), 4096), 24))
    file = tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]
    file.write_text(json.dumps({"messages": turns}) + "\n")
    revise(str(file), Asked(), None, View(quiet=True))
    rows = [
        json.loads(line)
        for name in ("chats.revised.jsonl", "chats.revised.left-out.jsonl")
        if (tmp_path / name).exists()
        for line in (tmp_path / name).read_text().splitlines()
    ]
    assert len(rows) == 1  # a pair, or the reason why there is none: tiny writes poor revisions
    assert rows[0]["judge"].startswith("base tiny ")


def test_what_cannot_revise_stops(tmp_path):
    file = written(tmp_path)
    with pytest.raises(UserError, match="writes no revisions"):
        revise(file, Asked(by="mine.py:f"), None, View(quiet=True))
    with pytest.raises(UserError, match="There is no folder"):
        revise(file, Asked(), tmp_path / "nowhere" / "out.jsonl", View(quiet=True))
    with pytest.raises(UserError, match="is read here"):
        revise(file, Asked(), Path(file), View(quiet=True))
    (tmp_path / "answers.revised.jsonl").write_text("no row\n")
    with pytest.raises(UserError, match=r"revised.jsonl:1 is no row"):
        revise(file, Asked(by="http://127.0.0.1:1/v1", model="m"), None, View(quiet=True))
