"""No proxy stands between a test and its own server."""

import pytest

from lite_align.flywheel.judges.chat_api import KEY_VARIABLE


@pytest.fixture(autouse=True)
def no_proxy_and_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
        KEY_VARIABLE,
    ):
        monkeypatch.delenv(name, raising=False)
