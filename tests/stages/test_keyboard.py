"""Lines from a pipe; what a person at a terminal does is in `test_chat`."""

import io

import pytest

from lite_align.stages.keyboard import line_reader


def test_piped_lines_end_with_the_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\nlast"))
    read = line_reader(False)
    assert [read(), read(), read()] == ["one\n", "\n", "last"]
    with pytest.raises(EOFError):
        read()
