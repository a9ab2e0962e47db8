"""A process beside the run that answers line by line, each within a time: whatever it does, the run goes on."""

import contextlib
import os
import selectors
import signal
import subprocess
import time
import weakref
from collections.abc import Sequence

KEPT_OUTPUT = 65_536
MOST_READ = 65_536
SECONDS_BETWEEN_LOOKS = 0.1
SECONDS_TO_END = 2.0
"""How long a process may take to end after its input has ended; then it is killed."""


class Died(Exception):
    """The process ended in place of an answer, and how."""


class TookTooLong(Exception):
    """No answer came in time; the process was killed."""


class Child:
    """A process in a session of its own, so that Ctrl-C in the terminal reaches the run alone.

    Its standard input ends with the run, however that ends. The end of standard error is kept.

    Args:
        command: what to start.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        pipes = (self._process.stdin, self._process.stdout, self._process.stderr)
        self._input, self._output, self._errors = (pipe.fileno() for pipe in pipes if pipe)
        for pipe in (self._input, self._output, self._errors):
            os.set_blocking(pipe, False)
        self._read = {self._output: b"", self._errors: b""}
        self._end = weakref.finalize(self, kill, self._process)  # at the interpreter's exit too

    @property
    def pid(self) -> int:
        """Number of the process, and of its group."""
        return self._process.pid

    @property
    def printed(self) -> str:
        """The end of what it wrote to standard error while it was asked last."""
        return self._read[self._errors].decode("utf-8", "replace")

    def ask(self, line: bytes, seconds: float) -> bytes:
        """Write a line, if any, and wait for one.

        Raises:
            Died: the process ended first.
            TookTooLong: the time is over. After either, this child is gone with all it started.
        """
        self._read[self._errors] = b""
        try:
            self._exchange(line, seconds)
            answer, end, rest = self._read[self._output].partition(b"\n")
            if not end:
                raise Died(self._how_it_ended())
        except TookTooLong:
            self._end()
            raise
        self._read[self._output] = rest
        return answer

    def close(self) -> None:
        """End the input, give the process time to end by itself, then kill it with all it started."""
        if self._end.alive and self._process.stdin:
            self._process.stdin.close()
            with contextlib.suppress(TookTooLong):
                self._exchange(b"", SECONDS_TO_END)
        self._end()

    def _exchange(self, unwritten: bytes, seconds: float) -> None:
        """Write while there is something to write, and read until a line is there or the process has ended."""
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            for pipe in self._read:
                selector.register(pipe, selectors.EVENT_READ)
            if unwritten:
                selector.register(self._input, selectors.EVENT_WRITE)
            while b"\n" not in self._read[self._output] and self._output in selector.get_map():
                left = deadline - time.monotonic()
                ready = selector.select(min(max(left, 0), SECONDS_BETWEEN_LOOKS))
                if not ready and self._has_ended():
                    break
                if not ready and left <= 0:
                    raise TookTooLong
                for key, _ in ready:
                    if key.fd == self._input:
                        unwritten = self._give(unwritten, selector)
                    else:
                        self._take(key.fd, selector)
            if self._errors in selector.get_map():  # what it printed before it answered
                with contextlib.suppress(BlockingIOError):
                    self._take(self._errors, selector)

    def _take(self, pipe: int, selector: selectors.BaseSelector) -> None:
        """Read what is there; a pipe at its end is looked at no more."""
        piece = os.read(pipe, MOST_READ)
        if not piece:
            selector.unregister(pipe)
        kept = self._read[pipe] + piece
        self._read[pipe] = kept[-KEPT_OUTPUT:] if pipe == self._errors else kept

    def _give(self, unwritten: bytes, selector: selectors.BaseSelector) -> bytes:
        """Write what fits; what is left."""
        try:
            unwritten = unwritten[os.write(self._input, unwritten) :]
        except BrokenPipeError:  # it ended; the end of its output says so
            unwritten = b""
        if not unwritten:
            selector.unregister(self._input)
        return unwritten

    def _has_ended(self) -> bool:
        """Whether the process is no more, although one that it started may hold its output open; reaps nothing."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _how_it_ended(self) -> str:
        """Reap the process, which closed its output, and say how it ended."""
        self._end()
        code = self._process.returncode
        if code < 0:
            return f"killed by signal {-code} ({signal.strsignal(-code)})"
        return f"ended with exit code {code}"


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and whatever it started in its session, reap it and close its pipes."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # before it is reaped: until then the number is its own
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe:
            pipe.close()
