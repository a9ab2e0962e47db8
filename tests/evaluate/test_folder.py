"""Reading run folders that are whole, cut off, or none."""

import json
from pathlib import Path

import pytest

from lite_align.errors import UserError
from lite_align.evaluate.folder import is_number, read


def test_missing_files_are_empty_and_a_cut_last_line_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"stage": "dpo", "model": 3}')
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": NaN}\n{"step": 3, "lo'
    )
    folder = read(tmp_path)
    assert (folder.held_out, folder.answers, folder.part("model")) == ([], [], {})
    assert folder.series("loss") == ([1.0], [2.0])


def test_a_bad_line_in_the_middle_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "answers.jsonl").write_text('{"a": 1}\n{oops\n{"b": 2}\n')
    with pytest.raises(UserError, match=r"answers\.jsonl:2: not JSON"):
        read(tmp_path)


@pytest.mark.parametrize("content", [None, "not json", json.dumps([1])])
def test_a_folder_without_a_record_is_no_run(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"run\.json") as caught:
        read(tmp_path)
    assert "lite-align runs" in str(caught.value)


def test_numbers_are_finite_and_not_bool() -> None:
    assert [is_number(v) for v in (1, 0.5, True, "1", None, float("nan"), float("inf"))] == [True, True] + [
        False
    ] * 5
