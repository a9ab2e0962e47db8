"""Who may talk to the local page: every request is checked before anything of it is read.

The page holds private text and writes files, and any web site that is open in the same browser can send requests to
the loopback interface. DNS rebinding gives such a site our address under its own name, hence the list of hosts; the
token is in the fragment of the address, which browsers send to nobody, and travels in a header, which no other site can
set without asking first (CORS, which is never granted).
"""

import hmac
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

TOKEN_HEADER = "x-lite-align-token"
LARGEST_BODY = 2**20
HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})

HEADERS: dict[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Sent with every answer."""


class Refusal(NamedTuple):
    """The status of the answer, and why."""

    status: int
    why: str


def refusal(method: str, path: str, headers: Mapping[str, str], token: str) -> Refusal | None:
    """Why a request is refused, or None.

    `headers` have names in lower case. Reading the page itself needs no token: it holds nothing.
    """
    host = headers.get("host", "")
    if _name(host) not in HOSTS:
        return Refusal(421, "this server answers to 127.0.0.1 and localhost only")
    if method not in ("GET", "HEAD", "POST"):
        return Refusal(405, "only GET and POST are understood")
    if path.startswith("/api/") and not hmac.compare_digest(
        headers.get(TOKEN_HEADER, "").encode(), token.encode()
    ):
        return Refusal(403, "the token is missing or wrong: open the address that was printed at the start")
    return _write_refusal(headers, host) if method == "POST" else None


def _write_refusal(headers: Mapping[str, str], host: str) -> Refusal | None:
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if origin is None and site is None:
        return Refusal(403, "a write comes from our own page, which says so")
    if (origin is not None and origin != f"http://{host}") or (site is not None and site != "same-origin"):
        return Refusal(403, "a write from another site")
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return Refusal(415, "a write is JSON")
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > LARGEST_BODY:
        return Refusal(413, "a write has at most 1 MiB")
    return None


def _name(host: str) -> str | None:
    """The name of a Host header without its port; None of one that is malformed."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # raises for a port that is none
    except ValueError:
        return None
    return parts.hostname if parts.netloc == host and "@" not in host and not parts.path else None
