"""A reward function of the user's own: `--reward-fn FILE.py:NAME`, in a process of its own.

    def reward(answer: str, row: dict) -> float:
        return float(answer.endswith(row["solution"]))

The function is called once an answer, with what it asks for by name: `prompt`, `messages`, `answer`, `row`,
`stopped`, `tokens` (`reward_child.ARGUMENTS`). It is the user's own code and runs with his rights, his environment
and the working folder of the run; the process protects the run from its mistakes, not from its intentions. An equal
answer should get an equal reward: one that draws by chance or remembers makes a resumed run another one.
"""

import difflib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lite_align.errors import RecipeError, TrainingStopped
from lite_align.stages import reward_child
from lite_align.stages.child import Child, Died, TookTooLong
from lite_align.stages.episodes import Episode, Errors, NoReward, lost

START_SECONDS = 120.0
"""How long the user's file may take to import what it needs."""

GRACE_SECONDS = 1.0
"""The process ends itself when a call takes too long, and says where; so much later it is killed."""

MOST_STARTS = 3
KEPT_LINES = 5


def located(written: str) -> tuple[Path, str]:
    """File and name of `FILE.py:NAME`.

    Raises:
        RecipeError: no name, or no such file (the nearest one is named).
    """
    file, colon, name = written.rpartition(":")
    if not colon or not name.isidentifier() or not file:
        raise RecipeError(
            f'ppo.reward_fn: "{written}" names no function in a file.',
            remedy="Write it as FILE.py:NAME, such as --reward-fn rewards.py:score.",
        )
    path = Path(file)
    if not path.is_file():
        there = [str(other) for other in path.parent.glob("*.py")]
        near = difflib.get_close_matches(str(path), there, n=1)
        raise RecipeError(
            f"ppo.reward_fn: {path} " + ("is a folder." if path.is_dir() else "does not exist."),
            remedy=f"Did you mean {near[0]}:{name}?"
            if near
            else "The path is relative to the working folder.",
        )
    return path, name


class RewardFunction:
    """The source "function": a child process that is started again after each call that killed it.

    Args:
        written: FILE.py:NAME.
        weight: in the sum of rewards.
        seconds: for one answer.

    Raises:
        RecipeError: no such file or name, the file cannot be run, or the function's arguments do not fit.
    """

    name = "function"

    def __init__(self, written: str, *, weight: float, seconds: float) -> None:
        self.file, self._function = located(written)
        self.weight = weight
        self.errors = Errors(f"reward function {written}")
        self._written = written
        self._seconds = seconds
        self._child: Child | None = self._start()

    def __call__(self, episodes: Sequence[Episode]) -> list[float | None]:
        """The value of each answer, None and an error counted where the function gave none.

        Once more than half of the answers have none the rest is not asked: the round is lost, and every call may
        have waited for its whole time.

        Raises:
            TrainingStopped: the process did not start again.
        """
        values: list[float | None] = []
        for episode in episodes:
            try:
                values.append(self._ask(episode))
            except NoReward as error:
                self.errors.add(error)
                values.append(None)
            if lost(values, len(episodes)):
                break
        not_asked = len(episodes) - len(values)
        for _ in range(not_asked):
            self.errors.add(NoReward("not asked after these"))
        return values + [None] * not_asked

    def close(self) -> None:
        """End the process."""
        if self._child:
            self._child.close()
        self._child = None

    def _ask(self, episode: Episode) -> float:
        if self._child is None:
            self._child = self._restart()
        try:
            reply = json.loads(self._child.ask(request(episode), self._seconds + GRACE_SECONDS))
        except (Died, TookTooLong) as error:
            printed, self._child = self._child.printed, None
            where = _last_line_in(str(self.file), printed)
            if _took_too_long(error, printed):
                raise NoReward(f"took over {self._seconds:g} s", f"hung{where}") from error
            raise NoReward("ended the process", f"{error}{where}{_end_of(printed)}") from error
        if "error" in reply:
            raise NoReward(reply["error"], reply["message"])
        return reply["value"]

    def _start(self) -> Child:
        limits = (str(self._seconds), str(START_SECONDS))
        command = [
            sys.executable,
            "-P",
            "-u",
            "-B",
            "-X",
            "utf8",
            "-X",
            "faulthandler",
            reward_child.__file__,
        ]
        child = Child([*command, str(self.file), self._function, *limits])
        try:
            reply = json.loads(child.ask(b"", START_SECONDS + GRACE_SECONDS))
        except (Died, TookTooLong) as error:
            long = _took_too_long(error, child.printed)
            how = f"did not start in {START_SECONDS:g} s" if long else f"ended at its start: {error}"
            raise RecipeError(
                f"ppo.reward_fn: {self._written} {how}{_last_line_in(str(self.file), child.printed)}.",
                details=child.printed.splitlines()[-KEPT_LINES:],
                remedy=f"Try it alone: python {self.file}",
            ) from error
        if "refused" in reply:
            printed = child.printed.splitlines()[-KEPT_LINES:]
            child.close()
            raise RecipeError(
                f"ppo.reward_fn: {self._written} cannot be used.",
                details=[reply["refused"], *printed],
                remedy="Correct the function; nothing was trained.",
            )
        return child

    def _restart(self) -> Child:
        """A new process in place of one that died; TrainingStopped where `MOST_STARTS` in a row do not start."""
        for attempt in range(MOST_STARTS):
            try:
                return self._start()
            except RecipeError as error:
                if attempt == MOST_STARTS - 1:
                    raise TrainingStopped(
                        f"The reward function {self._written} does not start any more ({MOST_STARTS} attempts).",
                        details=[error.what, *error.details, *self.errors.tell()],
                        remedy="Correct it and go on with --resume; the last checkpoint is intact.",
                    ) from error
        raise AssertionError("at least one attempt is made")


def request(episode: Episode) -> bytes:
    """All that a function can ask for, as one line of JSON."""
    asked = [message.content for message in episode.prompt if message.role == "user"]
    values = {
        "prompt": asked[-1] if asked else "",
        "messages": [asdict(message) for message in episode.prompt],
        "answer": episode.answer,
        "row": dict(episode.row),
        "stopped": episode.stopped,
        "tokens": episode.tokens,
    }
    assert values.keys() == reward_child.ARGUMENTS.keys()
    return json.dumps(values).encode() + b"\n"


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
