"""Lines from a person at a terminal, with editing and history, or from a pipe."""

import sys
from collections.abc import Callable
from contextlib import suppress

KEY = "Tab"
"""The key that sends /base."""

_PROMPT = " you       "


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


def _piped() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line
