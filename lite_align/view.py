"""Everything that a person sees: sections, progress, coloured tokens, tables, errors; at most 100 columns.

The one place that writes to a terminal, and so the one that makes foreign text harmless (`safe`). Colour only
ever repeats what a word or a mark says too; piped or with NO_COLOR the output is plain text.
"""

import copy
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import IO, Literal

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.progress import Progress, ProgressColumn, Task, TaskID
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lite_align.errors import LiteAlignError
from lite_align.recipe.secrets import redact

WIDTH = 100
LABEL = 10
FINAL = frozenset({"held out", "verdict", "saved", "next"})
"""The sections that `--quiet` leaves."""

PLAIN_SECONDS = 20.0
"""Least time between two progress lines when the output is not a terminal."""

Style = Literal["context", "trained", "special", "cut"]
_COLOURS = {
    "context": "dim",
    "trained": "bold green",
    "special": "magenta",
    "cut": "strike red",
}
_MARKS = {"context": "{}", "trained": "[{}]", "special": "{}", "cut": "~{}~"}
_LEGEND = (
    ("context", "context"),
    ("trained", "trained"),
    ("special", "‹special›"),
    ("cut", "cut off"),
)

# CSI; OSC, DCS, SOS, PM and APC with their terminator; other two-byte escapes. In 7-bit and in C1 form.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]"
)
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and newline, DEL, C1
    "\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # zero width, bidi
    "\U000e0000-\U000e007f]"  # tags: invisible text
)
_SURROGATES = re.compile("[\ud800-\udfff]")


# The same sequences while their end is still to come.
_UNFINISHED = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*\Z"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*\x1b?\Z"
    r"|\x1b[ -/]*\Z"
)
_LONGEST_ESCAPE = 1024
"""Characters for which the end of a sequence is waited for."""


def safe(text: str) -> str:
    """Text that cannot act on a terminal: no escape sequences, controls, bidi or zero-width characters."""
    return _SURROGATES.sub("\ufffd", _UNPRINTABLE.sub("", _ESCAPES.sub("", text)))


class SafeStream:
    """`safe` for text that comes in pieces: what `add` and `end` return is, together, the safe form of the whole.

    A sequence whose end has not come is held back, for at most 1,024 characters.
    """

    def __init__(self) -> None:
        self._held = ""

    def add(self, piece: str) -> str:
        """Take the next piece and return what is certainly harmless."""
        text = self._held + piece
        unfinished = _UNFINISHED.search(text)
        cut = unfinished.start() if unfinished else len(text)
        if len(text) - cut > _LONGEST_ESCAPE:
            cut = len(text)
        self._held = text[cut:]
        return safe(text[:cut])

    def end(self) -> str:
        """What was held back."""
        held, self._held = self._held, ""
        return safe(held)


class Flow:
    """Text that is shown while it is written: wrapped between words, beside its label as a section is.

    The end of a line is decided by whole words, so the last one waits for what follows it.
    """

    def __init__(self, write: Callable[[str], object], width: int) -> None:
        self._write, self._width = write, width
        self._safe = SafeStream()
        self._column = 0
        self._gap = ""
        self._word = ""

    def add(self, piece: str) -> None:
        """Show the next piece of text."""
        self._take(self._safe.add(piece))

    def end(self) -> None:
        """Show what is left; white space at the end is left off."""
        self._take(self._safe.end())
        self._put_word()
        self._write("\n")

    def _take(self, text: str) -> None:
        for character in text:
            if character.isspace():
                self._put_word()
                self._gap += "    " if character == "\t" else character
                continue
            if cell_len(character) > 1:  # scripts without spaces break anywhere
                self._put_word()
            self._word += character
            if cell_len(character) > 1 or cell_len(self._word) >= self._width:
                self._put_word()

    def _put_word(self) -> None:
        if not self._word:
            return
        lines, _, blanks = self._gap.rpartition("\n")
        breaks = self._gap.count("\n") if self._column else 0
        spaces = blanks if self._column or lines else ""
        if not breaks and self._column and self._column + len(spaces) + cell_len(self._word) > self._width:
            breaks, spaces = 1, ""
        if breaks:
            self._write("\n" * breaks + " " * (LABEL + 1))
            self._column = 0
        self._write(spaces + self._word)
        self._column += len(spaces) + cell_len(self._word)
        self._gap = self._word = ""


def number(value: float) -> str:
    """A figure for reading: thousands separated, about three digits."""
    if isinstance(value, int) or (abs(value) >= 1000 and value == value):
        return f"{value:,.0f}" if abs(value) != float("inf") else str(value)
    if value and abs(value) < 0.001:
        return f"{value:.1e}".replace("e-0", "e-")
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def duration(seconds: float) -> str:
    """Minutes and seconds, or hours: `6:02`, `1:06:02`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


class Bar:
    """One progress bar: `advance` moves it and replaces the figures beside it."""

    def __init__(self, view: "View", label: str, total: int, unit: str, done: int, speed: bool) -> None:
        self._view, self._label, self._total, self._unit = view, label, total, unit
        self._shows_speed = speed
        self._begun_at = done
        self._done = done
        self._started = self._shown = time.monotonic()
        self._fields = ""
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def advance(self, n: int = 1, **fields: float | str) -> None:
        """Count `n` more units; `fields` are figures to show: `loss=0.551`, or a text that stands for itself."""
        self._done += n
        if fields:
            self._fields = "  ".join(
                value if isinstance(value, str) else f"{name.replace('_', ' ')} {number(value)}"
                for name, value in fields.items()
            )
        if self._progress is not None:
            self._progress.update(self._task, completed=self._done, figures=clean(self.figures()))
        elif time.monotonic() - self._shown >= PLAIN_SECONDS:
            self.print_line()

    def figures(self) -> str:
        """Count, fields, speed and time left, as they stand beside the bar."""
        elapsed = time.monotonic() - self._started
        speed = (self._done - self._begun_at) / elapsed if elapsed > 0 else 0.0
        parts = [f"{self._done:,}/{self._total:,}", self._fields]
        if speed > 0:
            if self._shows_speed:
                parts.append(
                    f"{speed:,.0f} {self._unit}/s" if speed >= 100 else f"{speed:.2g} {self._unit}/s"
                )
            rest = self._total - self._done
            parts.append(f"{duration(rest / speed)} left" if rest > 0 else f"in {duration(elapsed)}")
        return "  ".join(filter(None, parts))

    def print_line(self) -> None:
        """Write the bar as one plain line."""
        self._shown = time.monotonic()
        self._view.section(self._label, self.figures())

    @contextmanager
    def running(self) -> Iterator["Bar"]:
        """Show the bar while the body runs; without a terminal, lines now and then and one at the end."""
        if not self._view.live:
            yield self
            self.print_line()
            return
        self._progress = Progress(
            _Label(),
            _Shape(self._view.console.width),
            _Figures(),
            console=self._view.console,
            refresh_per_second=4,
        )
        self._task = self._progress.add_task(
            clean(self._label), total=max(1, self._total), completed=self._done, figures=self.figures()
        )
        with self._progress:
            yield self


class _Label(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f" {task.description}".ljust(LABEL), style="bold")


class _Shape(ProgressColumn):
    """The bar itself: 24 columns, or what the figures leave; it only shrinks, so that nothing jumps."""

    def __init__(self, console_width: int) -> None:
        super().__init__()
        self._space = console_width - LABEL - 3
        self._width = 24

    def render(self, task: Task) -> ProgressBar:
        self._width = max(8, min(self._width, self._space - len(str(task.fields["figures"]))))
        return ProgressBar(
            total=task.total,
            completed=task.completed,
            width=self._width,
            style="dim",
            complete_style="cyan",
            finished_style="green",
        )


class _Figures(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(str(task.fields["figures"]), no_wrap=True, overflow="ellipsis")


class View:
    """Writes to stdout; warnings under `quiet` or `json`, and errors always, go to stderr.

    Args:
        quiet: only the sections in `FINAL`.
        json: nothing but one JSON record at the end.
        width: columns; default the terminal's, at most 100.
        file: in place of stdout (tests).
        errors: in place of stderr (tests).
    """

    def __init__(
        self,
        quiet: bool = False,
        json: bool = False,
        width: int | None = None,
        *,
        file: IO[str] | None = None,
        errors: IO[str] | None = None,
    ) -> None:
        self.quiet, self.json = quiet, json
        self.console = _console(file or sys.stdout, width)
        self._errors = _console(errors or sys.stderr, width)
        self.live = self.console.is_terminal and not (quiet or json)
        self._is_step = False
        self._colour = self.console.color_system is not None and not self.console.no_color

    def step(self) -> "View":
        """The view of one step of a longer command, which alone says what to type next and writes the record."""
        other = copy.copy(self)
        other._is_step = True
        return other

    def section(self, label: str, *lines: str, note: str = "") -> None:
        """Print ` label     first line`, further lines aligned below; `note` stands dim at the right end."""
        if self.json or (self.quiet and label not in FINAL) or (self._is_step and label == "next"):
            return
        self._labelled(self.console, label, [Text(clean(line)) for line in lines] or [Text("")], clean(note))

    def warn(self, line: str) -> None:
        """Print a warning; a rule id in front of it (LA305) stays in front."""
        console = self._errors if self.quiet or self.json else self.console
        self._labelled(console, "warning", [Text(clean(line))], "", style="bold yellow")

    def bar(
        self, label: str, total: int, unit: str, done: int = 0, *, speed: bool = True
    ) -> AbstractContextManager[Bar]:
        """Progress over `total` units, `done` of them already: `with view.bar(...) as bar: bar.advance()`.

        `speed` shows units a second; a caller that has better figures shows its own.
        """
        return Bar(self, label, total, unit, done, speed).running()

    @contextmanager
    def flow(self, label: str) -> Iterator[Flow]:
        """Text beside a label that is shown while it comes: `with view.flow("answer") as flow: flow.add(text)`."""
        console = self.console
        head = Text(f" {clean(label):<{LABEL - 1}} ", style="bold")
        console.print(head, end="", soft_wrap=True)

        def write(text: str) -> None:
            console.file.write(text)
            console.file.flush()

        flow = Flow(write, max(20, console.width - LABEL - 1))
        try:
            yield flow
        finally:
            flow.end()

    def token_row(self, title: str, spans: Sequence[tuple[str, str]]) -> None:
        """Print tokens coloured by mask (styles: `Style`); without colour, marks stand for the styles."""
        if self.json or self.quiet:
            return
        self._labelled(self.console, title, [self._tokens(spans)], "")

    def token_columns(self, columns: Mapping[str, Sequence[tuple[str, str]]]) -> None:
        """Print token rows beside each other, each under its heading."""
        if self.json or self.quiet:
            return
        self._beside([(heading, self._tokens(spans)) for heading, spans in columns.items()])

    def legend(self) -> None:
        """Explain the styles of `token_row`."""
        if self.json or self.quiet:
            return
        words = Text()
        for style, word in _LEGEND:
            words.append(self._mark(style, word), style=_COLOURS[style] if self._colour else "")
            words.append("   ")
        self._labelled(self.console, "legend", [words], "")

    def answers(self, rows: Sequence[tuple[str, str, str]]) -> None:
        """Print prompt, answer before and answer after, the answers beside each other."""
        if self.json or self.quiet:
            return
        for index, (prompt, before, after) in enumerate(rows):
            self._labelled(self.console, "answers" if index == 0 else "", [_short(prompt, 2)], "")
            self._beside([("before", _short(before, 8)), ("after", _short(after, 8))])

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table; numbers in words, as given."""
        if self.json or self.quiet:
            return
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for name in header:
            table.add_column(Text(clean(name)), overflow="fold")
        for row in rows:
            table.add_row(*(Text(clean(cell)) for cell in row))
        self.console.print(Text(f" {clean(title)}", style="bold"))
        self.console.print(Padding(table, (0, 0, 0, 1)))

    def error(self, error: LiteAlignError) -> None:
        """Print what is wrong, where and the remedy (to stderr; under `json` the record too)."""
        shown = list(error.details[:20])
        if len(error.details) > 20:
            shown.append(f"… and {len(error.details) - 20:,} more")
        lines = [line for text in (error.what, *shown, error.remedy) if text for line in text.split("\n")]
        texts = [Text(clean(line)) for line in lines]
        self._labelled(self._errors, "error", texts, "", style="bold red", indent=0, width=7)
        if self.json:
            problem = {"what": error.what, "details": list(error.details), "remedy": error.remedy}
            self.json_record({"status": "failed", "exit_code": error.exit_code, "error": problem})

    def json_record(self, record: Mapping[str, object]) -> None:
        """Write the record as one line of JSON; only under `json`."""
        if self.json and not self._is_step:
            self.console.file.write(redact(json.dumps(record)) + "\n")
            self.console.file.flush()

    def _labelled(
        self,
        console: Console,
        label: str,
        lines: Sequence[Text],
        note: str,
        *,
        style: str = "bold",
        indent: int = 1,
        width: int = LABEL,
    ) -> None:
        space = max(20, console.width - width - indent)
        wrapped = [part for line in lines for part in line.wrap(console, space)]
        if note:
            tail = Text(note, style="green" if note == "ok" else "dim")
            room = space - wrapped[-1].cell_len - tail.cell_len
            if room >= 3:
                wrapped[-1] = Text.assemble(wrapped[-1], " " * room, tail)
            else:
                wrapped += tail.wrap(console, space)
        for index, line in enumerate(wrapped):
            line.rstrip()
            head = Text(f"{clean(label):<{width - 1}} " if index == 0 else " " * width, style=style)
            console.print(Text.assemble(" " * indent, head, line), no_wrap=True, crop=False)

    def _beside(self, columns: Sequence[tuple[str, Text]]) -> None:
        grid = Table.grid(padding=(0, 3, 0, 0))
        space = self.console.width - LABEL - 1
        for _ in columns:
            grid.add_column(width=(space - 3 * len(columns)) // len(columns), overflow="fold")
        grid.add_row(*(Text(clean(heading), style="bold") for heading, _ in columns))
        grid.add_row(*(text for _, text in columns))
        self.console.print(Padding(grid, (0, 0, 0, LABEL + 1)))

    def _tokens(self, spans: Sequence[tuple[str, str]]) -> Text:
        row = Text()
        for text, style in spans:
            shown = clean(text)
            if style == "special":
                shown = f"‹{shown.strip('<|>') or shown}›"
            row.append(self._mark(style, shown), style=_COLOURS[style] if self._colour else "")
        return row

    def _mark(self, style: str, text: str) -> str:
        return text if self._colour else _MARKS[style].format(text)


def _console(file: IO[str], width: int | None) -> Console:
    console = Console(file=file, highlight=False, markup=False, emoji=False, soft_wrap=False)
    console.width = width or (min(WIDTH, console.width) if console.is_terminal else WIDTH)
    return console


def clean(text: str) -> str:
    """Foreign text for a terminal: harmless, and without tokens and passwords."""
    return redact(safe(text))


def _short(text: str, lines: int) -> Text:
    kept = clean(text).strip()
    limit = lines * 45
    return Text(kept if len(kept) <= limit else kept[: limit - 2].rstrip() + " …", overflow="fold")
