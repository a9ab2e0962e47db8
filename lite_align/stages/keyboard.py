"""Lines and single keys from a person at a terminal, or from a pipe."""

import os
import re
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

KEY = "Tab"
"""The key that sends /base."""

_PROMPT = " you       "

_KEYS = {
    **{
        f"\x1b{form}{end}": name
        for form in "[O"
        for end, name in zip("ABCD", ("up", "down", "right", "left"))
    },
    " ": "space",
    "\r": "enter",
    "\n": "enter",
}
_SEQUENCE = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|O.|[^\[O])", re.DOTALL)
_REST_SECONDS = 0.05
"""How long the rest of a key's sequence is waited for; over a slow line it comes in pieces."""


def line_reader(interactive: bool) -> Callable[[], str]:
    """A function that reads the next line; EOFError at the end. At a terminal one key stands for /base."""
    if not interactive:
        return _piped
    bind_key()
    return lambda: input(_PROMPT)


def bind_key() -> None:
    """Let the key type /base and Enter; text that is pasted with the key's character in it stays text."""
    with suppress(ImportError):  # Python without readline: /base is typed by hand
        import readline

        if "libedit" in (readline.__doc__ or ""):
            readline.parse_and_bind("bind -s ^I /base\\n")
        else:
            readline.parse_and_bind("set enable-bracketed-paste on")
            readline.parse_and_bind(r'"\t": "\C-e\C-u/base\C-m"')


def key_reader(interactive: bool) -> Callable[[], str]:
    """A function that reads the next key: up, down, left, right, space, enter, or a character; EOFError at the end.

    From a pipe each line is the name of a key.
    """
    return _key if interactive else lambda: _piped().strip()


def _key() -> str:
    descriptor = sys.stdin.fileno()
    with _unbuffered(descriptor):
        pressed = os.read(descriptor, 1)
        if pressed == b"\x1b":
            while len(pressed) < 8 and select.select([descriptor], [], [], _REST_SECONDS)[0]:
                pressed += os.read(descriptor, 1)
                if _SEQUENCE.fullmatch(pressed):
                    break
    if pressed in (b"", b"\x04"):
        raise EOFError
    text = pressed.decode("utf-8", "replace")
    return _KEYS.get(text, text)


@contextmanager
def _unbuffered(descriptor: int) -> Iterator[None]:
    """Keys one by one and unseen; Ctrl-C still interrupts."""
    import termios
    import tty

    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor, termios.TCSANOW)  # not TCSAFLUSH, which would lose keys that came early
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)


def _piped() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line
