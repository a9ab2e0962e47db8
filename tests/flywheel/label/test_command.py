"""From the command line to votes: where they go, what is refused, what is said."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from lite_align import cli
from lite_align.data.votes import Vote
from lite_align.errors import UserError
from lite_align.flywheel.label.command import LabelOptions, label, votes_path
from lite_align.view import View

from .votes import comparison, vote


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(comparison(number).record()) + "\n" for number in range(3)))
    return path


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, keys: str, *arguments: str
) -> tuple[int, str]:
    monkeypatch.setattr("sys.stdin", io.StringIO(keys))
    code = cli.run(["label", *arguments, "--terminal"])
    out, err = capsys.readouterr()
    return code, " ".join((out + err).split())  # as one line, however it was wrapped


def test_votes_go_beside_the_file_and_on_when_it_is_opened_again(
    rows: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    code, out = run(monkeypatch, capsys, "up\n", str(rows), "--annotator", "ann")
    votes = rows.with_name("rows.votes.jsonl")
    assert code == 0
    assert "3 comparisons" in out
    assert "1 new rows, 1 in all" in out
    with votes.open("a") as file:
        file.write('{"id": "torn')
    code, out = run(monkeypatch, capsys, "down\nleft\n", str(rows), "--annotator", "ann", "--repeats", "0")
    assert "12 bytes, no vote, were moved to" in out
    assert "1 rows of ann" in out
    assert "2 new rows, 3 in all" in out
    found = [Vote.read(json.loads(line)) for line in votes.read_text().splitlines()]
    assert len({one.comparison.id for one in found}) == 3


def test_a_file_of_votes_takes_its_own_votes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "rows.votes.jsonl"
    path.write_text(
        "".join(json.dumps(vote(number, "a", "ben").record()) + "\n" for number in range(2)) + '{"id": "to'
    )
    code, out = run(
        monkeypatch, capsys, "up\nup\n", str(path), "--annotator", "ann", "--queue", "disagreements"
    )
    assert code == 0
    assert "2 new rows, 4 in all" in out
    assert len(path.read_text().splitlines()) == 4


def test_where_votes_go() -> None:
    assert votes_path("data/rows.jsonl") == Path("data/rows.votes.jsonl")
    assert votes_path("rows.csv") == Path("rows.votes.jsonl")
    assert votes_path("rows.votes.jsonl") == Path("rows.votes.jsonl")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.2", "example.org", ""])
def test_no_other_host_is_served(rows: Path, host: str) -> None:
    with pytest.raises(UserError, match=r"served on 127\.0\.0\.1 only") as caught:
        label(str(rows), LabelOptions(host=host), View())
    assert "ssh -L" in caught.value.remedy
    assert list(rows.parent.iterdir()) == [rows]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rubric": Path("gone.md")}, "gone.md cannot be read"),
        ({"out": Path("gone/votes.jsonl")}, "no folder"),
        ({"annotator": " "}, "1 to 60 characters"),
    ],
)
def test_what_cannot_be_used_is_told_before_anything_is_written(rows: Path, options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        label(str(rows), LabelOptions(terminal=True, **options), View())
    assert list(rows.parent.iterdir()) == [rows]


def test_data_are_not_taken_for_votes(rows: Path) -> None:
    before = rows.read_bytes()
    with pytest.raises(UserError, match="no votes"):
        label(str(rows), LabelOptions(terminal=True, out=rows), View())
    assert rows.read_bytes() == before


def test_labelling_needs_no_torch(rows: Path) -> None:
    code = (
        "import sys\n"
        "from lite_align import cli\n"
        f"assert cli.run(['label', {str(rows)!r}, '--terminal', '--annotator', 'ann']) == 0\n"
        "import lite_align.flywheel.label.server\n"
        "heavy = {'torch', 'transformers', 'datasets', 'scipy', 'starlette'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input="up\n", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
