"""One call of an OpenAI-compatible chat endpoint: within a time, tried again, its answer read as far as it is due.

Nothing is sent anywhere but to the URL that was given: redirects are not followed. The key comes from an environment
variable, goes into one header, and is hidden wherever a text of the server is shown.
"""

import json
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lite_align.data.strict_json import Json, Malformed, parse
from lite_align.errors import UserError
from lite_align.recipe.secrets import redact

if TYPE_CHECKING:
    import httpx2

KEY_VARIABLE = "LITE_ALIGN_API_KEY"
_UNREACHABLE = "unreachable"
SHOWN = 200  # characters of what a server says
MOST_BYTES = 2**20
"""Of a reply; a longer one is no verdict."""

_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_MOVED = "Give the URL that it points to: redirects are not followed."
_REFUSED: Mapping[int, str] = {
    401: f"Put the key into the environment variable {KEY_VARIABLE}.",
    403: f"Look at the key in {KEY_VARIABLE} and at what it may use.",
    404: "Look at the URL, which ends before /chat/completions, and at the model's name (--model).",
    **dict.fromkeys((301, 302, 303, 307, 308), _MOVED),
}


class NoReply(Exception):
    """The endpoint gave nothing that counts; `kind` is what is counted."""

    def __init__(self, kind: str, message: str = "") -> None:
        super().__init__(f"{kind}: {message}" if message else kind)
        self.kind, self.message = kind, message


class _Again(NoReply):
    """What may succeed when it is tried again, after the pause that the server asks for, if it does."""

    def __init__(self, kind: str, message: str = "", *, pause: float | None = None) -> None:
        super().__init__(kind, message)
        self.pause = pause


@dataclass(frozen=True)
class Endpoint:
    """Where and how to ask.

    Attributes:
        url: up to /chat/completions, such as http://127.0.0.1:8000/v1.
        model: its name there.
        seconds: for one attempt, from the first byte sent to the last one read.
        attempts: at most, with growing waits in between.
        wait: seconds before the second attempt; doubled each time.
        longest_wait: seconds that a server may ask for before it is given up.

    Raises:
        UserError: the URL is none, or holds a password.
    """

    url: str
    model: str
    seconds: float = 60.0
    attempts: int = 4
    wait: float = 1.0
    longest_wait: float = 60.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(
                f"{redact(self.url)!r} is no URL of an endpoint.",
                remedy="Write it whole: http://127.0.0.1:8000/v1",
            )
        if parts.username or parts.password or parts.query or parts.fragment:
            raise UserError(
                "The URL of an endpoint holds no user, password, query or fragment.",
                remedy=f"Put the key into the environment variable {KEY_VARIABLE}.",
            )

    @property
    def host(self) -> str:
        """Name and port of the server."""
        return urlsplit(self.url).netloc


class ChatAPI:
    """Asks an endpoint; may be called by several threads at once.

    Args:
        endpoint: where.
        sleep: waits between attempts.
    """

    def __init__(self, endpoint: Endpoint, sleep: Callable[[float], None] = time.sleep) -> None:
        import httpx2

        self.endpoint, self._sleep = endpoint, sleep
        self._url = f"{endpoint.url.rstrip('/')}/chat/completions"
        self._key = _key_for(endpoint)
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        self._client = httpx2.Client(headers=headers, timeout=endpoint.seconds, follow_redirects=False)
        self._lock = threading.Lock()
        self.tokens = 0

    def ask(self, request: Mapping[str, Any]) -> str:
        """The text of the one choice that the endpoint writes.

        Args:
            request: of /chat/completions, without the model.

        Raises:
            NoReply: it refused, was cut, or did not answer as a chat endpoint does, in all attempts.
            UserError: it cannot be reached, or does not know the key, the path or the model: no call would succeed.
        """
        body = {"model": self.endpoint.model, **request}
        for attempt in range(1, self.endpoint.attempts + 1):
            try:
                return self._content(self._attempt(body))
            except _Again as error:
                if attempt < self.endpoint.attempts:
                    self._sleep(self._pause(attempt, error.pause))
                    continue
                if error.kind == _UNREACHABLE:
                    raise UserError(
                        f"{self.endpoint.host} cannot be reached: {error.message}.",
                        remedy="Start the server, or look at the URL; what is judged stays.",
                    ) from error
                raise NoReply(error.kind, error.message) from error
        raise AssertionError("at least one attempt is made")

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def hidden(self, text: str) -> str:
        """A text of the server without the key, whatever it looks like."""
        return redact(text.replace(self._key, "[hidden]") if self._key else text)

    def _attempt(self, body: Mapping[str, Any]) -> str:
        """The text of a reply with status 200."""
        import httpx2

        deadline = time.monotonic() + self.endpoint.seconds
        try:
            with self._client.stream("POST", self._url, content=json.dumps(body)) as response:
                text = self._read(response, deadline)
        except httpx2.TimeoutException as error:
            raise _Again(f"took over {self.endpoint.seconds:g} s") from error
        except httpx2.ConnectError as error:
            raise _Again(_UNREACHABLE, self.hidden(str(error))) from error
        except httpx2.HTTPError as error:
            raise _Again("broke off", self.hidden(f"{type(error).__name__}: {error}")) from error
        status, said = response.status_code, self.hidden(text)[:SHOWN]
        if status == 200:
            return text
        if status in _REFUSED:
            raise UserError(f"{self.endpoint.host} answers {status}: {said}", remedy=_REFUSED[status])
        if status not in _AGAIN:
            raise NoReply(f"status {status}", said)
        pause = response.headers.get("retry-after", "")
        raise _Again(f"status {status}", said, pause=float(pause) if pause.isdecimal() else None)

    def _read(self, response: "httpx2.Response", deadline: float) -> str:
        """The body, if it comes in time: a server that sends a byte now and then would not be timed out otherwise."""
        import httpx2

        parts, size = list[bytes](), 0
        for part in response.iter_bytes():
            size += len(part)
            parts.append(part)
            if size > MOST_BYTES:
                raise NoReply("too long", f"over {MOST_BYTES:,} bytes")
            if time.monotonic() > deadline:
                raise httpx2.ReadTimeout("the time is over", request=response.request)
        return b"".join(parts).decode("utf-8", "replace")

    def _pause(self, attempt: int, asked: float | None) -> float:
        own = self.endpoint.wait * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)
        return min(own if asked is None else asked, self.endpoint.longest_wait)

    def _content(self, text: str) -> str:
        try:
            reply = parse(text)
        except Malformed as error:
            raise NoReply("not JSON", str(error)) from error
        usage = reply.get("usage") if isinstance(reply, dict) else None
        total = usage.get("total_tokens") if isinstance(usage, dict) else None
        with self._lock:
            self.tokens += total if isinstance(total, int) and total > 0 else 0
        choices = reply.get("choices") if isinstance(reply, dict) else None
        choice: Json = choices[0] if isinstance(choices, list) and len(choices) == 1 else None
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(choice, dict) or not isinstance(message, dict):
            raise NoReply("no choice", "the reply is not that of a chat endpoint")
        if message.get("refusal"):
            raise NoReply("refused", self.hidden(str(message["refusal"]))[:SHOWN])
        content = message.get("content")
        if choice.get("finish_reason") == "length":
            raise NoReply("cut off", "the reply reached its longest length")
        if choice.get("finish_reason") == "content_filter":
            raise NoReply("refused", "by a content filter")
        if not isinstance(content, str):
            raise NoReply("no text", "the message has no content")
        return content


def _key_for(endpoint: Endpoint) -> str:
    """The key from the environment, "" without one.

    Raises:
        UserError: it cannot stand in a header, or would travel unencrypted to another machine.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError(f"{KEY_VARIABLE} holds no key: a key has letters, digits and signs alone.")
    parts = urlsplit(endpoint.url)
    if key and parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise UserError(
            f"The key would travel to {endpoint.host} unencrypted.",
            remedy=f"Use https, reach the server through a tunnel to 127.0.0.1, or unset {KEY_VARIABLE}.",
        )
    return key
