"""A chat endpoint on this machine whose replies a test decides."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Said:
    """A reply: a body (an object is sent as JSON), a status, headers, and seconds that it takes."""

    body: Any = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    raw: Callable[[BaseHTTPRequestHandler], None] | None = None


def content(text: str | None, **more: Any) -> Said:
    """What an endpoint says when its model writes a text."""
    message = {"role": "assistant", "content": text, **more.pop("message", {})}
    return Said({"choices": [{"index": 0, "finish_reason": "stop", "message": message, **more}]})


def winner(name: str, reason: str = "It is.") -> Said:
    """A reply by the schema."""
    return content(json.dumps({"winner": name, "reason": reason}))


@dataclass
class Server:
    """Where it is, and what it was asked."""

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


@contextmanager
def serving(reply: Callable[[dict[str, Any]], Said]) -> Iterator[Server]:
    """A server whose replies to each request a function decides."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.requests.append(request)
            server.headers.append(dict(self.headers.items()))
            server.paths.append(self.path)
            said = reply(request)
            if said.raw:
                said.raw(self)
                self.close_connection = True
                return
            body = (said.body if isinstance(said.body, str) else json.dumps(said.body)).encode()
            self.send_response(said.status)
            for name, value in {**said.headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None: ...

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None: ...

    with Quiet(("127.0.0.1", 0), Handler) as httpd:
        server = Server(f"http://127.0.0.1:{httpd.server_port}/v1")
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            httpd.shutdown()
            thread.join()
