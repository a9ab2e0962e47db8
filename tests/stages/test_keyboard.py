"""Lines from a pipe; what a person at a terminal does is in `test_chat`."""

import io
import os
import termios
import tty

import pytest

from lite_align.stages.keyboard import key_reader, line_reader


def test_piped_lines_end_with_the_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\nlast"))
    read = line_reader(False)
    assert [read(), read(), read()] == ["one\n", "\n", "last"]
    with pytest.raises(EOFError):
        read()


def test_piped_keys_are_names(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("left\n \n?\n"))
    read = key_reader(False)
    assert [read(), read(), read()] == ["left", "", "?"]
    with pytest.raises(EOFError):
        read()


@pytest.mark.parametrize(
    ("pressed", "expected"),
    [
        ("\x1b[D\x1b[C", ["left", "right"]),
        ("\x1bOA\x1bOB", ["up", "down"]),  # cursor keys in application mode
        (" n?", ["space", "n", "?"]),
        ("\x1b[5~u", ["\x1b[5~", "u"]),  # a key without a meaning is one key
        ("\n", ["enter"]),
    ],
)
def test_keys_at_a_terminal_are_read_one_by_one(monkeypatch, pressed, expected):
    master, slave = os.openpty()
    with os.fdopen(slave) as keyboard:
        monkeypatch.setattr("sys.stdin", keyboard)
        tty.setcbreak(slave)  # what is typed before the first read is not held back until a line ends
        before = termios.tcgetattr(slave)
        read = key_reader(True)
        os.write(master, pressed.encode())
        assert [read() for _ in expected] == expected
        os.write(master, b"\x04")
        with pytest.raises(EOFError):
            read()
        assert termios.tcgetattr(slave) == before
    os.close(master)
