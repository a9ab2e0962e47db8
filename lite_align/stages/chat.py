"""`lite-align chat RUN`: talk to the model of a run, and hear the same question answered without its adapter."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lite_align.data.types import Conversation, Message
from lite_align.errors import DataError, DiskFull, LiteAlignError, UserError
from lite_align.model.backbone import Role
from lite_align.stages.keyboard import KEY, line_reader
from lite_align.stages.scorer import Score, Scorer
from lite_align.stages.speaker import Reply, Sampling, Speaker
from lite_align.train import files
from lite_align.train.finished import read_finished, require_policy
from lite_align.view import View

HELP = (
    f"{KEY} or /base  the last message again, answered without the adapter",
    "/new          a new conversation",
    "/system TEXT  set the system text; without TEXT, take it away",
    "/save FILE    append what was said to a JSONL file",
    "/help         this list",
    "//TEXT        send a message that begins with /",
    "Ctrl-C stops an answer; an empty line or Ctrl-D ends",
)
_STANDS_FOR = {
    Role.POLICY: "the run's adapter",
    Role.REFERENCE: "the frozen adapter that the run started from",
    Role.BASE: "the base without adapter",
}


class Answers(Protocol):
    """What a conversation needs of a model (`speaker.Speaker`)."""

    sampling: Sampling
    roles: Sequence[Role]

    def fit(self, conversation: Conversation) -> tuple[Conversation, int]:
        """The conversation that is answered, and how many rounds it lost."""
        ...

    def say(self, conversation: Conversation, role: Role, seed: int, show: Callable[[str], None]) -> Reply:
        """Answer as a role."""
        ...


Judge = Callable[[Conversation, str], Score]


def chat(
    run_dir: Path,
    view: View,
    sampling: Sampling,
    *,
    system: str = "",
    reward: Path | None = None,
    save: Path | None = None,
) -> None:
    """Load the model of a run and answer line by line until the input ends.

    Args:
        run_dir: a finished run.
        view: where it is shown.
        sampling: how tokens are chosen.
        system: system text of every conversation.
        reward: a finished reward run on the same base, whose score of each answer is shown.
        save: JSONL file to which each answer is appended with its conversation.

    Raises:
        UserError: no finished run, no adapter that answers, or a reward run that does not fit.
        ModelError: the base cannot be loaded.
    """
    run = read_finished(run_dir)
    require_policy(run, "to chat with")
    judge_run = Scorer.read(reward, run) if reward is not None else None
    if save is not None:
        _require_writable(save)
    speaker = Speaker.load(run, sampling)
    judge = Scorer(speaker.backbone, judge_run) if judge_run is not None else None
    others = " and ".join(_STANDS_FOR[role] for role in speaker.roles[1:])
    view.section(
        "model", f"{speaker.name} with {run.adapter(Role.POLICY)}", f"{KEY} or /base compares with {others}"
    )
    view.section("sampling", sampling.told())
    view.section("", "/help lists the commands; an empty line or Ctrl-D ends")
    talk = Talk(speaker, view, system=system, judge=judge, save=save)
    interactive = sys.stdin.isatty()
    converse(talk, line_reader(interactive), echo=not interactive)


def converse(talk: "Talk", read_line: Callable[[], str], *, echo: bool = False) -> None:
    """Hand each line that `read_line` gives to the talk until one is empty or the input ends; `echo` shows them."""
    while True:
        try:
            line = read_line().strip()
        except EOFError:
            if not echo:  # the cursor stands behind the prompt
                talk.view.section("")
            return
        if not line:
            return
        if echo:
            talk.view.section("you", line)
        talk.hear(line)


@dataclass
class Talk:
    """A conversation: what was said, and the commands.

    Attributes:
        model: what answers.
        view: where it is shown.
        system: the system text, "" for none.
        judge: scores an answer.
        save: file to which every answer is appended at once.
        said: turns so far, without the system text.
        history: every answer as it is saved.
        asked: messages since the start; with the seed it decides the sampling of an answer.
        shown_as: how often the last message was answered again.
    """

    model: Answers
    view: View
    system: str = ""
    judge: Judge | None = None
    save: Path | None = None
    said: list[Message] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    asked: int = 0
    shown_as: int = 0

    def hear(self, line: str) -> None:
        """Take one line: a command or a message."""
        if line.startswith("//") or not line.startswith("/"):
            self._ask(line[1:] if line.startswith("//") else line)
            return
        name, _, rest = line.partition(" ")
        command = COMMANDS.get(name)
        if command is None:
            self.view.section(
                "chat", f"{name} is no command; /help lists them, // sends a message that begins with /"
            )
        else:
            command(self, rest.strip())

    # Messages.

    def _ask(self, text: str) -> None:
        asked = [*self.said, Message("user", text)]
        fitted = self._fitted(asked)
        if fitted is None:
            return
        self.asked += 1
        self.shown_as = 0
        reply = self._answer(fitted, self.model.roles[0])
        # What was said before is gone for good, so that the next prompt begins as this one did.
        self.said = list(fitted[1:] if fitted[0].role == "system" else fitted)
        if reply is not None and reply.text:
            self.said.append(Message("assistant", reply.text))
        else:
            self.said.pop()

    def _fitted(self, said: Sequence[Message]) -> Conversation | None:
        system = (Message("system", self.system),) if self.system else ()
        try:
            fitted, dropped = self.model.fit((*system, *said))
        except DataError as error:
            self.view.section("chat", error.what, *filter(None, [error.remedy]))
            return None
        if dropped:
            rounds = "round no longer fits" if dropped == 1 else f"{dropped} rounds no longer fit"
            self.view.section("chat", f"the oldest {rounds} the model's positions: left out from here on")
        return fitted

    def _answer(self, conversation: Conversation, role: Role) -> Reply | None:
        seed = self.model.sampling.seed + self.asked - 1
        try:
            with self.view.flow(role.value) as flow:
                reply = self.model.say(conversation, role, seed, flow.add)
        except DataError as error:
            self.view.section("chat", error.what, *filter(None, [error.remedy]))
            return None
        score = self.judge(conversation, reply.text) if self.judge is not None and reply.text else None
        for note in (reply.note, score.told() if score else ""):
            if note:
                self.view.section("", note)
        if reply.text:
            self._remember(conversation, role, seed, reply, score)
        return reply

    # History.

    def _remember(
        self, conversation: Conversation, role: Role, seed: int, reply: Reply, score: Score | None
    ) -> None:
        messages = [*conversation, Message("assistant", reply.text)]
        row: dict[str, Any] = {
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "answered_as": role.value,
            "sampling": {**asdict(self.model.sampling), "seed": seed},
            "ended": reply.ended,
        }
        if score is not None:
            row["score"] = asdict(score)
        self.history.append(row)
        if self.save is not None:
            append(self.save, [row])

    # Commands.

    def again(self, _: str = "") -> None:
        """The last message answered as the next other role."""
        if not self.said:
            self.view.section("chat", "nothing was said yet")
            return
        others = self.model.roles[1:]
        role = others[self.shown_as % len(others)]
        self.shown_as += 1
        fitted = self._fitted(self.said[:-1])
        if fitted is not None:
            self._answer(fitted, role)

    def new(self, _: str = "") -> None:
        """Forget what was said; the system text stays."""
        self.said.clear()
        self.view.section("chat", "new conversation" + (" with the same system text" if self.system else ""))

    def set_system(self, text: str) -> None:
        """Set or take away the system text."""
        self.system = text
        self.view.section("system", text or "none")

    def save_to(self, name: str) -> None:
        """Append everything so far to a file."""
        if not name or not self.history:
            self.view.section(
                "chat", "nothing was said yet" if name else "a file name is missing: /save FILE"
            )
            return
        path = Path(name).expanduser()
        try:
            append(path, self.history)
        except (UserError, DiskFull) as error:
            self.view.section("chat", error.what, error.remedy)
            return
        self.view.section("saved", f"{len(self.history):,} answers → {path}")

    def help(self, _: str = "") -> None:
        """The list of commands."""
        self.view.section("help", *HELP)


COMMANDS: dict[str, Callable[[Talk, str], None]] = {
    "/base": Talk.again,
    "/new": Talk.new,
    "/system": Talk.set_system,
    "/save": Talk.save_to,
    "/help": Talk.help,
}


def append(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Append rows to a JSONL file, as they are: what was said is not changed.

    Raises:
        UserError: the file cannot be written.
    """
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with _explained(path):
        files.append(path, text.encode("utf-8", "backslashreplace"))


def _require_writable(path: Path) -> None:
    """Find out before the model is loaded."""
    with _explained(path):
        files.append(path, b"")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        with files.explained(path):
            yield
    except (UserError, DiskFull):
        raise
    except LiteAlignError as error:  # a folder, or a file in a folder that is not there: it was typed
        raise UserError(f"{path} cannot be written: {error.what}", remedy="Give another file.") from error
