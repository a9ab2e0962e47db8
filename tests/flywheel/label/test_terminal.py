"""Labelling without a browser: keys from a pipe, the same store, hostile text harmless."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lite_align.data.types import Message
from lite_align.data.votes import Comparison
from lite_align.errors import UserError
from lite_align.flywheel.items import Items
from lite_align.flywheel.label import terminal
from lite_align.flywheel.label.ballot import Ballot
from lite_align.flywheel.label.session import Session
from lite_align.flywheel.label.setup import Setup
from lite_align.view import View

from .votes import items

Labelled = Callable[..., str]


@pytest.fixture
def labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Labelled]:
    """Label with these lines as keys; returns what was printed. `labelled.ballot` has the votes."""
    ballot = Ballot(tmp_path / "votes.jsonl")

    def label(*lines: str, annotator: str | None = "ann", what: Items | None = None) -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
        out = io.StringIO()
        session = Session(what or items(3), ballot, Setup(3, 0.0, {}, {}), "Be kind.\nBe brief.")
        terminal.label(session, View(file=out), annotator)
        return out.getvalue()

    label.ballot = ballot
    yield label
    ballot.close()


def said(labelled: Labelled, annotator: str = "ann") -> list[str]:
    return [given.vote.choice for given in labelled.ballot.tally.standing(annotator)]


def test_keys_vote_until_all_is_answered(labelled: Labelled) -> None:
    out = labelled("left", "up", "down")
    votes = [given.vote for given in labelled.ballot.tally.standing("ann")]
    assert votes[0].choice == votes[0].first
    assert [vote.choice for vote in votes[1:]] == ["tie", "bad"]
    assert all(vote.seconds is not None and vote.rubric for vote in votes)
    assert "all questions are answered" in out
    assert "Question 2?" in out


def test_it_stops_and_goes_on_with_notes_undo_and_rubric(labelled: Labelled) -> None:
    out = labelled("n", "because", "space", "u", "right", "?", "x", "q", "left")
    assert said(labelled)[0] in "ab"
    assert len(said(labelled)) == 1
    assert labelled.ballot.tally.standing("ann")[0].vote.note == "because"
    assert "Be brief." in out
    assert out.count(terminal.KEYS.split(" · ")[0]) == 5  # four questions shown, and a key without a meaning
    labelled("u", "tie", "up")
    assert said(labelled) == ["tie"]


def test_who_votes_is_asked(labelled: Labelled) -> None:
    labelled(" ben ", "up", annotator=None)
    assert said(labelled, "ben") == ["tie"]
    with pytest.raises(UserError, match="Nobody said who votes"):
        labelled(annotator=None)


def test_hostile_text_cannot_act_on_the_terminal(labelled: Labelled) -> None:
    hostile = "\x1b[2J\x1b]0;title\x07 \u202eabc [red]x[/red] [/INST] <|im_end|>"
    one = Comparison(prompt=(Message("user", hostile),), a=hostile, b="fine", category=hostile)
    out = labelled("q", what=Items((one,), (), (), "0"))
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(out)
    assert "[red]x[/red] [/INST] <|im_end|>" in out
