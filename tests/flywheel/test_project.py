"""Project folders: what is current follows from the log alone, whatever happened in between."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lite_align.errors import RunInUse, UserError
from lite_align.flywheel import project
from lite_align.flywheel.project import Event, Project, event, opened


def names(found: Project) -> list[str]:
    return [one.run for one in found.released]


def pointer(folder: Path) -> str | None:
    known = json.loads((folder / project.CURRENT).read_text())
    return None if known is None else known["run"]


def test_the_last_promotion_is_current_and_a_rollback_returns_to_the_one_before(tmp_path: Path) -> None:
    with opened(tmp_path / "new", create=True) as one:
        for kind, run in (("promoted", "a"), ("refused", "x"), ("promoted", "b"), ("rolled back", "a")):
            one.add(event(kind, "ann", run=run, why="because"))
        assert names(one) == ["a"]
        assert pointer(one.folder) == "a"
    with opened(tmp_path / "new") as again:
        assert names(again) == ["a"]
        assert [one.who for one in again.events] == ["ann"] * 4
        again.add(event("rolled back", "ben"))
        assert again.current is None
        assert pointer(again.folder) is None


@given(st.lists(st.sampled_from("pbru"), max_size=30))
def test_the_released_runs_are_a_stack(moves: list[str]) -> None:
    events, stack = list[Event](), list[str]()
    for number, move in enumerate(moves):
        if move == "p":
            events.append(event("promoted", "ann", run=str(number)))
            stack.append(str(number))
        elif move == "b" and stack:
            events.append(event("rolled back", "ann"))
            stack.pop()
        elif move == "r":
            events.append(event("refused", "ann", run=str(number)))
        elif move == "u":
            events.append(event("used", "ann"))
    assert names(Project(Path(), events)) == stack


def test_uses_are_those_of_the_file_that_is_sealed_now() -> None:
    kinds = [("sealed", "1"), ("used", "1"), ("used", "1"), ("sealed", "2"), ("used", "2")]
    found = Project(Path(), [event(kind, "ann", sha256=sha) for kind, sha in kinds])  # type: ignore[arg-type]
    assert found.uses == 1
    assert Project(Path(), found.events[:3]).uses == 2


def test_a_pointer_that_was_lost_in_a_crash_is_written_again(tmp_path: Path) -> None:
    with opened(tmp_path, create=True) as one:
        one.add(event("promoted", "ann", run="a"))
    (tmp_path / project.CURRENT).write_text("null")
    with opened(tmp_path):
        assert pointer(tmp_path) == "a"


def test_a_project_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no project"), opened(tmp_path / "missing"):
        pass
    assert not (tmp_path / "missing").exists()


def test_a_line_that_is_no_event_is_named(tmp_path: Path) -> None:
    with opened(tmp_path, create=True) as one:
        one.add(event("promoted", "ann", run="a"))
    with (tmp_path / project.LOG).open("a") as log:
        log.write('{"kind": "prom')
    with pytest.raises(UserError, match=r"promotions\.jsonl:2"), opened(tmp_path):
        pass


def test_two_processes_cannot_open_a_project(tmp_path: Path) -> None:
    with opened(tmp_path, create=True), pytest.raises(RunInUse), opened(tmp_path, create=True):
        pass
