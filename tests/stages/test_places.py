"""Folders of steps: the same inputs come back to the same folder, others get one of their own."""

import json
from pathlib import Path

import pytest

from lite_align.errors import UserError
from lite_align.stages.places import Places


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path / "all", "steps.json")


def made(places: Places, name: str, inputs: str) -> Path:
    folder, _ = places.find(name, inputs)
    places.note(name, folder, inputs)
    folder.mkdir()
    return folder


def test_the_same_inputs_are_the_same_folder_and_others_another(places: Places) -> None:
    assert places.find("one", "a") == (places.root / "one", False)
    first = made(places, "one", "a")
    assert places.find("one", "a") == (first, True)
    assert places.find("one", "b") == (places.root / "one-0002", False)
    second = made(places, "one", "b")
    assert (second.name, places.folder("one")) == ("one-0002", second)
    assert places.find("one", "a") == (
        places.root / "one-0003",
        False,
    )  # a's folder is not what it was any more
    assert places.find("two", "a") == (places.root / "two", False)


def test_a_step_that_was_noted_and_not_begun_keeps_its_folder(places: Places) -> None:
    folder, _ = places.find("one", "a")
    places.note("one", folder, "a")
    assert places.find("one", "a") == (folder, True)


def test_a_folder_of_something_else_is_refused(places: Places) -> None:
    places.require_own("loop", "elsewhere")
    places.root.mkdir()
    places.require_own("loop", "elsewhere")
    (places.root / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="is not the folder of a loop"):
        places.require_own("loop", "elsewhere")
    made(places, "one", "a")
    places.require_own("loop", "elsewhere")
    assert set(json.loads(places.path.read_text())) == {"one"}


def test_a_damaged_file_says_what_to_do(places: Places) -> None:
    made(places, "one", "a")
    places.path.write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        places.find("one", "a")
