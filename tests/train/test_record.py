"""record: readers of run folders see what is there, also when it is torn, damaged or dead."""

import json
import shutil
from pathlib import Path

import pytest

from lite_align.errors import UserError
from lite_align.train.record import (
    data_path,
    find_unfinished,
    library_versions,
    list_runs,
    read_metrics,
    read_record,
)
from lite_align.train.run import Run


def recipe(data: str) -> dict[str, object]:
    return {"stage": "dpo", "data": {"path": data}}


def make(root: Path, data: str, status: str = "", stage: str = "dpo", started: str = "") -> Path:
    with_status = Run.create(stage=stage, recipe=recipe(data), root=root)
    if status:
        with_status.finish(status, {"word": "better"} if status == "finished" else None)
    if started:
        with_status.record["started"] = started
        with_status.update("model", {"name": "tiny"})
    with_status.close()
    return with_status.path


def test_list_of_runs_tells_a_killed_run_from_a_live_one(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl", "finished", started="2026-01-01T00:00:00+00:00")
    make(tmp_path, "b.jsonl", "interrupted", started="2026-01-03T00:00:00+00:00")
    make(tmp_path, "c.jsonl", started="2026-01-02T00:00:00+00:00")
    live = Run.create(stage="sft", recipe=recipe("d.jsonl"), root=tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text('{"schema": 1, "sta')
    (tmp_path / "other").mkdir()
    runs = list_runs(tmp_path)
    live.close()
    assert [(r.folder.name, r.status) for r in runs] == [
        ("broken", "unreadable"),
        ("dpo-a-0001", "finished"),
        ("dpo-c-0001", "killed"),
        ("dpo-b-0001", "interrupted"),
        ("sft-d-0001", "running"),
    ]
    assert (runs[1].stage, runs[1].data, runs[1].model, runs[1].verdict) == (
        "dpo",
        "a.jsonl",
        "tiny",
        "better",
    )
    assert list_runs(tmp_path / "nowhere") == []


def test_stages_of_pipelines_and_rounds_of_loops_are_listed(tmp_path: Path) -> None:
    made = make(tmp_path / "elsewhere", "a.jsonl", "finished")
    for place in ("tiny/sft", "town/round-1/dpo", "town/round-1-0002/dpo", "town/other/dpo"):
        shutil.copytree(made, tmp_path / "runs" / place)
    found = {run.folder.relative_to(tmp_path / "runs").as_posix() for run in list_runs(tmp_path / "runs")}
    assert found == {"tiny/sft", "town/round-1/dpo", "town/round-1-0002/dpo"}


def test_the_newest_unfinished_run_of_the_same_stage_and_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "runs"
    assert find_unfinished(root, "dpo", "a.jsonl") is None
    make(root, "a.jsonl", "interrupted", started="2026-01-01T00:00:00+00:00")
    newest = make(root, "a.jsonl", "failed", started="2026-01-02T00:00:00+00:00")
    make(root, "a.jsonl", "finished", started="2026-01-03T00:00:00+00:00")
    make(root, "b.jsonl", "interrupted", started="2026-01-04T00:00:00+00:00")
    make(root, "a.jsonl", "interrupted", stage="sft", started="2026-01-05T00:00:00+00:00")
    assert find_unfinished(root, "dpo", "a.jsonl") == newest
    assert find_unfinished(root, "dpo", str(tmp_path / "a.jsonl")) == newest
    assert find_unfinished(root, "dpo", "c.jsonl") is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"schema": 99}'])
def test_a_damaged_or_foreign_record_is_an_error_for_people(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UserError, match=r"run\.json"):
        read_record(tmp_path)


def test_metrics_are_read_up_to_a_torn_line(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    rows = [{"step": 1, "loss": 0.5}, {"step": 2, "eval/loss": 0.4}]
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 3, "lo'
    )
    assert read_metrics(tmp_path) == rows


def test_versions_come_without_importing_anything() -> None:
    versions = library_versions()
    assert {"lite-align", "python", "torch", "transformers", "safetensors"} <= versions.keys()


def test_data_path_of_a_recipe_without_data() -> None:
    assert data_path({}) == data_path({"data": None}) == ""
    assert data_path(recipe("x.jsonl")) == "x.jsonl"
