"""The file of votes: appended and synced before they count, taken back, and what a kill leaves behind."""

import errno
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lite_align.data.votes import Vote, latest, standing
from lite_align.errors import DataError, DiskFull, RunInUse
from lite_align.flywheel.label.ballot import Ballot, Tally
from lite_align.train import files

from .votes import comparison, vote


def stored(path: Path) -> list[Vote]:
    return [Vote.read(json.loads(line)) for line in path.read_text().splitlines()]


def test_a_vote_is_on_the_disk_when_it_counts(tmp_path: Path) -> None:
    ballot = Ballot(tmp_path / "votes.jsonl")
    told: list[files.Operation] = []
    with files.observed(told.append):
        ballot.append(vote(1, "a", note="früh"))
    assert [operation.kind for operation in told][:3] == ["open", "write", "fsync"]
    assert stored(ballot.path) == [vote(1, "a", note="früh")]
    assert ballot.path.stat().st_mode & 0o777 == 0o600
    ballot.append(vote(2, "tie"))
    ballot.close()
    again = Ballot(ballot.path)
    assert [given.vote for given in again.tally.standing("ann")] == [
        vote(1, "a", note="früh"),
        vote(2, "tie"),
    ]
    assert (again.rows, again.set_aside) == (2, 0)
    again.close()


def test_a_vote_that_cannot_be_written_does_not_count(tmp_path: Path) -> None:
    ballot = Ballot(tmp_path / "votes.jsonl")
    ballot.append(vote(1, "a"))
    for kind in ("write", "fsync"):
        fault = files.Fault(kind, 1, errno.ENOSPC)
        with pytest.raises(DiskFull, match="No space"), files.observed(fault):
            ballot.append(vote(2, "b"))
        assert fault.fired
    assert ballot.rows == len(stored(ballot.path)) == len(ballot.tally.standing("ann")) == 1
    ballot.append(vote(2, "b"))
    assert stored(ballot.path) == [vote(1, "a"), vote(2, "b")]
    ballot.close()


@pytest.mark.parametrize("cut", [1, 30, 31, -1])
def test_a_line_that_a_kill_cut_off_is_set_aside_and_no_vote(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "votes.jsonl"
    line = json.dumps(vote(2, "b", note="größer").record(), ensure_ascii=False).encode()
    whole = json.dumps(vote(1, "a").record()).encode() + b"\n"
    path.write_bytes(whole + line[:cut])
    ballot = Ballot(path)
    assert (ballot.rows, ballot.set_aside) == (1, len(line[:cut]))
    assert path.read_bytes() == whole
    assert ballot.torn_path.read_bytes() == line[:cut] + b"\n"
    ballot.append(vote(3, "tie"))
    ballot.close()
    assert stored(path) == [vote(1, "a"), vote(3, "tie")]


def test_a_whole_line_without_its_end_is_a_vote(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    path.write_text(json.dumps(vote(1, "a").record()))
    ballot = Ballot(path)
    ballot.append(vote(2, "b"))
    ballot.close()
    assert stored(path) == [vote(1, "a"), vote(2, "b")]
    assert not ballot.torn_path.exists()


@pytest.mark.parametrize(
    "content",
    [
        '{"a": 1}\n',
        '{"prompt": "p", "chosen": "c", "rejected": "r"}',  # data, not votes, and no end of the line
        "a text of ours",
        "[1]\n",
        '{"torn": \n{"a": "b"}\n',
    ],
)
def test_a_file_of_something_else_is_refused_and_left_as_it_is(tmp_path: Path, content: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=r"lines of .* are no votes") as caught:
        Ballot(path)
    assert caught.value.details[0].startswith(f"{path}:1 ")
    assert path.read_text() == content
    with pytest.raises(DataError):  # the lock was given back
        Ballot(path)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    first = Ballot(tmp_path / "votes.jsonl")
    with pytest.raises(RunInUse, match="open in another"):
        Ballot(first.path)
    first.close()
    Ballot(first.path).close()


choices = st.sampled_from(["a", "b", "tie", "none"])


@given(st.lists(st.builds(vote, st.integers(0, 2), choices, st.sampled_from(["ann", "ben"])), max_size=12))
def test_what_counts_and_what_stands_is_what_the_rows_say(votes: list[Vote]) -> None:
    tally = Tally(votes)
    counting = [one for by_annotator in tally.counting.values() for one in by_annotator.values()]
    assert sorted(counting, key=repr) == sorted(latest(votes), key=repr)
    for name in tally.annotators:
        own = [one for one in votes if one.annotator == name]
        assert [given.vote for given in tally.standing(name)] == standing(own)


def test_taking_back_takes_the_last_vote_on_that_comparison() -> None:
    tally = Tally([vote(1, "a"), vote(2, "b"), vote(1, "b")])
    tally.count(vote(1, "none", note="hm"))
    assert [given.vote for given in tally.standing("ann")] == [vote(1, "a"), vote(2, "b")]
    assert [(given.comparison, given.vote.note) for given in tally.taken_back("ann")] == [
        (comparison(1).id, "hm")
    ]
    tally.count(vote(2, "none"))
    assert [given.comparison for given in tally.taken_back("ann")] == [comparison(1).id, comparison(2).id]
    tally.count(vote(2, "tie"))
    assert [given.comparison for given in tally.taken_back("ann")] == [comparison(1).id]
    assert tally.taken_back("ben") == tally.standing("ben") == ()
