"""`lite-align judge`: what people say comes first, unproved labels need force, a stopped command goes on."""

import json
from pathlib import Path

import pytest

from lite_align.cli import run
from lite_align.data import formats, sources
from lite_align.data.types import Message
from lite_align.data.votes import Comparison, Vote
from lite_align.errors import GateFailed, UserError
from lite_align.flywheel.judge import JudgeOptions, human_part, judge
from lite_align.flywheel.judges.judgement import PROBLEM
from lite_align.flywheel.judges.opening import Asked
from lite_align.view import View

LONGER = "def f(a, b): return 'tie' if len(a) == len(b) else 'a' if len(a) > len(b) else 'b'\n"


def comparison(number: int) -> Comparison:
    """Answer a is longer in every second one; which of the two comes first by the alphabet varies."""
    texts = ("A long answer.", "Short.") if number % 5 < 2 else ("The long answer.", "Brief.")
    a, b = texts if number % 2 == 0 else texts[::-1]
    category = ("fact", "unsafe")[number % 3 == 0]
    return Comparison(prompt=(Message("user", f"Question {number}?"),), a=a, b=b, category=category)


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path: Path) -> list[Vote]:
    return [Vote.read(json.loads(line)) for line in path.read_text().splitlines()]


@pytest.fixture
def files(tmp_path: Path):
    """A file of 30 comparisons, votes of a person who likes long answers on 24 others, and a judge that does too."""
    (tmp_path / "mine.py").write_text(LONGER)
    items = write(tmp_path / "items.jsonl", [comparison(n).record() for n in range(30)])
    people = [
        Vote(comparison=comparison(n), choice="ab"[n % 2], annotator="ann").record() for n in range(20, 44)
    ]
    return tmp_path, items, write(tmp_path / "people.jsonl", people)


def start(files, **options) -> Path:
    folder, items, people = files
    given = {"asked": Asked(by=f"{folder}/mine.py:f"), "humans": (people,), **options}
    judge(items, JudgeOptions(**given), View(quiet=True))
    return folder / "items.judged.jsonl"


def test_labels_of_a_judge_that_people_agree_with_are_written(files):
    out = start(files)
    found = read(out)
    assert [vote.comparison for vote in found][-20:] == [comparison(n) for n in range(20)]
    assert {vote.comparison.id for vote in found} == {comparison(n).id for n in range(30)}
    assert all(vote.choice == "ab"[len(vote.comparison.a) < 10] for vote in found)
    assert {(vote.kind, vote.first) for vote in found} == {("rule", "both")}
    assert len(read(human_part(out))) == 24
    record = json.loads((files[0] / "items.judged.judge.json").read_text())
    (entry,) = record["judges"].values()
    assert entry["agreement"]["figures"]["kappa"]["value"] == 1.0
    assert (entry["forced"], entry["rubric"], entry["kind"]) == (False, None, "rule")
    table = sources.read(str(out))
    assert formats.detect(table, wanted="pair").name == "votes"  # trains as it is


def test_what_is_judged_is_not_judged_again(files, tmp_path):
    out = start(files)
    before = out.read_bytes(), human_part(out).read_bytes()
    (tmp_path / "mine.py").write_text(LONGER)  # the same contents
    start(files)
    assert (out.read_bytes(), human_part(out).read_bytes()) == before
    rows = out.read_text().splitlines(keepends=True)
    out.write_text("".join(rows[:12]) + rows[12][:30])  # killed in the middle of a row
    start(files)
    assert sorted(vote.comparison.id for vote in read(out)) == sorted(comparison(n).id for n in range(30))
    (tmp_path / "mine.py").write_text("# another judge\n" + LONGER)
    start(files)
    assert len(read(out)) == 60


def test_without_labels_of_people_nothing_is_judged(files):
    with pytest.raises(GateFailed, match="Nobody knows whether") as caught:
        start(files, humans=())
    assert caught.value.exit_code == 3
    assert not (files[0] / "items.judged.jsonl").exists()


def test_a_judge_that_disagrees_needs_force(files, capsys):
    folder, _, _ = files
    (folder / "mine.py").write_text("def f(a, b): return 'a' if len(a) < len(b) else 'b'\n")
    with pytest.raises(GateFailed, match=r"does not agree with people enough .*kappa −0\.95"):
        start(files)
    out = folder / "items.judged.jsonl"
    assert not out.exists()
    assert len(read(human_part(out))) == 24
    start(files, force=True)
    assert len(read(out)) == 30
    assert "unproved" in capsys.readouterr().err
    (entry,) = json.loads((folder / "items.judged.judge.json").read_text())["judges"].values()
    assert entry["forced"] is True


def test_too_few_labels_prove_nothing(files):
    folder, _, people = files
    few = write(
        folder / "few.jsonl", [json.loads(line) for line in Path(people).read_text().splitlines()[:19]]
    )
    with pytest.raises(GateFailed, match=r"not known: comparisons in common: too few \(19\)"):
        start(files, humans=(few,))
    judges = [
        Vote(comparison=comparison(n), choice="a", annotator="x", kind="ai").record() for n in range(30)
    ]
    with pytest.raises(GateFailed, match=r"too few \(0\)"):
        start(files, humans=(write(folder / "ai.jsonl", judges),))


def test_what_failed_is_a_tie_and_is_asked_again(files):
    folder, _, _ = files
    mark = folder / "mark"
    (folder / "mine.py").write_text(
        f"import pathlib\nmark = pathlib.Path({str(mark)!r})\n"
        "def f(a, b, prompt):\n"
        "    if prompt == 'Question 3?' and not mark.exists(): raise OSError('busy')\n"
        "    return 'a' if len(a) > len(b) else 'b'\n"
    )
    out = start(files)
    (lost,) = [vote for vote in read(out) if vote.note]
    assert (lost.choice, lost.comparison.id) == ("tie", comparison(3).id)
    assert lost.note.startswith(f"{PROBLEM}raised an error: OSError: busy")
    mark.touch()
    start(files)
    assert len(read(out)) == 31
    assert (read(out)[-1].choice, read(out)[-1].comparison.id) == ("b", comparison(3).id)


def test_a_judge_that_mostly_fails_is_not_asked_on(files):
    folder, _, _ = files
    (folder / "mine.py").write_text("def f(): raise OSError('never')\n")
    with pytest.raises(UserError, match="gave no verdict on 24 of 24") as caught:
        start(files)
    assert "OSError: never" in caught.value.details[0]
    assert read(human_part(folder / "items.judged.jsonl")) == []


def test_labels_of_judges_are_kept_apart(files):
    _, items, people = files
    for same in (items, people):
        with pytest.raises(UserError, match="kept apart"):
            start(files, out=Path(same))
    with pytest.raises(UserError, match="There is no folder"):
        start(files, out=Path("nowhere/out.jsonl"))


def test_the_base_judges_from_the_command_line(files, capsys):
    folder, _, _ = files
    items = write(folder / "two.jsonl", [comparison(n).record() for n in range(2)])
    assert run(["judge", items, "--by", "base", "--model", "tiny"]) == 3
    assert "--force" in capsys.readouterr().err
    assert run(["judge", items, "--by", "base", "--model", "tiny", "--force", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["comparisons"], told["new"], told["agreement"]["proved"]) == (2, 2, False)
    one, other = read(folder / "two.judged.jsonl")
    assert one.annotator.startswith("base tiny ")
    assert (one.kind, one.first, len(one.rubric)) == ("ai", "both", 16)
    assert 0 < one.preference < 1
    assert other.annotator == one.annotator
    (entry,) = json.loads((folder / "two.judged.judge.json").read_text())["judges"].values()
    assert entry["rubric"]["hash"] == one.rubric
    assert entry["rubric"]["content"]["criteria"]


def test_wrong_options_stop_before_anything_is_judged(files, capsys):
    _, items, _ = files
    assert run(["judge", items, "--by", "https://host/v1", "--force"]) == 2
    assert "--model" in capsys.readouterr().err
    assert run(["judge", items, "--by", "nowhere", "--force"]) == 2
    assert "not a run folder" in capsys.readouterr().err
    assert run(["judge", items, "--by", "mine.py:f", "--rubric", "x.yaml", "--force"]) == 2
    assert "does not read a rubric" in capsys.readouterr().err
