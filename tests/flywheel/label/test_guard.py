"""Who may talk to the page: header by header, on a request that is fine but for them."""

import pytest

from lite_align.flywheel.label.guard import HEADERS, LARGEST_BODY, refusal

TOKEN = "f" * 32
FINE = {
    "host": "127.0.0.1:8000",
    "origin": "http://127.0.0.1:8000",
    "sec-fetch-site": "same-origin",
    "content-type": "application/json",
    "content-length": "20",
    "x-lite-align-token": TOKEN,
}


def status(method: str = "POST", path: str = "/api/vote", **changed: str | None) -> int:
    """The status of the refusal of a write with these headers changed (None: left out), or 200."""
    named = {name.replace("_", "-"): value for name, value in changed.items()}
    headers = {name: value for name, value in {**FINE, **named}.items() if value is not None}
    refused = refusal(method, path, headers, TOKEN)
    return refused.status if refused else 200


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, 200),
        ({"host": "localhost:9999", "origin": "http://localhost:9999"}, 200),  # a port that ssh forwards
        ({"host": "[::1]:8000", "origin": "http://[::1]:8000"}, 200),
        ({"host": "LOCALHOST", "origin": "http://LOCALHOST"}, 200),
        ({"content_type": "application/json; charset=utf-8"}, 200),
        ({"origin": None}, 200),
        ({"sec_fetch_site": None}, 200),
        # DNS rebinding: another name, though origin and host agree, and a name that begins or ends like ours.
        ({"host": "attacker.example:8000", "origin": "http://attacker.example:8000"}, 421),
        ({"host": "127.0.0.1.attacker.example", "origin": "http://127.0.0.1.attacker.example"}, 421),
        ({"host": "localhost@attacker.example"}, 421),
        ({"host": "attacker.example#localhost"}, 421),
        ({"host": "0.0.0.0:8000", "origin": "http://0.0.0.0:8000"}, 421),
        ({"host": "127.0.0.1:port"}, 421),
        ({"host": "127.0.0.1, attacker.example"}, 421),
        ({"host": None}, 421),
        # Another site, also one on another port of this machine, or on none that can be named.
        ({"origin": "http://attacker.example", "sec_fetch_site": "cross-site"}, 403),
        ({"origin": "http://127.0.0.1:9000", "sec_fetch_site": "same-site"}, 403),
        ({"origin": "https://127.0.0.1:8000"}, 403),
        ({"origin": "null"}, 403),
        ({"sec_fetch_site": "none"}, 403),
        ({"origin": None, "sec_fetch_site": None}, 403),
        ({"origin": "http://127.0.0.1:8000, http://attacker.example"}, 403),
        # What a form of another site can send without asking first.
        ({"x_lite_align_token": None}, 403),
        ({"x_lite_align_token": "0" * 32}, 403),
        ({"x_lite_align_token": "ü"}, 403),
        ({"content_type": "text/plain"}, 415),
        ({"content_type": "application/x-www-form-urlencoded"}, 415),
        ({"content_type": None}, 415),
        ({"content_length": str(LARGEST_BODY)}, 200),
        ({"content_length": str(LARGEST_BODY + 1)}, 413),
        ({"content_length": "-1"}, 413),
    ],
)
def test_a_write_is_refused_for_any_header_that_is_not_ours(changed: dict, expected: int) -> None:
    assert status(**changed) == expected


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT"])
def test_no_other_method_is_understood_so_no_other_site_is_let_in(method: str) -> None:
    assert status(method) == 405
    assert not any(name.lower().startswith("access-control") for name in HEADERS)


def test_reading_needs_the_token_but_for_the_page_itself() -> None:
    bare = {"origin": None, "sec_fetch_site": None, "content_type": None, "content_length": None}
    assert status("GET", "/", x_lite_align_token=None, **bare) == 200
    assert status("GET", "/api/question", **bare) == 200
    assert status("GET", "/api/question", x_lite_align_token=None, **bare) == 403
    assert status("GET", "/", host="attacker.example", **bare) == 421


def test_the_policy_allows_nothing_inline_and_no_frame() -> None:
    policy = HEADERS["Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert HEADERS["X-Frame-Options"] == "DENY"
