"""The local page: three static files and four routes of JSON over a session, behind `guard`."""

import secrets
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lite_align.data.strict_json import Json, Malformed, parse
from lite_align.errors import LiteAlignError, UserError
from lite_align.flywheel.label import guard, wording
from lite_align.flywheel.label.session import (
    LONGEST_NOTE,
    SAID,
    NotAsked,
    Question,
    Said,
    Session,
    annotator_name,
)

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

PAGE = Path(__file__).with_name("page")
STATIC = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
LOOPBACK = "127.0.0.1"
LONGEST_SECONDS = 24 * 3600.0
UNSAVED = 507


class BadRequest(Exception):
    """A body or a parameter that is not what the page sends."""

    status = 400


class TooLarge(BadRequest):
    """A body of more than 1 MiB, whatever its header said."""

    status = 413


def application(session: Session, *, token: str, name: str, annotator: str | None = None) -> "ASGIApp":
    """The page over a session.

    Args:
        session: what is asked and where votes go.
        token: what every request for data must carry.
        name: of the file that is labelled, for the title.
        annotator: who votes; None: the page asks.
    """
    from starlette.applications import Starlette
    from starlette.routing import Route

    page = _Page(session, name, annotator)
    routes = [
        *(Route(path, _static) for path in STATIC),
        Route("/api/about", page.about),
        Route("/api/question", page.question),
        Route("/api/vote", page.vote, methods=["POST"]),
        Route("/api/undo", page.undo, methods=["POST"]),
    ]
    told = {BadRequest: _told_bad_request, LiteAlignError: _told_unsaved}
    return _guarded(Starlette(routes=routes, exception_handlers=told), token)


class _Page:
    """The routes that give and take data. They wait for the disk, one after the other, so that votes have an order."""

    def __init__(self, session: Session, name: str, annotator: str | None) -> None:
        self.session, self.name, self.annotator = session, name, annotator

    async def about(self, request: "Request") -> "Response":
        """What stays the same: file, rubric, who may vote."""
        return _answer(
            {
                "name": self.name,
                "annotator": self.annotator,
                "annotators": self.session.ballot.tally.annotators,
                "rubric": self.session.rubric,
                "votes": self.session.ballot.path.name,
            }
        )

    async def question(self, request: "Request") -> "Response":
        """The next question to an annotator."""
        return self._state(self._voter(request.query_params.get("annotator")))

    async def vote(self, request: "Request") -> "Response":
        """Write a vote; 409 and the next question if it is on something else than that."""
        body = await _json(request)
        voter, said = self._voter(body.get("annotator")), body.get("said")
        if said not in SAID:
            raise BadRequest(f'"said" is one of {", ".join(SAID)}')
        seconds, note = _seconds(body.get("seconds")), _note(body.get("note"))
        try:
            self.session.vote(voter, str(body.get("ticket")), cast(Said, said), seconds=seconds, note=note)
        except NotAsked:
            return self._state(voter, 409)
        return self._state(voter)

    async def undo(self, request: "Request") -> "Response":
        """Take back the last vote."""
        voter = self._voter((await _json(request)).get("annotator"))
        self.session.undo(voter)
        return self._state(voter)

    def _voter(self, value: object) -> str:
        if self.annotator is not None and value != self.annotator:
            raise BadRequest(f"this page is for {self.annotator}")
        try:
            return annotator_name(value if isinstance(value, str) else "")
        except UserError as error:
            raise BadRequest(error.what) from None

    def _state(self, annotator: str, status: int = 200) -> "Response":
        """What the page shows of an annotator: which answer is a and which is b is not in it."""
        progress = self.session.progress(annotator)
        return _answer(
            {
                "question": _shown(self.session.question(annotator)),
                "done": progress.done,
                "total": progress.total,
                "progress": wording.progress(progress),
                "agreement": wording.agreement(self.session.agreement(annotator)),
                "categories": [[name, *counts] for name, counts in progress.categories.items()],
            },
            status,
        )


def _answer(content: dict[str, Any], status: int = 200) -> "Response":
    from starlette.responses import JSONResponse

    return JSONResponse(content, status)


async def _static(request: "Request") -> "Response":
    from starlette.responses import Response

    file, media_type = STATIC[request.url.path]
    return Response((PAGE / file).read_bytes(), media_type=media_type)


async def _told_bad_request(request: "Request", error: Exception) -> "Response":
    return _answer({"error": str(error)}, getattr(error, "status", 400))


async def _told_unsaved(request: "Request", error: Exception) -> "Response":
    assert isinstance(error, LiteAlignError)
    return _answer({"error": f"{error.what} {error.remedy}"}, UNSAVED)


def _guarded(inner: "Starlette", token: str) -> "ASGIApp":
    """The application behind `guard`: nothing of a refused request is read, and every answer has its headers."""
    from starlette.datastructures import Headers, MutableHeaders

    async def outer(scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await inner(scope, receive, send)
            return

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(guard.HEADERS)
            await send(message)

        refused = guard.refusal(scope["method"], scope["path"], _unique(Headers(scope=scope)), token)
        answer = _answer({"error": refused.why}, refused.status) if refused else inner
        await answer(scope, receive, with_headers)

    return outer


def _unique(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers by name; one that comes twice is joined, as HTTP says, and so fits no check for one value."""
    joined: dict[str, str] = {}
    for key, value in headers.items():
        joined[key] = f"{joined[key]}, {value}" if key in joined else value
    return joined


async def _json(request: "Request") -> dict[str, Json]:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > guard.LARGEST_BODY:
            raise TooLarge("a write has at most 1 MiB")
    try:
        value = parse(body.decode())
    except (Malformed, UnicodeDecodeError) as error:
        raise BadRequest(str(error)) from None
    if not isinstance(value, dict):
        raise BadRequest("an object is expected")
    return value


def _seconds(value: Json | None) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LONGEST_SECONDS:
        raise BadRequest('"seconds" is a number up to a day')
    return float(value)


def _note(value: Json | None) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > LONGEST_NOTE:
        raise BadRequest(f'"note" is text of up to {LONGEST_NOTE:,} characters')
    return value


def _shown(question: Question | None) -> dict[str, Any] | None:
    if question is None:
        return None
    return {
        "ticket": question.ticket,
        "category": question.comparison.category,
        "prompt": [[message.role, message.content] for message in question.comparison.prompt],
        "answers": question.answers,
        "note": question.note,
    }


def listen(port: int) -> socket.socket:
    """A socket on the loopback interface; port 0: any that is free.

    Raises:
        UserError: the port is taken.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((LOOPBACK, port))
    except OSError as error:
        listening.close()
        raise UserError(
            f"Port {port} cannot be used: {error.strerror}.", remedy="Give another --port, or none."
        ) from None
    listening.listen()
    return listening


def serve(
    session: Session, tell: Callable[[str], None], *, name: str, annotator: str | None, port: int
) -> None:
    """Serve the page until Ctrl-C; `tell` is given its address, once it can be opened.

    Raises:
        UserError: starlette or uvicorn is not installed, or the port is taken.
    """
    try:
        import uvicorn

        token = secrets.token_hex(16)
        page = application(session, token=token, name=name, annotator=annotator)
    except ModuleNotFoundError as error:
        raise UserError(
            f"The page needs {error.name}, which is not installed.",
            remedy="pip install 'lite-align[label]', or label in the terminal with --terminal.",
        ) from None
    with listen(port) as listening:
        tell(f"http://{LOOPBACK}:{listening.getsockname()[1]}/#{token}")
        # no access log: the terminal is for what concerns the person who labels
        config = uvicorn.Config(page, log_level="warning", access_log=False, server_header=False, ws="none")
        try:
            uvicorn.Server(config).run(sockets=[listening])
        except KeyboardInterrupt:
            return
