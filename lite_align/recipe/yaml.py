"""A strict reader for recipes: YAML 1.2 core scalars, plain mappings and lists, the line of every key.

It builds from parser events, so nothing of PyYAML's constructors runs: `no` and `12:30` are text, `1e-3` is a
number, and duplicate keys, aliases, tags and several documents are problems with their line.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

import yaml

MAX_BYTES = 256 * 1024
MAX_DEPTH = 16

_INTEGER = re.compile(r"[-+]?[0-9]+")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, object] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
    **{sign + word: float(sign + "inf") for sign in ("", "+", "-") for word in (".inf", ".Inf", ".INF")},
}

Value = object


@dataclass(frozen=True)
class Problem:
    """One mistake; `line` is counted from 1, 0 where there is none."""

    line: int
    text: str


@dataclass
class Document:
    """What was read: nested dicts and lists, the line of each dotted key, and every mistake."""

    value: Value = None
    lines: dict[str, int] = field(default_factory=dict[str, int])
    problems: list[Problem] = field(default_factory=list[Problem])


class _Stop(Exception):
    """Reading cannot go on (the problem is already noted)."""


def scalar(text: str) -> Value:
    """Read one plain scalar as YAML 1.2 core: `1e-3` is a float, `010` is ten, `no` is text."""
    if text in _WORDS:
        return _WORDS[text]
    if len(text) > 40:  # no setting has such a number, and Python refuses very long integers
        return text
    if _INTEGER.fullmatch(text):
        return int(text)
    if _BASED.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def read(data: bytes) -> Document:
    """Read one document; mistakes are collected in `problems`, nothing is raised."""
    document = Document()
    if len(data) > MAX_BYTES:
        document.problems.append(
            Problem(0, f"is larger than {MAX_BYTES // 1024} KiB; a recipe is a short text")
        )
        return document
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        document.problems.append(Problem(line, "is not UTF-8 text"))
        return document
    try:
        events = cast(Iterator[yaml.Event], yaml.parse(text, Loader=yaml.SafeLoader))  # pyright: ignore[reportUnknownMemberType]
        _build(events, document)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = error.problem or error.context or "is not YAML"
        document.problems.append(Problem(mark.line + 1 if mark else 0, f"is not YAML: {what}"))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        document.problems.append(Problem(line, "has a control character"))
    except _Stop:
        pass
    return document


def _build(events: Iterator[yaml.Event], document: Document) -> None:
    started = False
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            if started:
                _note(document, event, "starts a second document; a recipe is one")
                raise _Stop
            started = True
            document.value = _node(next(events), events, document, ())


def _node(
    event: yaml.Event, events: Iterator[yaml.Event], document: Document, path: tuple[str, ...]
) -> Value:
    if isinstance(event, yaml.AliasEvent):
        _note(document, event, f"has the alias *{event.anchor}; write the value out")
        return None
    assert isinstance(event, yaml.NodeEvent)
    if event.anchor is not None:
        _note(document, event, f"has the anchor &{event.anchor}; recipes have no anchors and aliases")
    tag: str | None = event.tag  # type: ignore[attr-defined]  # every node event but an alias has one
    if tag is not None:
        _note(document, event, f"has the tag {tag}; recipes have no tags")
    if len(path) > MAX_DEPTH:
        _note(document, event, f"is nested deeper than {MAX_DEPTH} levels")
        raise _Stop
    if isinstance(event, yaml.MappingStartEvent):
        return _mapping(events, document, path)
    if isinstance(event, yaml.SequenceStartEvent):
        items: list[Value] = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            items.append(_node(event, events, document, (*path, str(len(items)))))
        return items
    assert isinstance(event, yaml.ScalarEvent)
    return event.value if event.style else scalar(event.value)


def _mapping(events: Iterator[yaml.Event], document: Document, path: tuple[str, ...]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        if not isinstance(event, yaml.ScalarEvent):
            _note(document, event, "has a list, mapping or alias as a key; keys are words")
            raise _Stop
        if event.anchor is not None or event.tag is not None:
            _note(document, event, "has an anchor or a tag on a key; keys are words")
        key, dotted = event.value, ".".join((*path, event.value))
        value = _node(next(events), events, document, (*path, key))
        if key in found:
            _note(document, event, f"sets {dotted} again; line {document.lines[dotted]} sets it too")
            continue
        found[key] = value
        document.lines[dotted] = event.start_mark.line + 1
    return found


def _note(document: Document, event: yaml.Event, text: str) -> None:
    document.problems.append(Problem(event.start_mark.line + 1, text))
    if len(document.problems) >= 20:
        raise _Stop
