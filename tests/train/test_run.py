"""run: one folder, one owner, a record that is always whole, and no secret anywhere in it."""

import json
import logging
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lite_align.errors import (
    DiskFull,
    DriftError,
    Interrupted,
    RunInUse,
    TrainingStopped,
    UserError,
)
from lite_align.train import files
from lite_align.train.record import read_metrics, read_record
from lite_align.train.run import Run

CLASSES = {
    "loss.beta": "refuse",
    "train.learning_rate": "ask",
    "train.log_steps": "free",
    "data.path": "refuse",
}


def recipe(**changes: object) -> dict[str, object]:
    values = {"path": "my data.jsonl", "beta": 0.1, "learning_rate": 1e-5, "log_steps": 1, **changes}
    return {
        "data": {"path": values["path"]},
        "loss": {"beta": values["beta"]},
        "train": {"learning_rate": values["learning_rate"], "log_steps": values["log_steps"]},
    }


def create(out: Path, **options: object) -> Run:
    return Run.create(stage="dpo", recipe=recipe(**options), out=out)


# --- folders ---


def test_runs_are_numbered_per_stage_and_data(tmp_path: Path) -> None:
    names = []
    for data in ("my data.jsonl", "my data.jsonl", "org/prefs", "データ é.jsonl", "", "/x/../.."):
        with Run.create(stage="dpo", recipe=recipe(path=data), root=tmp_path / "runs") as run:
            names.append(run.path.name)
    assert names == [
        *("dpo-my-data-0001", "dpo-my-data-0002", "dpo-prefs-0001", "dpo-データ-é-0001"),
        *("dpo-data-0001", "dpo-data-0002"),
    ]
    (tmp_path / "runs" / "dpo-my-data-0041").mkdir()
    with Run.create(stage="dpo", recipe=recipe(), root=tmp_path / "runs") as run:
        assert run.path.name == "dpo-my-data-0042"


@pytest.mark.parametrize("name", ["plain", "with space", "ünïcødé 数据", "deep/er/still"])
def test_a_given_folder_is_made_or_taken_if_empty(tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    if name == "plain":
        out.mkdir(mode=0o755)
    with create(out) as run:
        run.log_metrics({"step": 1, "loss": 0.5})
        run.write("report.html", "<p>é</p>")
        run.write_rows("answers.jsonl", [{"prompt": "é"}])
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()}
    assert found == dict.fromkeys(
        (".lock", "answers.jsonl", "log.txt", "metrics.jsonl", "report.html", "run.json"), 0o600
    )
    assert (out / "answers.jsonl").read_text() == '{"prompt": "é"}\n'


def test_a_folder_in_use_is_refused_and_not_touched(tmp_path: Path) -> None:
    thesis = tmp_path / "out" / "thesis.tex"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    with pytest.raises(UserError, match="already in use") as caught:
        create(tmp_path / "out")
    assert caught.value.exit_code == 2
    assert "thesis.tex" in caught.value.details[0]
    assert "--resume" in caught.value.remedy
    assert "--out" in caught.value.remedy
    assert os.listdir(thesis.parent) == ["thesis.tex"]
    with pytest.raises(UserError, match="is a file"):
        create(thesis)
    create(tmp_path / "run").close()
    with pytest.raises(UserError, match="already in use"):
        create(tmp_path / "run")


def test_a_start_that_died_after_the_lock_does_not_block_the_folder(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("{}")
    create(tmp_path).close()


def test_the_second_process_exits_73_whether_it_creates_or_resumes(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from lite_align.train.run import Run\n"
        "from lite_align.errors import LiteAlignError\n"
        "try:\n"
        "  for start in (lambda p: Run.create(stage='dpo', recipe={}, out=p), Run.resume):\n"
        "    try: start(Path(sys.argv[1]))\n"
        "    except LiteAlignError as error: print(error.exit_code, error)\n"
        "finally: assert 'torch' not in sys.modules"
    )
    with create(tmp_path / "run") as run:
        before = {path.name: path.read_bytes() for path in run.path.iterdir()}
        done = subprocess.run(
            [sys.executable, "-c", program, str(run.path)],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert {path.name: path.read_bytes() for path in run.path.iterdir()} == before
        with pytest.raises(RunInUse):
            Run.resume(run.path)
    assert len(re.findall(rf"^73 .*in use by process {os.getpid()} on ", done.stdout, re.M)) == 2


@pytest.mark.parametrize("kind", ["open", "mkdir"])
def test_a_folder_that_may_not_be_written_is_an_error_for_people(tmp_path: Path, kind: str) -> None:
    fault = files.Fault(kind, 1, 13)
    with pytest.raises(UserError, match="Permission denied") as caught, files.observed(fault):
        create(tmp_path / "run")
    assert fault.fired
    assert caught.value.exit_code == 2
    assert caught.value.remedy


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_parent(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match="Permission denied"):
            create(tmp_path / "run")
    finally:
        tmp_path.chmod(0o700)


# --- record ---


def test_the_record_says_what_ran(tmp_path: Path) -> None:
    with Run.create(
        stage="dpo",
        recipe=recipe(),
        provenance={"loss.beta": "default"},
        out=tmp_path / "run",
        command=["lite-align", "dpo", "my data.jsonl"],
        parents=[{"run": "runs/sft"}],
    ) as run:
        running = read_record(run.path)
        run.update("data", {"name": "my data.jsonl", "rows": 3})
        run.event("memory", "micro-batch halved at step 3")
        run.finish(verdict={"word": "better"})
    record = read_record(run.path)
    assert (running["status"], running["finished"]) == ("running", None)
    assert (record["schema"], record["stage"], record["status"]) == (1, "dpo", "finished")
    assert record["recipe"] == recipe()
    assert record["provenance"] == {"loss.beta": "default"}
    assert record["parents"] == [{"run": "runs/sft"}]
    assert record["command"] == ["lite-align", "dpo", "my data.jsonl"]
    assert record["data"]["rows"] == 3
    assert record["verdict"] == {"word": "better"}
    assert record["events"][0]["kind"] == "memory"
    assert record["started"] <= record["finished"]
    assert record["finished"].endswith("+00:00")
    assert "torch" in record["versions"]
    with pytest.raises(ValueError, match="no section"):
        run.update("modle", {})
    with pytest.raises(ValueError, match="no final status"):
        run.finish("done")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Interrupted("stopped", signal_number=15), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
        (UserError("the data is wrong"), "failed"),
        (RuntimeError("a bug"), "failed"),
        (None, "finished"),
    ],
)
def test_the_status_is_final_whatever_happens(
    tmp_path: Path, error: BaseException | None, status: str
) -> None:
    def work() -> None:
        with create(tmp_path / "run"):
            if error is not None:
                raise error

    if error is None:
        work()
    else:
        with pytest.raises(type(error)):
            work()
    assert read_record(tmp_path / "run")["status"] == status
    log = (tmp_path / "run" / "log.txt").read_text()
    assert ("Traceback" in log) == isinstance(error, RuntimeError)
    if status == "finished":
        with pytest.raises(UserError, match="finished"):
            Run.resume(tmp_path / "run")
    else:
        with Run.resume(tmp_path / "run") as run:
            assert run.record["status"] == "running"
            assert run.record["resumes"][0]["status_before"] == status


def test_a_full_disk_at_the_end_does_not_hide_what_stopped_the_run(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    fault = files.Fault("write", 1, 28)
    with pytest.raises(TrainingStopped), files.observed(fault), run:
        raise TrainingStopped("loss is not finite")
    assert fault.fired
    assert read_record(tmp_path / "run")["status"] == "running"
    Run.resume(tmp_path / "run").close()  # the lock was given back


def test_resume_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        Run.resume(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_resume_cleans_what_a_killed_process_left(tmp_path: Path) -> None:
    create(tmp_path / "run").close()
    (tmp_path / "run" / ".run.json.tmp-1-ab").write_text("{")
    Run.resume(tmp_path / "run").close()
    assert sorted(os.listdir(tmp_path / "run")) == [".lock", "log.txt", "run.json"]


def test_a_record_is_whole_at_every_failing_operation(tmp_path: Path) -> None:
    with create(tmp_path / "run") as run:
        for nth in range(1, 6):
            fault = files.Fault("any", nth, 28)
            with pytest.raises(DiskFull), files.observed(fault):
                run.update("data", {"rows": nth})
            assert fault.fired
            assert read_record(run.path)["status"] == "running"
        assert not [name for name in os.listdir(run.path) if "tmp" in name]


# --- drift ---


def test_drift_is_refused_asked_for_or_taken(tmp_path: Path) -> None:
    hashes = {"data": "aa", "base": "bb"}
    run = create(tmp_path / "run")
    run.update("hashes", hashes)
    run.close()
    with Run.resume(run.path) as run:
        assert run.check_drift(recipe(), CLASSES, hashes=hashes) == []
        with pytest.raises(DriftError) as caught:
            run.check_drift(
                recipe(beta=0.2, learning_rate=1e-4, log_steps=3),
                CLASSES,
                hashes={"data": "cc", "base": "bb"},
            )
        assert [line.split(" ")[0] for line in caught.value.details] == [
            "loss.beta:",
            "hash.data:",
            "train.learning_rate:",
        ]
        assert '"aa" → "cc"' in caught.value.details[1]
        assert read_record(run.path)["recipe"] == recipe()
        taken = run.check_drift(
            recipe(learning_rate=1e-4, log_steps=3), CLASSES, hashes=hashes, accept=["train.learning_rate"]
        )
        assert [change.key for change in taken] == ["train.learning_rate", "train.log_steps"]
        record = read_record(run.path)
        assert record["recipe"]["train"] == {"learning_rate": 1e-4, "log_steps": 3}
        assert record["resumes"][-1]["changes"] == [str(change) for change in taken]
        assert "changed on resume: train.learning_rate: 1e-05 → 0.0001" in (run.path / "log.txt").read_text()
        run.finish("interrupted")


def test_hashes_are_taken_by_a_run_that_stopped_before_it_had_them(tmp_path: Path) -> None:
    create(tmp_path / "run").close()
    with Run.resume(tmp_path / "run") as run:
        run.check_drift(recipe(), CLASSES, hashes={"data": "aa"})
        with pytest.raises(DriftError, match=r"hash\.data"):
            run.check_drift(recipe(), CLASSES, hashes={"data": "bb"})
        with pytest.raises(DriftError, match="hash"):
            run.check_drift(recipe(), CLASSES)


def test_another_library_version_is_said(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    run.update("versions", {**run.record["versions"], "torch": "1.0"})
    run.close()
    with Run.resume(run.path) as run:
        run.check_drift(recipe(), CLASSES)
    assert "WARNING lite_align torch 1.0 → " in (run.path / "log.txt").read_text()


# --- metrics ---


def test_metrics_appear_line_by_line_and_resume_drops_later_and_torn_ones(tmp_path: Path) -> None:
    with create(tmp_path / "run") as run:
        for step in range(1, 6):
            run.log_metrics({"step": step, "loss": 1 / 3 / step, "learning_rate": 1e-5})
            assert read_metrics(run.path)[-1]["step"] == step
        run.log_metrics({"step": 5, "eval/loss": 0.25})
        path = run.path / "metrics.jsonl"
        path.write_bytes(path.read_bytes() + b'{"step": 6, "lo\0\0\0')
        assert run.truncate_metrics(4) == 3
        rows = read_metrics(run.path)
        assert [row["step"] for row in rows] == [1, 2, 3, 4]
        assert rows[2]["loss"] == 1 / 3 / 3
        run.log_metrics({"step": 5, "loss": 0.5})
        assert len(path.read_text().splitlines()) == 5
        assert run.truncate_metrics(5) == 0
        assert run.truncate_metrics(0) == 5
        assert path.read_bytes() == b""


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_metric_that_is_not_finite_stops_the_run(tmp_path: Path, value: float) -> None:
    with create(tmp_path / "run") as run:
        with pytest.raises(TrainingStopped, match="step 3 is not finite") as caught:
            run.log_metrics({"step": 3, "loss": value, "grad_norm": 1.0})
        assert caught.value.details == (f"loss is {value}",)
        assert read_metrics(run.path) == []


# --- secrets ---


def test_no_secret_is_in_any_file(tmp_path: Path) -> None:
    canary = "hf_" + "CanaryCanary" * 3
    url = f"https://someone:{canary}@example.org/data.jsonl"

    def work() -> None:
        with Run.create(
            stage="dpo",
            recipe=recipe(path=url),
            root=tmp_path,
            command=["lite-align", "dpo", url, f"--token={canary}"],
        ) as run:
            run.update("model", {"name": url})
            run.event("hub", f"GET {url}")
            run.log_metrics({"step": 1, "note": canary})
            run.write("report.html", f"<p>{url}</p>")
            run.write_rows("answers.jsonl", [{"prompt": canary}])
            logging.getLogger("lite_align.model").info("loading %s", url)
            raise RuntimeError(f"401 for {url}")

    with pytest.raises(RuntimeError):
        work()
    (folder,) = tmp_path.iterdir()
    contents = {path.name: path.read_text() for path in folder.iterdir()}
    assert "CanaryCanary" not in folder.name
    assert [name for name, text in contents.items() if "CanaryCanary" in text] == []
    assert "401 for https://" in contents["log.txt"]  # the traceback is there, without the secret
    assert "loading https://" in contents["log.txt"]
    assert json.loads(contents["run.json"])["error"].startswith("401")
    with Run.resume(folder) as run:  # a redacted value does not count as drift
        assert run.check_drift(recipe(path=url), CLASSES) == []


def test_the_log_stops_with_the_run(tmp_path: Path) -> None:
    logger = logging.getLogger("lite_align")
    before = list(logger.handlers)
    with create(tmp_path / "run"):
        logger.info("inside")
    logger.warning("outside")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "inside" in log
    assert "outside" not in log
    assert logger.handlers == before
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ INFO lite_align started dpo", log)


def test_a_full_disk_stops_the_log_too(tmp_path: Path) -> None:
    with (
        create(tmp_path / "run") as run,
        files.observed(files.Fault("write", 1, 28)),
        pytest.raises(DiskFull),
    ):
        run.log.info("no room for this")
