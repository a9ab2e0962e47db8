"""Lists of losses and runs, the doctor's page."""

import io
import json
from pathlib import Path

import pytest

from lite_align.errors import UserError
from lite_align.stages import overview
from lite_align.train import doctor
from lite_align.train.doctor import Check
from lite_align.view import View


def shown(function, *arguments, json_only=False) -> tuple[object, str]:
    out = io.StringIO()
    return function(*arguments, View(json=json_only, file=out, errors=out)), out.getvalue()


def test_every_loss_is_listed_with_formula_and_source():
    from lite_align.losses.catalogue import LOSSES

    text = shown(overview.show_losses)[1]
    for name in LOSSES:
        assert f"\n {name:<10}" in "\n" + text
    assert "needs no reference" in text
    assert " ".join(text.split()).count("learns from thumbs") == 2
    assert "arXiv 2305.18290" in text


def test_runs_are_listed_with_their_state(tmp_path):
    folder = tmp_path / "dpo-rows-0001"
    folder.mkdir()
    record = {
        "schema": 1,
        "stage": "dpo",
        "status": "finished",
        "started": "2026-01-02T03:04:05",
        "finished": "x",
    }
    record |= {
        "recipe": {"data": {"path": "rows.jsonl"}},
        "model": {"name": "tiny"},
        "verdict": {"word": "better"},
    }
    (folder / "run.json").write_text(json.dumps(record))
    text = shown(overview.show_runs, tmp_path)[1]
    (line,) = (line for line in text.splitlines() if "dpo-rows-0001" in line)
    assert line.split("  ")[0].strip() == "dpo-rows-0001"
    assert all(word in line for word in ("finished", "tiny", "rows.jsonl", "2026-01-02 03:04", "better"))
    (run,) = json.loads(shown(overview.show_runs, tmp_path, json_only=True)[1])["runs"]
    assert run["status"] == "finished"


def test_a_report_needs_a_run(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        shown(overview.write_report, [tmp_path], None)


def test_a_report_is_of_a_run_of_several_or_of_a_comparison(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text("{}")
    (tmp_path / "judged").mkdir()
    (tmp_path / "judged" / "compare.json").write_text("{}")
    for folders, page in (
        (["a"], "a/report.html"),
        (["a", "b"], "report-a-vs-b.html"),
        (["judged"], "judged/report.html"),
    ):
        text = shown(overview.write_report, [Path(name) for name in folders], None)[1]
        assert page in text
        assert (tmp_path / page).is_file()
    shown(overview.write_report, [Path("a")], Path("own.html"))
    assert (tmp_path / "own.html").read_bytes() == (tmp_path / "a" / "report.html").read_bytes()


@pytest.mark.parametrize("out", ["folder", "missing/page.html"])
def test_a_report_needs_a_place(tmp_path, out):
    (tmp_path / "folder").mkdir()
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="folder"):
        shown(overview.write_report, [tmp_path], tmp_path / out)


@pytest.mark.parametrize(
    ("grade", "code", "words"),
    [
        ("ok", 0, "A dpo run can start."),
        ("mend", 0, "A dpo run can start. Worth mending: disk."),
        ("stop", 2, "No run can start: mend disk first."),
    ],
)
def test_the_doctor_ends_with_a_verdict_and_an_exit_code(monkeypatch, grade, code, words):
    checks = [Check("library", "a 1"), Check("library", "b 2"), Check("disk", "full", grade, "Make room.")]
    monkeypatch.setattr(doctor, "examine", lambda folder: checks)
    result, text = shown(overview.show_doctor)
    assert result == code
    assert "library   a 1 · b 2" in text
    assert "Make room." in text
    assert words in text
    record = json.loads(shown(overview.show_doctor, json_only=True)[1])
    assert record["can_start"] == (code == 0)


def test_runs_stand_below_what_they_continue(tmp_path):
    """By the hash of the adapter, wherever the parent's folder is now; pipelines are looked into."""

    def run(name: str, started: int, adapter: str, parent: str = "") -> None:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        record = {
            "schema": 1,
            "stage": name.split("/")[-1].rstrip("0123456789-"),
            "status": "finished",
            "started": f"2026-01-02T03:04:{started:02}",
            "finished": "x",
            "adapters": {"policy": adapter},
            "parents": [{"run": "runs/moved", "adapter": parent}] if parent else [],
            "recipe": {"data": {"path": "rows.jsonl"}},
        }
        (folder / "run.json").write_text(json.dumps(record))

    run("sft-0001", 1, "a")
    run("town/dpo", 2, "b", "a")
    run("dpo-0002", 3, "c", "b")
    run("town/reward", 4, "d", "a")
    run("dpo-0003", 5, "e", "lost")
    text = shown(overview.show_runs, tmp_path)[1]
    drawn = [line.split("finished")[0].rstrip() for line in text.splitlines()[2:]]
    assert [line.strip().rsplit(maxsplit=1)[0].rstrip() for line in drawn] == [
        "sft-0001",
        "├─ town/dpo",
        "│  └─ dpo-0002",
        "└─ town/reward",
        "dpo-0003",
    ]
