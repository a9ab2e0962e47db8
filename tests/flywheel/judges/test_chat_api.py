"""Calls of an endpoint against a real server: what is tried again, what is given up, what is never shown."""

import socket
import threading
import time

import pytest

from lite_align.errors import UserError
from lite_align.flywheel.judges.chat_api import KEY_VARIABLE, MOST_BYTES, ChatAPI, Endpoint, NoReply
from tests.flywheel.judges.endpoint_server import Said, content, serving

KEY = "canary-7d1f"
ASKED = {"messages": [{"role": "user", "content": "Hi \ud800"}]}


@pytest.fixture
def api():
    """Makes callers of a URL; all are closed at the end."""
    made = []

    def make(url, sleep=lambda seconds: None, **options):
        made.append(ChatAPI(Endpoint(url, "some-model", **{"seconds": 2.0, **options}), sleep=sleep))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_one_call_sends_the_model_and_no_key_where_there_is_none(api):
    with serving(lambda request: content("Yes.")) as server:
        calls = api(server.url + "/")
        assert calls.ask(ASKED) == "Yes."
    assert server.requests == [{"model": "some-model", **ASKED}]
    assert server.paths == ["/v1/chat/completions"]
    assert "Authorization" not in server.headers[0]


def test_the_key_comes_from_the_environment_and_goes_into_one_header(api, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, f" {KEY}\n")
    with serving(lambda request: Said({"error": f"bad key {KEY}"}, 400)) as server:
        with pytest.raises(NoReply) as caught:
            api(server.url).ask(ASKED)
        assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in str(server.requests)
    assert KEY not in str(caught.value)
    assert "[hidden]" in str(caught.value)


def test_what_may_pass_is_tried_again_with_growing_waits(api):
    replies = iter(
        [Said("busy", 429), Said("down", 503), Said("slow", 429, {"Retry-After": "7"}), content("Yes.")]
    )
    waits = []
    with serving(lambda request: next(replies)) as server:
        assert api(server.url, waits.append, wait=1.0).ask(ASKED) == "Yes."
    assert len(server.requests) == 4
    assert 0.75 <= waits[0] <= 1.25
    assert 1.5 <= waits[1] <= 2.5
    assert waits[2] == 7.0


def test_a_wait_is_never_longer_than_the_longest(api):
    waits = []
    reply = Said("", 429, {"Retry-After": "86400"})
    with serving(lambda request: reply) as server, pytest.raises(NoReply, match="status 429"):
        api(server.url, waits.append, attempts=2, longest_wait=3.0).ask(ASKED)
    assert waits == [3.0]


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (Said("not json"), "not JSON"),
        (Said('{"choices": [], "choices": []}'), "not JSON"),
        (Said("[]"), "no choice"),
        (Said({"choices": []}), "no choice"),
        (Said({"choices": [{"message": {}}, {"message": {}}]}), "no choice"),
        (Said({"choices": [{"message": "A"}]}), "no choice"),
        (content(None), "no text"),
        (content(None, message={"refusal": "I will not."}), "refused"),
        (content("A", finish_reason="content_filter"), "refused"),
        (content('{"win', finish_reason="length"), "cut off"),
        (Said("wrong", 400), "status 400"),
        (Said("x" * (MOST_BYTES + 1)), "too long"),
    ],
)
def test_what_does_not_count_is_no_reply_and_is_not_asked_again(api, said, kind):
    with serving(lambda request: said) as server:
        with pytest.raises(NoReply) as caught:
            api(server.url).ask(ASKED)
        assert caught.value.kind == kind
        assert len(server.requests) == 1


def drip(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b" ")
        time.sleep(0.05)


def hang(handler):
    time.sleep(1.0)


def broken(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n123")


@pytest.mark.parametrize(
    ("raw", "kind"), [(drip, "took over 0.3 s"), (hang, "took over 0.3 s"), (broken, "broke off")]
)
def test_a_reply_that_does_not_come_whole_in_time_is_none(api, raw, kind):
    with serving(lambda request: Said(raw=raw)) as server:
        begun = time.monotonic()
        with pytest.raises(NoReply) as caught:
            api(server.url, attempts=2, seconds=0.3).ask(ASKED)
        assert time.monotonic() - begun < 3
        assert caught.value.kind == kind
        assert len(server.requests) == 2


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_no_call_can_mend_stops(api, status, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    reply = Said(f"no {KEY}", status)
    told = rf"answers {status}: no \[hidden\]"
    with serving(lambda request: reply) as server, pytest.raises(UserError, match=told):
        api(server.url).ask(ASKED)


def test_redirects_are_not_followed(api):
    with (
        serving(lambda request: content("stolen")) as other,
        serving(lambda request: Said("", 307, {"Location": other.url})) as server,
        pytest.raises(UserError, match="answers 307"),
    ):
        api(server.url).ask(ASKED)
    assert other.requests == []


def test_a_server_that_is_not_there_stops_after_all_attempts(api):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        waits = []
        with pytest.raises(UserError, match="cannot be reached"):
            api(f"http://127.0.0.1:{port}/v1", waits.append, attempts=3).ask(ASKED)
    assert len(waits) == 2


def test_tokens_are_counted_over_threads(api):
    body = content("Yes.").body
    with serving(lambda request: Said({**body, "usage": {"total_tokens": 12}})) as server:
        calls = api(server.url)
        threads = [threading.Thread(target=calls.ask, args=(ASKED,)) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert calls.tokens == 60


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("", "no URL"),
        ("localhost:8000", "no URL"),
        ("ftp://host/v1", "no URL"),
        ("https://", "no URL"),
        ("https://ann:secret-word@host/v1", "no user, password"),
        ("https://host/v1?key=1", "no user, password"),
    ],
)
def test_only_a_whole_url_without_secrets_is_one(url, what):
    with pytest.raises(UserError, match=what) as caught:
        Endpoint(url, "m")
    assert "secret-word" not in str(caught.value)


def test_a_key_does_not_travel_unencrypted(api, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with pytest.raises(UserError, match="unencrypted"):
        api("http://host.example/v1")
    api("https://host.example/v1")
    monkeypatch.setenv(KEY_VARIABLE, "two words")
    with pytest.raises(UserError, match="holds no key"):
        api("https://host.example/v1")
