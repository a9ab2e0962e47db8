"""A function of the user's own, `FILE.py:NAME`, in a process of its own: whatever it does costs one value.

It is the user's own code and runs with his rights, his environment and the working folder of the command; the process
protects the command from its mistakes, not from its intentions.
"""

import difflib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lite_align.data.types import Conversation
from lite_align.errors import RecipeError
from lite_align.stages import function_child
from lite_align.stages.child import Child, Died, TookTooLong

START_SECONDS = 120.0
"""How long the user's file may take to import what it needs."""

GRACE_SECONDS = 1.0
"""The process ends itself when a call takes too long, and says where; so much later it is killed."""

MOST_STARTS = 3
KEPT_LINES = 5


class NoValue(Exception):
    """A call gave nothing; `kind` is what is counted: "raised an error", "took over 10 s"."""

    def __init__(self, kind: str, message: str = "") -> None:
        super().__init__(f"{kind}: {message}" if message else kind)
        self.kind = kind
        self.message = message


class NeverStarts(Exception):
    """The process does not start again; `error` says why."""

    def __init__(self, error: RecipeError) -> None:
        super().__init__(f"does not start any more ({MOST_STARTS} attempts)")
        self.error = error


def located(written: str, option: str) -> tuple[Path, str]:
    """File and name of `FILE.py:NAME`, which an option names.

    Raises:
        RecipeError: no name, or no such file (the nearest one is named).
    """
    file, colon, name = written.rpartition(":")
    if not colon or not name.isidentifier() or not file:
        raise RecipeError(
            f'{option}: "{written}" names no function in a file.',
            remedy="Write it as FILE.py:NAME, such as mine.py:score.",
        )
    path = Path(file)
    if not path.is_file():
        there = [str(other) for other in path.parent.glob("*.py")]
        near = difflib.get_close_matches(str(path), there, n=1)
        raise RecipeError(
            f"{option}: {path} " + ("is a folder." if path.is_dir() else "does not exist."),
            remedy=f"Did you mean {near[0]}:{name}?"
            if near
            else "The path is relative to the working folder.",
        )
    return path, name


class UserFunction:
    """A child process that is started again after each call that killed it.

    Args:
        kind: of function, one of `function_child.CONTRACTS`.
        written: FILE.py:NAME.
        seconds: for one call.
        option: that names it, for messages.

    Raises:
        RecipeError: no such file or name, the file cannot be run, or the function's arguments do not fit.
    """

    def __init__(self, kind: str, written: str, *, seconds: float, option: str) -> None:
        self.file, self._name = located(written, option)
        self._kind, self._written, self._seconds, self._option = kind, written, seconds, option
        self.child: Child | None = self._start()

    def __call__(self, values: Mapping[str, Any]) -> Any:
        """What the function returns of all that it can ask for.

        Raises:
            NoValue: it gave nothing.
            NeverStarts: its process did not start again.
        """
        arguments = function_child.CONTRACTS[self._kind].arguments
        assert values.keys() == arguments.keys()
        if self.child is None:
            self.child = self._restart()
        try:
            request = json.dumps(dict(values)).encode() + b"\n"
            reply = json.loads(self.child.ask(request, self._seconds + GRACE_SECONDS))
        except (Died, TookTooLong) as error:
            printed, self.child = self.child.printed, None
            where = _last_line_in(str(self.file), printed)
            if _took_too_long(error, printed):
                raise NoValue(f"took over {self._seconds:g} s", f"hung{where}") from error
            raise NoValue("ended the process", f"{error}{where}{_end_of(printed)}") from error
        if "error" in reply:
            raise NoValue(reply["error"], reply["message"])
        return reply["value"]

    def close(self) -> None:
        """End the process."""
        if self.child:
            self.child.close()
        self.child = None

    def _start(self) -> Child:
        script = function_child.__file__
        command = [sys.executable, "-P", "-u", "-B", "-X", "utf8", "-X", "faulthandler", script, self._kind]
        child = Child([*command, str(self.file), self._name, str(self._seconds), str(START_SECONDS)])
        try:
            reply = json.loads(child.ask(b"", START_SECONDS + GRACE_SECONDS))
        except (Died, TookTooLong) as error:
            long = _took_too_long(error, child.printed)
            how = f"did not start in {START_SECONDS:g} s" if long else f"ended at its start: {error}"
            raise RecipeError(
                f"{self._option}: {self._written} {how}{_last_line_in(str(self.file), child.printed)}.",
                details=child.printed.splitlines()[-KEPT_LINES:],
                remedy=f"Try it alone: python {self.file}",
            ) from error
        if "refused" in reply:
            printed = child.printed.splitlines()[-KEPT_LINES:]
            child.close()
            raise RecipeError(
                f"{self._option}: {self._written} cannot be used.",
                details=[reply["refused"], *printed],
                remedy="Correct the function; nothing was done yet.",
            )
        return child

    def _restart(self) -> Child:
        """A new process in place of one that died; NeverStarts where `MOST_STARTS` in a row do not start."""
        for attempt in range(MOST_STARTS):
            try:
                return self._start()
            except RecipeError as error:
                if attempt == MOST_STARTS - 1:
                    raise NeverStarts(error) from error
        raise AssertionError("at least one attempt is made")


def turns(conversation: Conversation) -> dict[str, Any]:
    """What every kind of function can ask for of the turns before an answer: `prompt` and `messages`."""
    asked = [message.content for message in conversation if message.role == "user"]
    return {"prompt": asked[-1] if asked else "", "messages": [asdict(message) for message in conversation]}


def _took_too_long(error: Exception, printed: str) -> bool:
    """Whether a process was ended by its own clock (faulthandler's) or by ours."""
    return isinstance(error, TookTooLong) or bool(
        re.search(r"^Timeout \(\d+:\d\d:\d\d", printed, re.MULTILINE)
    )


def _last_line_in(file: str, printed: str) -> str:
    """Where Python's fault handler saw the process in the user's file: " at FILE:LINE"; nothing if it did not."""
    found = re.findall(r'File "(.+)", line (\d+) in ', printed)
    own = [line for name, line in found if name == file]
    return f" at {file}:{own[0]}" if own else ""


def _end_of(printed: str) -> str:
    """The last line that a process printed."""
    lines = [line for line in printed.splitlines() if line.strip()]
    return f"; it printed: {lines[-1].strip()}" if lines else ""
