"""One call of an OpenAI-compatible chat endpoint: within a time, tried again, its answer read as far as it is due.

Nothing is sent anywhere but to the URL that was given: redirects are not followed. The key comes from an environment
variable, goes into one header, and is hidden wherever a text of the server is shown.
"""

import os
import random
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
MOST_BYTES = 2**20
"""Of a reply; a longer one is no verdict."""

_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_REFUSED = {
    401: f"Put the key into the environment variable {KEY_VARIABLE}.",
    403: f"Look at the key in {KEY_VARIABLE} and at what it may use.",
    404: "Look at the URL, which ends before /chat/completions, and at the model's name (--model).",
}


class NoReply(Exception):
    """The endpoint gave nothing that counts; `kind` is what is counted."""

    def __init__(self, kind: str, message: str = "") -> None:
        super().__init__(f"{kind}: {message}" if message else kind)
        self.kind, self.message = kind, message


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
        self._key = os.environ.get(KEY_VARIABLE, "").strip()
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx2.Client(headers=headers, timeout=endpoint.seconds, follow_redirects=False)
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
        for attempt in range(self.endpoint.attempts):
            last = attempt + 1 == self.endpoint.attempts
            status, headers, text = self._attempt(body, last)
            if status == 200:
                return self._content(text)
            if status in _REFUSED:
                raise UserError(
                    f"{self.endpoint.host} answers {status}: {self.hidden(text)[:200]}",
                    remedy=_REFUSED[status],
                )
            if status not in _AGAIN or last:
                raise NoReply(
                    f"status {status}" if status else text, self.hidden(text)[:200] if status else ""
                )
            self._sleep(self._pause(attempt, headers))
        raise AssertionError("at least one attempt is made")

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def hidden(self, text: str) -> str:
        """A text of the server without the key, whatever it looks like."""
        return redact(text.replace(self._key, "[hidden]") if self._key else text)

    def _attempt(self, body: Mapping[str, Any], last: bool) -> tuple[int, Mapping[str, str], str]:
        """Status, headers and text of one attempt; status 0 and what happened where none came in time."""
        import httpx2

        url = f"{self.endpoint.url.rstrip('/')}/chat/completions"
        deadline = time.monotonic() + self.endpoint.seconds
        try:
            with self._client.stream("POST", url, json=body) as response:
                return response.status_code, response.headers, self._read(response, deadline)
        except httpx2.TimeoutException:
            return 408, {}, f"no answer in {self.endpoint.seconds:g} s"
        except httpx2.ConnectError as error:
            if not last:
                return 503, {}, "unreachable"
            raise UserError(
                f"{self.endpoint.host} cannot be reached: {self.hidden(str(error))}.",
                remedy="Start the server, or look at the URL; what is judged stays.",
            ) from error
        except httpx2.HTTPError as error:
            return 502, {}, self.hidden(f"{type(error).__name__}: {error}")

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

    def _pause(self, attempt: int, headers: Mapping[str, str]) -> float:
        asked = headers.get("retry-after", "")
        if asked.isdecimal():
            return min(float(asked), self.endpoint.longest_wait)
        return min(self.endpoint.wait * 2**attempt * random.uniform(0.75, 1.25), self.endpoint.longest_wait)

    def _content(self, text: str) -> str:
        try:
            reply = parse(text)
        except Malformed as error:
            raise NoReply("not JSON", str(error)) from error
        usage = reply.get("usage") if isinstance(reply, dict) else None
        total = usage.get("total_tokens") if isinstance(usage, dict) else None
        self.tokens += total if isinstance(total, int) and total > 0 else 0
        choices = reply.get("choices") if isinstance(reply, dict) else None
        choice: Json = choices[0] if isinstance(choices, list) and len(choices) == 1 else None
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(choice, dict) or not isinstance(message, dict):
            raise NoReply("no choice", "the reply is not that of a chat endpoint")
        if message.get("refusal"):
            raise NoReply("refused", self.hidden(str(message["refusal"]))[:200])
        content = message.get("content")
        if choice.get("finish_reason") == "length":
            raise NoReply("cut off", "the reply reached its longest length")
        if choice.get("finish_reason") == "content_filter":
            raise NoReply("refused", "by a content filter")
        if not isinstance(content, str):
            raise NoReply("no text", "the message has no content")
        return content
