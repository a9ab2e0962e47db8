"""As much of Go's text/template as Modelfiles of this project use, written after its documentation."""

import json
import re
from typing import Any

_ACTION = re.compile(r'\{\{\s*("(?:[^"\\]|\\.)*"|[^"{}]*(?:"[^"]*"[^"{}]*)*?)\s*\}\}')
_WORD = re.compile(r'\(|\)|"(?:[^"\\]|\\.)*"|[^\s()]+')


def collate(messages: list[dict[str, str]]) -> tuple[str, list[dict[str, str]]]:
    """What Ollama hands to a template: all system texts, and messages with neighbours of one role joined."""
    joined: list[dict[str, str]] = []
    for message in messages:
        if joined and joined[-1]["role"] == message["role"]:
            joined[-1]["content"] += "\n\n" + message["content"]
        else:
            joined.append(dict(message))
    return "\n\n".join(m["content"] for m in messages if m["role"] == "system"), joined


def render(template: str, messages: list[dict[str, str]]) -> str:
    system, joined = collate(messages)
    # text and actions in turn
    pieces = [part.strip() if n % 2 else part for n, part in enumerate(_ACTION.split(template))]
    root = {"System": system, "Messages": [{"Role": m["role"], "Content": m["content"]} for m in joined]}
    out: list[str] = []
    end = _block(pieces, 0, root, root, {}, out)
    assert end == len(pieces), "an action is left over"
    return "".join(out)


def _block(
    pieces: list[str], at: int, root: Any, dot: Any, names: dict[str, Any], out: list[str] | None
) -> int:
    """Run up to the `end` or `else` that belongs to this block; without `out` only find it."""
    while at < len(pieces):
        if at % 2 == 0:
            if out is not None:
                out.append(pieces[at])
            at += 1
            continue
        action = pieces[at]
        if action == "end" or action.startswith("else"):
            return at
        if action.startswith("if "):
            at = _if(pieces, at, action[3:], root, dot, names, out)
        elif match := re.fullmatch(r"range (\$\w+), (\$\w+) := (\S+)", action):
            items = _value(match[3], root, dot, names) if out is not None else []
            for index, item in enumerate(items):
                _block(pieces, at + 1, root, item, {**names, match[1]: index, match[2]: item}, out)
            at = _block(pieces, at + 1, root, dot, names, None) + 1
        elif match := re.fullmatch(r"(\$\w+) := (.+)", action):
            if out is not None:
                names[match[1]] = _value(match[2], root, dot, names)
            at += 1
        else:
            if out is not None:
                out.append(str(_value(action, root, dot, names)))
            at += 1
    return at


def _if(pieces: list[str], at: int, test: str, root: Any, dot: Any, names: Any, out: list[str] | None) -> int:
    done = False
    while True:
        here = out is not None and not done and (test == "" or bool(_value(test, root, dot, names)))
        at = _block(pieces, at + 1, root, dot, names, out if here else None)
        done = done or here
        if pieces[at] == "end":
            return at + 1
        test = pieces[at].removeprefix("else").strip().removeprefix("if ")


def _value(text: str, root: Any, dot: Any, names: dict[str, Any]) -> Any:
    words = _WORD.findall(text)

    def operand() -> Any:
        word = words.pop(0)
        if word == "(":
            value = call()
            assert words.pop(0) == ")"
            return value
        if word[0] == '"':
            return json.loads(word)
        if word.isdigit():
            return int(word)
        base, _, field = word.partition(".")
        value = {"": dot, "$": root, **names}[base]
        return value[field] if field else value

    def call() -> Any:
        function = {
            "eq": lambda a, b: a == b,
            "len": len,
            "not": lambda a: not a,
            "slice": lambda a, i: a[i:],
        }.get(words[0])
        if function is None:
            return operand()
        words.pop(0)
        arguments = []
        while words and words[0] != ")":
            arguments.append(operand())
        return function(*arguments)

    value = call()
    assert not words, text
    return value
