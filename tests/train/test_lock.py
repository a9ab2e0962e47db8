"""lock: one process at a time, and no trace of it after a kill."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lite_align.errors import LiteAlignError, RunInUse, UserError
from lite_align.train import files
from lite_align.train.lock import FolderLock, is_live, now

HOLDER = (
    "import sys; from pathlib import Path; from lite_align.train.lock import FolderLock\n"
    "lock = FolderLock.acquire(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
)


def test_a_second_process_gets_73_with_the_owner_and_a_kill_frees_the_folder(tmp_path: Path) -> None:
    assert not is_live(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        assert is_live(tmp_path)
        with pytest.raises(RunInUse, match=f"process {child.pid} on .*, since 20") as caught:
            FolderLock.acquire(tmp_path)
        assert caught.value.exit_code == 73
        assert "--out" in caught.value.remedy
        child.send_signal(signal.SIGKILL)
    assert not is_live(tmp_path)
    lock = FolderLock.acquire(tmp_path)
    assert is_live(tmp_path)
    lock.release()
    assert not is_live(tmp_path)


def test_a_second_lock_in_the_same_process_is_refused_too(tmp_path: Path) -> None:
    lock = FolderLock.acquire(tmp_path)
    (tmp_path / ".lock").write_bytes(b"torn {")
    with pytest.raises(RunInUse, match="in use by another process"):
        FolderLock.acquire(tmp_path)
    lock.release()


def test_a_look_does_not_make_a_start_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FolderLock.acquire(tmp_path).release()
    import fcntl

    looking = os.open(tmp_path / ".lock", os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH | fcntl.LOCK_NB)
    waits: list[float] = []
    monkeypatch.setattr(
        "lite_align.train.lock.time.sleep", lambda seconds: (waits.append(seconds), os.close(looking))
    )
    FolderLock.acquire(tmp_path).release()
    assert len(waits) == 1


def test_a_failure_after_the_lock_gives_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files, "dump_json", fail)
    with pytest.raises(LiteAlignError, match="Input/output error"):
        FolderLock.acquire(tmp_path)
    assert not is_live(tmp_path)


def test_a_folder_that_cannot_be_written_is_an_error_for_people(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Read-only file system"), files.observed(files.Fault("open", 1, 30)):
        FolderLock.acquire(tmp_path)


def test_time_is_utc_to_the_second() -> None:
    assert now().endswith("+00:00")
    assert len(now()) == len("2026-01-31T12:00:00+00:00")
