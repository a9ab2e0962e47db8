"""The page's routes, asked as a browser asks: what they give, what they refuse, and what they never write."""

import asyncio
import errno
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from lite_align.errors import UserError
from lite_align.flywheel.label import server
from lite_align.flywheel.label.ballot import Ballot
from lite_align.flywheel.label.guard import HEADERS, LARGEST_BODY
from lite_align.flywheel.label.session import Session
from lite_align.flywheel.label.setup import Setup
from lite_align.train import files

from .test_guard import FINE, TOKEN
from .votes import items


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict:
        return json.loads(self.body)


class Client:
    """Sends requests straight to the application."""

    def __init__(self, session: Session, annotator: str | None = None) -> None:
        self.session = session
        self.app = server.application(session, token=TOKEN, name="rows.jsonl", annotator=annotator)

    def send(self, method: str, path: str, pieces: list[bytes], **changed: str | None) -> Answer:
        headers = {**FINE, "content-length": None, **{k.replace("_", "-"): v for k, v in changed.items()}}
        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(k.encode(), v.encode()) for k, v in headers.items() if v is not None],
        }
        waiting = [
            {"type": "http.request", "body": piece, "more_body": n < len(pieces)}
            for n, piece in enumerate(pieces, 1)
        ]
        sent: list[dict] = []

        async def receive() -> dict:
            return waiting.pop(0) if waiting else {"type": "http.disconnect"}

        async def send(message: dict) -> None:
            sent.append(message)

        asyncio.run(self.app(scope, receive, send))
        named = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
        return Answer(sent[0]["status"], named, b"".join(message.get("body", b"") for message in sent[1:]))

    def get(self, path: str, **changed: str | None) -> Answer:
        return self.send("GET", path, [b""], **changed)

    def post(self, path: str, body: object, **changed: str | None) -> Answer:
        return self.send("POST", path, [json.dumps(body).encode()], **changed)

    def vote(self, ticket: str, said: str = "first", annotator: str = "ann", **known: object) -> Answer:
        return self.post("/api/vote", {"annotator": annotator, "ticket": ticket, "said": said, **known})


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    ballot = Ballot(tmp_path / "votes.jsonl")
    yield Session(items(3), ballot, Setup(3, 0.0, {}, {}), "Be kind.")
    ballot.close()


@pytest.fixture
def client(session: Session) -> Client:
    return Client(session)


def test_the_page_is_ours_alone_and_has_nothing_inline(client: Client) -> None:
    for path, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")):
        answer = client.get(path, x_lite_align_token=None, origin=None, content_type=None)
        assert answer.status == 200
        assert answer.headers["content-type"].startswith(kind)
    page = client.get("/").body.decode()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*src=)|https?://", page)
    script = client.get("/page.js").body.decode()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function", script)


def test_every_answer_has_the_headers_refusals_too(client: Client) -> None:
    answers = [
        client.get("/"),
        client.get("/gone"),
        client.get("/", host="attacker.example"),
        client.vote("gone.0"),
    ]
    assert [answer.status for answer in answers] == [200, 404, 421, 409]
    for answer in answers:
        assert {name.lower(): value for name, value in HEADERS.items()}.items() <= answer.headers.items()
        assert not any(name.startswith("access-control") for name in answer.headers)


def test_a_vote_is_written_and_answered_with_the_next_question(client: Client) -> None:
    asked = client.get("/api/question?annotator=ann").json
    assert set(asked["question"]) == {"ticket", "category", "prompt", "answers", "note"}
    answer = client.vote(asked["question"]["ticket"], seconds=3, note="why")
    assert answer.status == 200
    assert answer.json["done"] == 1
    assert answer.json["question"]["ticket"] != asked["question"]["ticket"]
    row = json.loads(client.session.ballot.path.read_text())
    assert row[row["choice"]] == asked["question"]["answers"][0]
    assert (row["seconds"], row["note"], row["annotator"]) == (3, "why", "ann")
    undone = client.post("/api/undo", {"annotator": "ann"}).json
    assert undone["question"]["ticket"] == asked["question"]["ticket"]
    assert (undone["done"], undone["question"]["note"]) == (0, "why")


def test_a_vote_that_comes_twice_is_written_once(client: Client) -> None:
    ticket = client.get("/api/question?annotator=ann").json["question"]["ticket"]
    first, again = client.vote(ticket), client.vote(ticket)
    assert (first.status, again.status) == (200, 409)
    assert again.json == first.json
    assert client.session.ballot.rows == 1


def test_nothing_but_a_whole_vote_is_written(client: Client) -> None:
    ticket = client.get("/api/question?annotator=ann").json["question"]["ticket"]
    good = {"annotator": "ann", "ticket": ticket, "said": "first"}
    wrong = [
        *({**good, "said": said} for said in ("a", "none", "", None, [])),
        *({**good, "annotator": name} for name in ("", None, 3, "x" * 61, "a\x1b[2J")),
        *({**good, "seconds": seconds} for seconds in (-1, 1e9, "3", True, float("nan"))),
        *({**good, "note": note} for note in (3, "x" * 10_001, "\ud800", "a\0")),
        [],
        "text",
    ]
    for body in wrong:
        answer = client.post("/api/vote", body)
        assert answer.status == 400, body
        assert answer.json["error"]
    assert client.send("POST", "/api/vote", [b"{", b'"annotator"']).status == 400
    assert client.send("POST", "/api/vote", [b" " * 2**19] * 3).status == 413
    assert client.send("POST", "/api/vote", [b""], content_length=str(LARGEST_BODY + 1)).status == 413
    assert client.session.ballot.rows == 0


def test_reading_has_no_effect(client: Client) -> None:
    before = client.session.ballot.path.read_bytes()
    for path in ("/", "/api/about", "/api/question?annotator=new", "/api/vote", "/api/undo"):
        client.get(path)
    assert client.session.ballot.path.read_bytes() == before
    assert client.get("/api/vote").status == 405
    assert client.get("/api/about").json["annotators"] == []


def test_a_header_that_comes_twice_counts_as_both(client: Client) -> None:
    class Twice(dict):
        def items(self):
            return [("host", "127.0.0.1"), ("host", "attacker.example")]

    assert server._unique(Twice()) == {"host": "127.0.0.1, attacker.example"}


def test_a_vote_that_could_not_be_saved_is_told_and_can_be_given_again(client: Client) -> None:
    ticket = client.get("/api/question?annotator=ann").json["question"]["ticket"]
    with files.observed(files.Fault("fsync", 1, errno.ENOSPC)):
        answer = client.vote(ticket)
    assert answer.status == 507
    assert "No space left" in answer.json["error"]
    assert client.vote(ticket).status == 200
    assert client.session.ballot.rows == 1


def test_a_page_for_one_annotator_takes_no_other(session: Session) -> None:
    client = Client(session, annotator="ann")
    assert client.get("/api/about").json["annotator"] == "ann"
    assert client.get("/api/question?annotator=ben").status == 400
    assert client.get("/api/question?annotator=ann").status == 200


def test_a_port_that_is_taken_is_told() -> None:
    with server.listen(0) as taken:
        host, port = taken.getsockname()
        assert host == "127.0.0.1"
        with pytest.raises(UserError, match=f"Port {port} cannot be used"):
            server.listen(port)
