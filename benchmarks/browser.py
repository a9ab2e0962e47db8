"""A headless browser, and the label page in it, driven by keyboard over a real server process."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")
BROWSER = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-sync",
]


@contextmanager
def chromium() -> Iterator[Any]:
    """Headless Chromium, driven by playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=BROWSER)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Any, path: Path, **options: Any) -> Iterator[tuple[Any, list[str]]]:
    """The page of a file in a context of its own, and the list of addresses that it asked for."""
    context = browser.new_context(**options)
    try:
        page = context.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("dialog", lambda dialog: asked.append("dialog"))
        page.goto(path.as_uri())
        yield page, asked
    finally:
        context.close()


@contextmanager
def served(path: Path, *arguments: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """A process of `lite-align label` on a file, and the address that it prints."""
    command = [sys.executable, "-m", "lite_align", "label", str(path), *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            address = next(found[0] for line in process.stdout if (found := re.search(r"http://\S+", line)))
            yield address, process
        finally:
            process.kill()


class Booth:
    """One annotator at the label page, with a keyboard.

    Attributes:
        page: of playwright.
        asked: every address that it asked for, and what it wrote to the console.
    """

    def __init__(self, browser: Any, address: str, annotator: str | None = None, **options: Any) -> None:
        self.page = browser.new_context(**options).new_page()
        self.asked: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("dialog", lambda dialog: self.asked.append("dialog"))
        self.page.on("console", lambda message: self.asked.append(f"console: {message.text}"))
        self.page.goto(address)
        if annotator is not None:
            self.page.wait_for_selector("#door:not([hidden])")
            self.page.keyboard.type(annotator)  # the field has the focus
            self.page.keyboard.press("Enter")
        self.page.wait_for_selector("#booth:not([hidden])")

    def text(self, selector: str) -> str:
        """What an element says."""
        return self.page.locator(selector).text_content()

    def shown(self) -> tuple[str, str, str]:
        """Prompt and both answers."""
        return self.text("#prompt .text"), *(
            self.text(f".answer.{side} .text") for side in ("first", "second")
        )

    def press(self, key: str) -> None:
        """Press a key that votes or takes back, and wait until that is done."""
        before = self.text("#progress")
        self.page.keyboard.press(key)
        self.page.wait_for_function(
            "old => document.querySelector('#progress').textContent !== old", arg=before
        )
