"""Labelling in a terminal: the same session as the page, one key a vote; from a pipe, the name of a key a line."""

import sys
import time
from collections.abc import Callable

from lite_align.errors import UserError
from lite_align.flywheel.label import wording
from lite_align.flywheel.label.session import Question, Said, Session, annotator_name
from lite_align.stages.keyboard import key_reader, line_reader
from lite_align.view import View

_SAID: dict[str, Said] = {"left": "first", "right": "second", "up": "tie", "down": "bad", "space": "skip"}
KEYS = "← A · → B · ↑ tie · ↓ both bad · space skip · n note · u undo · ? rubric · q stop"


class Booth:
    """One annotator at a terminal."""

    def __init__(
        self, session: Session, view: View, annotator: str, key: Callable[[], str], line: Callable[[], str]
    ) -> None:
        self.session, self.view, self.annotator = session, view, annotator
        self._key, self._line = key, line

    def run(self) -> None:
        """Ask until all is answered, or somebody stops."""
        while (question := self.session.question(self.annotator)) is not None:
            self._show(question)
            if not self._answered(question):
                return
        self.view.section("label", "all questions are answered", *self._figures())

    def _answered(self, question: Question) -> bool:
        """Wait for a vote or an undo; False: stop."""
        note, begun = question.note, time.monotonic()
        while True:
            key = self._key()
            if said := _SAID.get(key):
                seconds = time.monotonic() - begun
                self.session.vote(self.annotator, question.ticket, said, seconds=seconds, note=note)
                return True
            if key == "q":
                return False
            if key == "u":
                if self.session.undo(self.annotator) is not None:
                    return True
                self.view.section("undo", "there is nothing to take back")
            elif key == "n":
                self.view.section("note", "one line, then Enter:")
                note = self._line().strip()
            elif key == "?":
                self.view.section("rubric", *self.session.rubric.splitlines())
            else:
                self.view.section("keys", KEYS)

    def _show(self, question: Question) -> None:
        self.view.section("progress", *self._figures())
        if question.comparison.category:
            self.view.section("category", question.comparison.category)
        for message in question.comparison.prompt:
            self.view.section(message.role, *message.content.split("\n"))
        for name, answer in zip("AB", question.answers):
            self.view.section(name, *answer.split("\n"))
        self.view.section("keys", KEYS)

    def _figures(self) -> list[str]:
        agreement = self.session.agreement(self.annotator)
        return [wording.progress(self.session.progress(self.annotator)), *wording.agreement(agreement)]


def label(session: Session, view: View, annotator: str | None) -> None:
    """Ask one annotator at this terminal until all is answered, q, the end of the input or Ctrl-C."""
    interactive = sys.stdin.isatty()
    line = line_reader(interactive)
    try:
        if annotator is None:
            view.section("annotator", "who votes? one line, then Enter:")
            annotator = annotator_name(line())
        Booth(session, view, annotator, key_reader(interactive), line).run()
    except EOFError:
        if annotator is None:
            raise UserError("Nobody said who votes.", remedy="Give --annotator NAME.") from None
    except KeyboardInterrupt:
        return
