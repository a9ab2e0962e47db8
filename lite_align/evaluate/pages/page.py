"""How a page is filled and saved: Jinja escapes every value, and what goes in unescaped holds no text of the user."""

import os
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from lite_align.evaluate.pages.texts import clean, together

if TYPE_CHECKING:
    from jinja2 import Environment


@cache
def environment() -> "Environment":
    """The templates of this folder; a name that is not given is an error."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    folder = files("lite_align.evaluate.pages")
    found = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8")),
    )
    found.filters["together"] = together
    found.filters["clean"] = clean
    return found


def fill(template: str, values: Mapping[str, object]) -> str:
    """A page as text; equal values give equal pages."""
    return environment().get_template(template).render(values)


def save(page: str, path: Path) -> Path:
    """Write a page in place of what was there, whole or not at all, and return its path."""
    half_written = path.with_name(path.name + ".tmp")
    half_written.write_bytes(page.encode("utf-8", errors="replace"))
    os.replace(half_written, path)
    return path
