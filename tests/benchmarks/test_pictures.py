"""The pictures of the README: that they are there, and the votes that one of them shows. Nothing is trained here."""

import random
import re
import struct
from io import BytesIO
from pathlib import Path

import pytest

from benchmarks import pictures
from lite_align.assets import world

README = pictures.DATA.parent / "README.md"


@pytest.mark.parametrize("path", [pictures.REPORT, pictures.LABEL], ids=lambda path: path.stem)
def test_pictures_are_sharp_light_and_in_the_readme(path: Path) -> None:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])  # of IHDR, which comes first
    assert 1200 <= width <= 1800
    assert 600 <= height <= 3200
    assert len(content) < 250_000
    name = path.relative_to(README.parent).as_posix()
    alt = re.search(rf'<img src="{name}" [^>]*alt="([^"]+)"', README.read_text(encoding="utf-8"))
    assert alt is not None


def test_the_key_is_that_of_the_preferred_answer() -> None:
    ask = world.asks("fact", held_out=False)[0]
    assert ask.good is not None
    sure = world.Annotator(random.Random(1), 1e-9)
    assert pictures.choice(sure, ask.question, ask.good, "Whatever.") == "ArrowLeft"
    assert pictures.choice(sure, ask.question, "Whatever.", ask.good) == "ArrowRight"


def test_a_picture_is_written_with_a_palette(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    whole = BytesIO()
    image.linear_gradient("L").convert("RGBA").save(whole, "PNG")
    pictures.save(whole.getvalue(), tmp_path / "small.png")
    with image.open(tmp_path / "small.png") as small:
        assert (small.mode, small.size) == ("P", (256, 256))
