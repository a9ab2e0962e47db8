"""A session without any screen: questions, votes, taking back, progress, agreement, and going on after a stop."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lite_align.data.votes import Choice, latest
from lite_align.errors import UserError
from lite_align.flywheel.items import Items
from lite_align.flywheel.label.ballot import Ballot
from lite_align.flywheel.label.session import (
    KNOWN_ANSWERS,
    YOURSELF,
    NotAsked,
    Progress,
    Said,
    Session,
    Shared,
    annotator_name,
)
from lite_align.flywheel.label.setup import Setup, rubric_hash

from .votes import comparison, items, vote

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


@contextmanager
def opened(
    path: Path, what: Items, *, repeats: float = 0.0, disagreements: bool = False
) -> Iterator[Session]:
    setup = Setup(seed=3, repeats=repeats, data={}, rubrics={})
    with closing(Ballot(path / "votes.jsonl")) as ballot:
        yield Session(what, ballot, setup, "Be kind.", disagreements=disagreements, now=lambda: NOON)


def say(session: Session, said: Said, annotator: str = "ann", **known):
    question = session.question(annotator)
    assert question is not None
    return session.vote(annotator, question.ticket, said, **known)


def choose(session: Session, choice: Choice, annotator: str = "ann", **known) -> None:
    """Vote so that the row has this choice, whichever answer is shown first."""
    question = session.question(annotator)
    assert question is not None
    said: Said = (
        {"a": "first", "b": "second"}.get(choice, choice)
        if question.first == "a"
        else ({"a": "second", "b": "first"}.get(choice, choice))
    )
    session.vote(annotator, question.ticket, said, **known)


def test_a_vote_has_all_that_is_known_and_the_choice_of_the_comparison(tmp_path: Path) -> None:
    with opened(tmp_path, items(8)) as session:
        for _ in range(8):
            question = session.question("ann")
            assert question is not None
            assert set(question.answers) == {question.comparison.a, question.comparison.b}
            row = session.vote("ann", question.ticket, "second", seconds=2.345, note="  why  ")
            assert getattr(row.comparison, row.choice) == question.answers[1]
            assert getattr(row.comparison, row.first) == question.answers[0]
        assert session.question("ann") is None
        firsts = {given.vote.first for given in session.ballot.tally.standing("ann")}
    assert firsts == {"a", "b"}
    assert (row.kind, row.rubric, row.seconds, row.note) == ("human", rubric_hash("Be kind."), 2.35, "why")
    assert row.time == "2026-01-31T12:00:00.000+00:00"


def test_a_session_that_was_stopped_goes_on_where_it_was_for_each_annotator(tmp_path: Path) -> None:
    asked: dict[str, list[str]] = {"ann": [], "ben": []}
    for _ in range(12):  # reopened before each vote
        for name, tickets in asked.items():
            with opened(tmp_path, items(10), repeats=0.2) as session:
                question = session.question(name)
                assert question is not None
                tickets.append(question.ticket)
                session.vote(name, question.ticket, "tie")
    with opened(tmp_path, items(10), repeats=0.2) as session:
        assert session.question("ann") is session.question("ben") is None
    for tickets in asked.values():
        assert len(set(tickets)) == 12
        assert sum(ticket.endswith(".1") for ticket in tickets) == 2
    assert asked["ann"] != asked["ben"]


def test_a_vote_on_what_is_not_asked_writes_nothing(tmp_path: Path) -> None:
    with opened(tmp_path, items(3)) as session:
        question = session.question("ann")
        assert question is not None
        session.vote("ann", question.ticket, "tie")
        for ticket in (question.ticket, "", "gone.0"):
            with pytest.raises(NotAsked):
                session.vote("ann", ticket, "tie")
        assert session.ballot.rows == 1


def test_undo_takes_back_vote_after_vote_and_asks_again_with_the_note(tmp_path: Path) -> None:
    with opened(tmp_path, items(4)) as session:
        tickets = []
        for number in range(3):
            question = session.question("ann")
            assert question is not None
            tickets.append(question.ticket)
            session.vote("ann", question.ticket, "first", note=f"note {number}")
        for number in (2, 1):
            assert session.undo("ann") is not None
            question = session.question("ann")
            assert question is not None
            assert (question.ticket, question.note) == (tickets[number], f"note {number}")
        assert session.progress("ann").done == 1
    with opened(tmp_path, items(4)) as session:  # the same after a restart
        assert [say(session, "bad").comparison.id + ".0" for _ in range(2)] == tickets[1:]
        assert session.undo("ben") is None
        votes = [given.vote.choice for given in session.ballot.tally.standing("ann")]
        assert votes[1:] == ["bad", "bad"]
        assert session.ballot.rows == 3 + 2 + 2


def test_undo_of_a_repetition_asks_it_next_and_then_no_more(tmp_path: Path) -> None:
    with opened(tmp_path, items(2), repeats=0.5) as session:
        for _ in range(3):
            say(session, "first")
        assert session.question("ann") is None
        session.undo("ann")
        question = session.question("ann")
        assert question is not None
        assert question.slot.turn == 1
        say(session, "tie")
        assert session.question("ann") is None
        assert len(latest(given.vote for given in session.ballot.tally.standing("ann"))) == 2


def test_disagreements_come_first_those_of_the_file_too(tmp_path: Path) -> None:
    earlier = (vote(3, "a", "ben"), vote(3, "b", "judge"), vote(4, "a", "ben"), vote(4, "skip", "judge"))
    with opened(tmp_path, items(6, earlier), disagreements=True) as session:
        assert say(session, "tie", "cat").comparison.id == comparison(3).id
        other = say(session, "tie", "cat").comparison
        assert other.id not in (comparison(3).id, comparison(4).id)
        while session.question("ben").comparison != other:
            say(session, "skip", "ben")
        say(session, "bad", "ben")
        assert {say(session, "tie").comparison.id for _ in range(2)} == {comparison(3).id, other.id}


def test_progress_counts_questions_by_category_and_takes_the_median_pace(tmp_path: Path) -> None:
    with opened(tmp_path, items(10), repeats=0.1) as session:
        assert session.progress("ann") == Progress(0, 11, None, session.progress("ann").categories)
        for seconds in (2.0, 4.0, 60.0):
            say(session, "tie", seconds=seconds)
        now = session.progress("ann")
        assert (now.done, now.total, now.seconds_left) == (3, 11, 4.0 * 8)
        assert list(now.categories) == ["group-0", "group-1"]
        assert [sum(column) for column in zip(*now.categories.values())] == [3, 11]


def test_agreement_is_hidden_until_ten_votes_and_counts_equal_ones(tmp_path: Path) -> None:
    marked = [comparison(number, expected="b") if number < 2 else comparison(number) for number in range(12)]
    what = Items(tuple(marked), (vote(5, "a", "ben"), vote(6, "b", "ben"), vote(7, "skip", "ben")), (), "0")
    with opened(tmp_path, what, repeats=0.25) as session:
        for number in range(15):
            assert (session.agreement("ann") is None) == (number < 10)
            choose(session, "a")
        assert session.agreement("ann") == [
            Shared(KNOWN_ANSWERS, 0, 2),
            Shared("ben", 1, 2),
            Shared(YOURSELF, 3, 3),
        ]
        assert session.agreement("ben") is None


def test_kappa_and_disputes_know_an_answer_on_whichever_side_it_stood(tmp_path: Path) -> None:
    # ben: a (1), b (9); ann: a (2), b (8), of which 9 are equal. p_o = 0.9, p_e = 0.1·0.2 + 0.9·0.8 = 0.74.
    theirs = [vote(number, "a" if number < 1 else "b", "ben") for number in range(10)]
    swapped = [
        replace(
            one,
            comparison=replace(one.comparison, a=one.comparison.b, b=one.comparison.a),
            choice={"a": "b", "b": "a"}[one.choice],
        )
        for one in theirs
    ]
    with opened(tmp_path, items(10, tuple(swapped)), disagreements=True) as session:
        while question := session.question("ann"):
            number = int(question.comparison.a.removeprefix("a-"))
            choose(session, "a" if number < 2 else "b")
        found = session.agreement("ann")
        assert found is not None
        assert (found[0].whom, found[0].equal, found[0].count) == ("ben", 9, 10)
        assert found[0].kappa == pytest.approx((0.9 - 0.74) / (1 - 0.74))
        assert say(session, "skip", "cat").comparison.id == comparison(1).id


@pytest.mark.parametrize("name", ["", "   ", "x" * 61, "ann\x1b[2J", "ann\u202e", "a\0b"])
def test_names_that_do_not_show_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="1 to 60 characters"):
        annotator_name(name)


def test_names_are_stored_with_single_spaces() -> None:
    assert annotator_name("  ann   of \n York ") == "ann of York"
