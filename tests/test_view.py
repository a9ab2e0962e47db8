"""The view: harmless text, plain output when piped, marks where there is no colour."""

import io
import json
import re
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len

from lite_align import view as module
from lite_align.errors import DataError
from lite_align.view import SafeStream, View, duration, number, safe

ESCAPES = "\x1b[31mred \x1b]0;title\x07\x1b]8;;http://evil\x1b\\link\x1b]52;c;cm0=\x9c\x9b2J\x90q\x9c\u202eabc\r\x08\x00\u200b"
HOSTILE = st.text(
    alphabet=st.characters() | st.sampled_from("\x1b\x9b\x07[];m]\\\x9c\x9d\u202e\u200b[/bold]")
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM", "COLORTERM", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


def piped(**arguments) -> tuple[View, io.StringIO, io.StringIO]:
    out, err = io.StringIO(), io.StringIO()
    return View(file=out, errors=err, **arguments), out, err


def coloured(monkeypatch) -> tuple[View, Terminal]:
    monkeypatch.setenv("TERM", "xterm-256color")
    out = Terminal()
    return View(file=out, errors=out, width=100), out


def test_safe_removes_what_acts_on_a_terminal():
    assert safe(ESCAPES) == "red linkabc"
    assert safe("a\tb\nc") == "a\tb\nc"
    assert safe("naïve 日本語 😊 [/INST] [bold]x[/bold]") == "naïve 日本語 😊 [/INST] [bold]x[/bold]"
    assert safe("\ud800") == "\ufffd"


@given(HOSTILE)
def test_no_text_brings_controls_to_the_output(text):
    view, out, err = piped()
    view.section("data", text, note=text)
    view.warn(text)
    view.token_row("row", [(text, "context"), (text, "trained"), (text, "special"), (text, "cut")])
    view.token_columns({text: [(text, "trained")]})
    view.answers([(text, text, text)])
    view.table(text, [text], [[text]])
    view.error(DataError(text, details=[text], remedy=text))
    written = out.getvalue() + err.getvalue()
    written.encode()
    assert not set(written) & set(map(chr, [*range(9), *range(11, 32), *range(127, 160)]))
    assert not re.search("[\u200b-\u200f\u202a-\u202e\u2066-\u2069]", written)
    assert safe(safe(text)) == safe(text)


def test_markup_and_emoji_codes_are_data(monkeypatch):
    view, out = coloured(monkeypatch)
    view.section("data", "[bold red]x[/] :smile: [/INST] https://evil 12")
    assert "[bold red]x[/] :smile: [/INST] https://evil 12" in out.getvalue()


def test_the_error_block():
    view, out, err = piped()
    view.error(
        DataError(
            "3 of 1,204 rows in broken.jsonl cannot be read",
            details=[
                "broken.jsonl:17  ends in the middle of a string (column 88)",
                'broken.jsonl:991 has no "rejected"',
            ],
            remedy="Mend them, or write a cleaned copy with: lite-align check broken.jsonl --fix clean.jsonl",
        )
    )
    assert out.getvalue() == ""
    assert err.getvalue() == (
        "error  3 of 1,204 rows in broken.jsonl cannot be read\n"
        "       broken.jsonl:17  ends in the middle of a string (column 88)\n"
        '       broken.jsonl:991 has no "rejected"\n'
        "       Mend them, or write a cleaned copy with: lite-align check broken.jsonl --fix clean.jsonl\n"
    )


def test_many_details_are_counted():
    view, _, err = piped()
    view.error(DataError("bad", details=[f"row {n}" for n in range(1500)]))
    assert "row 19\n" in err.getvalue()
    assert "row 20\n" not in err.getvalue()
    assert "… and 1,480 more" in err.getvalue()


def test_errors_hide_tokens():
    view, _, err = piped()
    view.error(DataError("hf_" + "x" * 30))
    assert err.getvalue() == "error  [hidden]\n"


def test_sections_are_aligned_and_wrapped_at_100_columns():
    view, out, _ = piped()
    view.section("data", "word " * 30, "short", note="lite-align check data.jsonl")
    view.section("proof", "loss 0.6931 = ln 2", note="ok")
    lines = out.getvalue().splitlines()
    assert all(len(line) <= 100 for line in lines)
    assert lines[0].startswith(" data      word word")
    assert lines[1].startswith(" " * 11 + "word")
    assert lines[2].startswith(" " * 11 + "short ")
    assert lines[2].endswith("lite-align check data.jsonl")
    assert len(lines[2]) == 100
    assert lines[3] == " proof     loss 0.6931 = ln 2".ljust(98) + "ok"


def test_marks_stand_for_colours_without_colour():
    view, out, _ = piped()
    spans = [("<|user|>", "special"), ("Hi", "context"), ("Hello", "trained"), ("old", "cut")]
    view.legend()
    view.token_row("prompt", spans)
    assert out.getvalue() == (
        " legend    context   [trained]   ‹special›   ~cut off~\n prompt    ‹user›Hi[Hello]~old~\n"
    )


def test_no_color_is_kept_on_a_terminal(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    view, out = coloured(monkeypatch)
    view.token_row("prompt", [("Hello", "trained")])
    assert "[Hello]" in out.getvalue()
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", out.getvalue())


def test_colour_stands_beside_the_legend(monkeypatch):
    view, out = coloured(monkeypatch)
    view.legend()
    view.token_row("prompt", [("Hello", "trained")])
    assert "\x1b[1;32mtrained" in out.getvalue()
    assert "\x1b[1;32mHello" in out.getvalue()
    assert "[Hello]" not in out.getvalue()


def test_quiet_leaves_the_last_lines_and_sends_warnings_to_stderr():
    view, out, err = piped(quiet=True)
    for label in ("data", "plan", "held out", "verdict", "saved", "next"):
        view.section(label, "x")
    view.warn("LA305 length")
    view.answers([("a", "b", "c")])
    view.token_row("t", [("a", "trained")])
    with view.bar("dpo", 2, "steps") as bar:
        bar.advance()
    assert out.getvalue() == "".join(f" {label:<10}x\n" for label in ("held out", "verdict", "saved", "next"))
    assert "LA305" in err.getvalue()


def test_json_writes_one_record_and_nothing_else():
    view, out, _ = piped(json=True)
    view.section("verdict", "x")
    view.json_record({"text": "\x1b[31m \x9b hf_" + "x" * 30})
    assert json.loads(out.getvalue()) == {"text": "\x1b[31m \x9b [hidden]"}
    assert not set(out.getvalue()) & set("\x1b\x9b")
    assert out.getvalue().count("\n") == 1
    plain, out, _ = piped()
    plain.json_record({"a": 1})
    assert out.getvalue() == ""


def test_json_tells_errors_as_a_record_too():
    view, out, err = piped(json=True)
    view.error(DataError("bad", details=["a:1"], remedy="mend"))
    record = json.loads(out.getvalue())
    assert record == {
        "status": "failed",
        "exit_code": 2,
        "error": {"what": "bad", "details": ["a:1"], "remedy": "mend"},
    }
    assert err.getvalue().startswith("error  bad\n")


def test_a_piped_bar_writes_few_lines(monkeypatch):
    clock = iter(float(n) for n in range(10_000))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    view, out, _ = piped()
    with view.bar("dpo", 100, "steps") as bar:
        for _ in range(100):
            bar.advance(loss=0.5512, acc=0.74)
    lines = out.getvalue().splitlines()
    assert 2 < len(lines) < 20
    assert re.fullmatch(
        r" dpo       100/100  loss 0\.551  acc 0\.740  [\d.]+ steps/s  in \d+:\d\d", lines[-1]
    )
    assert " left" in lines[0]


def test_a_resumed_bar_does_not_count_old_units_as_speed(monkeypatch):
    times = iter((0.0, 10.0))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(times))
    view, _, _ = piped()
    bar = module.Bar(view, "dpo", 100, "steps", 50, True)
    bar._done += 20
    assert bar.figures() == "70/100  2 steps/s  0:15 left"


def test_a_bar_without_speed_shows_the_figures_it_is_given(monkeypatch):
    times = iter((0.0, 10.0))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(times))
    view, _, _ = piped()
    bar = module.Bar(view, "dpo", 100, "steps", 50, False)
    bar._done += 20
    bar._fields = "loss 0.551  41 examples/s"
    assert bar.figures() == "70/100  loss 0.551  41 examples/s  0:15 left"


def test_a_live_bar_keeps_the_plan_above(monkeypatch):
    view, out = coloured(monkeypatch)
    with view.bar("reference", 1234, "pairs") as bar:
        bar.advance(1234)
        view.section("proof", "loss 0.6931", note="ok")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "1,234/1,234" in text
    assert "loss 0.6931" in text
    assert "━━━" in text


def test_answers_stand_side_by_side():
    view, out, _ = piped()
    view.answers([("How?", "Badly. " * 200, "Well."), ("Why?", "x", "y")])
    lines = out.getvalue().splitlines()
    assert lines[0] == " answers   How?"
    assert lines[1].split() == ["before", "after"]
    assert lines[2].startswith(" " * 11 + "Badly.")
    assert "Well." in lines[2]
    assert len(lines) < 20


def test_table_cells_are_text():
    view, out, _ = piped()
    view.table("Runs", ["run", "status"], [["[red]a[/red]", "done"]])
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert lines == [" Runs", " run           status", " [red]a[/red]  done"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1204, "1,204"),
        (0.5512, "0.551"),
        (11.83, "11.8"),
        (1e-5, "1.0e-5"),
        (0.0, "0.000"),
        (float("nan"), "nan"),
    ],
)
def test_numbers(value, text):
    assert number(value) == text


def test_durations():
    assert [duration(s) for s in (0, 59.6, 362, 3962)] == ["0:00", "1:00", "6:02", "1:06:02"]


# Text that is shown while it comes.


def streamed(parts: Sequence[str]) -> str:
    stream = SafeStream()
    return "".join([*(stream.add(part) for part in parts), stream.end()])


PIECES = st.text(
    alphabet=st.one_of(
        st.sampled_from("\x1b\x9b\x9d\x90\x07\x9c\\[]P;0m \n\r\u202e\u200b\x00"), st.characters()
    ),
    max_size=60,
)


@given(text=PIECES, cuts=st.lists(st.integers(0, 60), max_size=6))
@example("a\x1b]0;title\x07b", [3, 6])
@example("\x1b]ab\x9b0m", [4])
@example("\x1b[3", [2])
def test_a_stream_is_as_harmless_as_the_whole_text(text, cuts):
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    parts = [text[a:b] for a, b in zip(places, places[1:])]
    assert streamed(parts) == safe(text)


def flowed(parts: Sequence[str], width: int = 40) -> str:
    out = io.StringIO()
    with View(width=width, file=out, errors=out).flow("policy") as flow:
        for part in parts:
            flow.add(part)
    return out.getvalue()


@given(text=PIECES, size=st.integers(1, 7))
def test_no_byte_that_a_terminal_acts_on_comes_through(text, size):
    """FAILURES S10: escape, bell and CSI never reach the terminal, whole or in pieces."""
    shown = flowed([text[start : start + size] for start in range(0, len(text), size)]).encode()
    assert not set(shown) & {0x1B, 0x07}
    assert not any(
        chr(code) in shown.decode() for code in (*range(9), *range(11, 32), 0x7F, *range(0x80, 0xA0))
    )


def test_an_escape_that_never_ends_holds_nothing_back_for_long():
    stream = SafeStream()
    shown = "".join(stream.add("x" * 100) for _ in range(20))
    assert len(shown) == 2000
    shown = stream.add("\x1b]") + "".join(stream.add("y" * 100) for _ in range(20))
    assert shown.count("y") >= 900


def test_text_flows_between_words_beside_its_label():
    parts = ["The qu", "ick brown fox jumps over", " the lazy dog\n\n  and", " again.\n\n"]
    assert flowed(parts) == (
        " policy    The quick brown fox jumps\n           over the lazy dog\n\n             and again.\n"
    )


def test_words_without_end_and_scripts_without_spaces_are_broken():
    lines = flowed(["a" * 70 + " " + "漢" * 40]).splitlines()
    assert all(cell_len(line) <= 40 for line in lines)
    assert "".join(line[11:] for line in lines).replace(" ", "") == "a" * 70 + "漢" * 40


@given(text=st.text(alphabet="ab \n漢🙂\t", max_size=80), size=st.integers(1, 9))
def test_how_text_is_cut_into_pieces_shows_nowhere(text, size):
    parts = [text[start : start + size] for start in range(0, len(text), size)]
    whole = flowed([text])
    assert flowed(parts) == whole
    assert "".join(whole[11:].split()) == "".join(text.split())
