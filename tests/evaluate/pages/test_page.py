"""How a page is filled and saved."""

from pathlib import Path

import pytest
from jinja2 import UndefinedError

from lite_align.evaluate.pages.page import environment, fill, save


def test_every_value_is_escaped_and_none_may_be_missing() -> None:
    template = environment().from_string("{{ text }}{{ text | clean | together }}")
    assert template.render(text="<b> 5 %") == "&lt;b&gt; 5 %&lt;b&gt; 5\u00a0%"
    with pytest.raises(UndefinedError):
        fill("run.html.j2", {})


def test_a_page_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("before")
    assert save("after \ud800", path).read_text() == "after ?"
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
