"""JSON as strict as training data needs it: what the standard reader lets pass in silence is an error here.

Refused: duplicate keys, NaN and infinities, integers beyond 64 bits, nesting deeper than `MAX_DEPTH`, NUL and
lone surrogates, two values where one is expected. Every problem carries its column.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import TypeAlias, cast

Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None

MAX_DEPTH = 32
MAX_BYTES = 8 * 2**20

_SUSPICIOUS_ESCAPE = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"(?P<key>\s*:)?|[{}]|NaN|-?Infinity|-?\d[\d.eE+-]*', re.DOTALL)


class Malformed(Exception):
    """A value is not strict JSON.

    Args:
        what: what is wrong, without the place.
        column: character position in the text, counted from 1; None where there is no single place.
    """

    def __init__(self, what: str, column: int | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.column = column

    def __str__(self) -> str:
        return self.what if self.column is None else f"{self.what} (column {self.column})"


def excerpt(text: str, length: int = 80) -> str:
    """Return the first `length` characters with everything a terminal could act upon replaced by `·`."""
    shown = "".join(character if character.isprintable() else "·" for character in text[:length])
    return shown + "…" if len(text) > length else shown


def kind_of(value: Json) -> str:
    """Name the kind of a value for a message."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "text"
    return "a list" if isinstance(value, list) else "an object"


def parse(text: str) -> Json:
    """Parse exactly one JSON value.

    Raises:
        Malformed: the text is not one strict JSON value.
    """
    start = len(text) - len(text.lstrip(" \t\r\n"))
    value, end = parse_at(text, start)
    rest = text[end:].lstrip(" \t\r\n")
    if rest:
        hint = " (bare carriage returns: save the file with \\n line ends)" if "\r" in text[end:-1] else ""
        raise Malformed(
            f"holds a second value after the first; one object a line{hint}", len(text) - len(rest) + 1
        )
    return value


def parse_at(text: str, start: int) -> tuple[Json, int]:
    """Parse the JSON value that begins at `start`; return it and the position after it.

    Raises:
        Malformed: the value is not strict JSON; columns count from the beginning of `text`.
    """
    try:
        value, end = _STRICT.raw_decode(text, start)
    except Malformed as problem:
        raise Malformed(problem.what, _locate(text, start)) from None
    except RecursionError:
        raise Malformed(f"is nested deeper than {MAX_DEPTH} levels", start + 1) from None
    except json.JSONDecodeError as error:
        raise _explain(error) from None
    if text.count("{", start, end) + text.count("[", start, end) > MAX_DEPTH or _SUSPICIOUS_ESCAPE.search(
        text, start, end
    ):
        inspect(value)
    return value, end


def skip_at(text: str, start: int) -> int:
    """Return the position after the value that begins at `start`, or -1 where it is not even lenient JSON."""
    try:
        return _LENIENT.raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        return -1


def inspect(value: object) -> Json:
    """Check a parsed value, its types, its depth and the characters of its strings, and return it.

    Raises:
        Malformed: not JSON data, deeper than `MAX_DEPTH`, or a string with NUL or a lone surrogate.
    """
    stack: list[tuple[object, int]] = [(value, 1)]
    while stack:
        item, depth = stack.pop()
        if depth > MAX_DEPTH + 1:
            raise Malformed(f"is nested deeper than {MAX_DEPTH} levels")
        if isinstance(item, str):
            _check_characters(item)
        elif isinstance(item, dict):
            stack.extend((part, depth + 1) for pair in item.items() for part in pair)
        elif isinstance(item, list):
            stack.extend((part, depth + 1) for part in item)
        elif isinstance(item, float) and not math.isfinite(item):
            raise Malformed(f"holds {item}; a finite number is expected")
        elif item is not None and not isinstance(item, (bool, int, float)):
            raise Malformed(f"holds a {type(item).__name__}; text, numbers, lists and objects are expected")
    return cast(Json, value)


def _check_characters(text: str) -> None:
    if "\0" in text:
        raise Malformed("holds a NUL character (U+0000) in a string")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            surrogate = ord(text[error.start])
            raise Malformed(
                f"holds a lone surrogate (\\u{surrogate:04x}), half of a character, in a string"
            ) from None


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        duplicate = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise Malformed(f'has the key "{excerpt(duplicate, 40)}" twice')
    return result


def _constant(literal: str) -> Json:
    raise Malformed(f"holds {literal}; a finite number or null is expected")


def _integer(literal: str) -> int:
    if len(literal) > 20 or not -(2**63) <= (value := int(literal)) < 2**64:
        raise Malformed("holds an integer that does not fit 64 bits")
    return value


def _float(literal: str) -> float:
    value = float(literal)
    if not math.isfinite(value):
        raise Malformed("holds a number that is too large")
    return value


_STRICT = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer, parse_float=_float
)
_LENIENT = json.JSONDecoder(parse_int=str)


def _locate(text: str, start: int) -> int | None:
    """Find the column of what a hook refused: hooks see values, not places."""
    keys: list[set[str]] = []
    for token in _tokens(text, start):
        word = token[0]
        if word == "{":
            keys.append(set())
        elif word == "}":
            if keys:
                keys.pop()
        elif word[0] == '"':
            if token["key"] and keys:
                if (name := word[: word.rindex('"')]) in keys[-1]:
                    return token.start() + 1
                keys[-1].add(name)
        elif word in ("NaN", "Infinity", "-Infinity") or _is_refused_number(word):
            return token.start() + 1
    return None


def _tokens(text: str, start: int) -> Iterator[re.Match[str]]:
    return _TOKEN.finditer(text, start)


def _is_refused_number(literal: str) -> bool:
    try:
        _integer(literal) if literal.lstrip("-").isdigit() else _float(literal)
    except Malformed:
        return True
    except ValueError:
        return False
    return False


def _explain(error: json.JSONDecodeError) -> Malformed:
    """Say in plain words what the standard reader complains about."""
    text, position = error.doc, error.pos
    if error.msg.startswith("Unterminated string"):
        what = "ends in the middle of a string (a line break inside text is written \\n)"
        return Malformed(what, len(text))
    if position >= len(text.rstrip()):
        return Malformed("ends too early", len(text))
    if error.msg.startswith("Invalid control character"):
        code = ord(text[position])
        return Malformed(
            f"holds a raw control character (U+{code:04X}) in a string; write it with a backslash",
            position + 1,
        )
    if text[position] == "'":
        return Malformed("has single quotes; JSON needs double quotes", position + 1)
    if text[position] == "\ufeff":
        return Malformed("has a byte order mark in the middle of the file", position + 1)
    return Malformed(f"is not JSON: {error.msg[0].lower()}{error.msg[1:]}", position + 1)
