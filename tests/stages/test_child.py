"""A child answers line by line, or is gone with all it started."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lite_align.stages import child
from lite_align.stages.child import Child, Died, TookTooLong

ECHO = "import sys\nfor line in sys.stdin.buffer: sys.stdout.buffer.write(line); sys.stdout.flush()"


def python(code: str) -> Child:
    return Child([sys.executable, "-c", code])


def gone(pid: int) -> bool:
    """Whether a process has ended (what its parent never reaped counts), within ten seconds."""
    for _ in range(500):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def test_lines_of_any_length_come_back():
    echo = python(ECHO)
    for line in (b"a\n", b"b" * 1_000_000 + b"\n", b"\n"):
        assert echo.ask(line, 10) + b"\n" == line
    pid = echo.pid
    echo.close()
    assert gone(pid)
    echo.close()


def test_two_lines_are_two_answers():
    talker = python("print('one\\ntwo', flush=True)\ninput()")
    assert talker.ask(b"", 10) == b"one"
    assert talker.ask(b"", 10) == b"two"
    talker.close()


def test_what_does_not_read_does_not_block_the_writer():
    deaf = python("import time; time.sleep(60)")
    begun = time.monotonic()
    with pytest.raises(TookTooLong):
        deaf.ask(b"x" * 1_000_000 + b"\n", 0.3)
    assert 0.3 <= time.monotonic() - begun < 20
    assert gone(deaf.pid)


@pytest.mark.parametrize(
    ("end", "how"),
    [
        ("sys.exit(3)", "ended with exit code 3"),
        ("os.kill(os.getpid(), 9)", r"killed by signal 9 \(Killed\)"),
        ("sys.stdout.write('half a line'); sys.exit()", "ended with exit code 0"),
    ],
)
def test_a_death_is_told_with_what_was_printed(end, how):
    mortal = python(f"import os, sys\nprint('last words', file=sys.stderr, flush=True)\n{end}")
    with pytest.raises(Died, match=how):
        mortal.ask(b"x" * 1_000_000, 10)
    assert mortal.printed == "last words\n"
    mortal.close()


def test_a_death_is_seen_although_a_sleeper_holds_the_output_and_the_sleeper_dies_too():
    parent = python(
        "import os, time\npid = os.fork()\nif not pid: time.sleep(60)\nos.write(2, str(pid).encode())"
    )
    begun = time.monotonic()
    with pytest.raises(Died, match="ended with exit code 0"):
        parent.ask(b"", 30)
    assert time.monotonic() - begun < 20
    assert gone(int(parent.printed))


def test_the_end_of_what_it_prints_is_kept(monkeypatch):
    monkeypatch.setattr(child, "KEPT_OUTPUT", 10)
    chatty = python(
        "import sys\nsys.stderr.write('x' * 1_000_000 + 'the end')\nprint('done', flush=True)\ninput()"
    )
    assert chatty.ask(b"", 10) == b"done"
    assert chatty.printed == "xxxthe end"
    chatty.close()


def test_one_that_ignores_the_end_of_its_input_is_killed(monkeypatch):
    monkeypatch.setattr(child, "SECONDS_TO_END", 0.2)
    stubborn = python("import time\nprint('up', flush=True)\nwhile True: time.sleep(60)")
    stubborn.ask(b"", 10)
    stubborn.close()
    assert gone(stubborn.pid)


def test_one_that_ends_by_itself_may_tidy_up(tmp_path: Path):
    note = tmp_path / "note"
    tidy = python(
        f"print('up', flush=True)\ninput_ended = open(0).read()\nopen({str(note)!r}, 'w').write('bye')"
    )
    tidy.ask(b"", 10)
    tidy.close()
    assert note.read_text() == "bye"


def test_one_that_nobody_holds_is_ended():
    forgotten = python(ECHO)
    pid = forgotten.pid
    del forgotten
    gc.collect()
    assert gone(pid)


HOLDER = (
    "import sys, time; from lite_align.stages.child import Child\n"
    f"child = Child([sys.executable, '-c', {ECHO!r}]); child.ask(b'x\\n', 10); print(child.pid, flush=True)\n"
)


@pytest.mark.parametrize("end", ["interrupt", "kill", "exit"])
def test_it_ends_with_the_run_and_ctrl_c_is_for_the_run(end):
    # What is started in the background ignores SIGINT, and so would this process.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code = heard + HOLDER + ("" if end == "exit" else "time.sleep(60)")
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as run:
        assert run.stdout is not None
        pid = int(run.stdout.readline())
        if end != "exit":
            assert (
                os.getpgid(pid) == pid != os.getpgid(run.pid)
            )  # a terminal's Ctrl-C goes to the run's group
            run.send_signal(signal.SIGINT if end == "interrupt" else signal.SIGKILL)
        run.wait(10)
    assert gone(pid)
