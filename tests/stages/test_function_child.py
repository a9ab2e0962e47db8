"""What functions can ask for and return; the process itself is tested in test_user_function."""

import math
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy
import pytest
import torch

from lite_align.stages.function_child import (
    CONTRACTS,
    Refused,
    WrongValue,
    answer,
    load,
    number,
    verdict,
    wanted,
)

REWARD, JUDGE = CONTRACTS["reward"], CONTRACTS["judge"]


def test_arguments_are_asked_for_by_name():
    def one(answer, row=None, other=3): ...
    def keywords(*, tokens: int, stopped: bool) -> float: ...
    def everything(answer, **rest): ...
    def typed(messages: list[dict[str, str]], row: Mapping[str, object], answer: "str") -> "float": ...
    def loose(*rest, prompt: object) -> bool: ...

    class Judge:
        def __call__(self, prompt, answer) -> numpy.float32: ...

    assert wanted(one, "f", REWARD) == ["answer", "row"]
    assert wanted(keywords, "f", REWARD) == ["tokens", "stopped"]
    assert wanted(everything, "f", REWARD) == list(REWARD.arguments)
    assert wanted(typed, "f", REWARD) == ["messages", "row", "answer"]
    assert wanted(loose, "f", REWARD) == ["prompt"]
    assert wanted(Judge(), "f", REWARD) == ["prompt", "answer"]
    assert wanted(lambda: 1, "f", REWARD) == []


def unknown(response): ...
def positional(answer, /): ...
def text(answer) -> str: ...
def maybe(answer) -> float | None: ...
def quoted(answer) -> "list[float]": ...
def nothing(answer) -> None: ...
def turns(prompt: list[dict[str, str]]): ...
def quoted_turns(prompt: "list[dict]"): ...
def raw(row: str): ...
async def later(answer): ...


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (
            unknown,
            r"f asks for response. There is, by name: prompt \(text of the last user turn\); messages ",
        ),
        (positional, "f asks for answer."),
        (text, "f says that it returns str; a reward is a float, an int or a bool."),
        (maybe, r"f says that it returns float \| None;"),
        (quoted, r"f says that it returns list\[float\];"),
        (nothing, "f says that it returns None;"),
        (turns, r"f says that prompt is list\[dict\[str, str\]\]; it is str \(text of the last user turn\)."),
        (quoted_turns, r"f says that prompt is list\[dict\]; it is str"),
        (raw, "f says that row is str; it is dict"),
        (later, "f is async"),
        (3, "f is no function: int."),
        (type, "the arguments of f cannot be read"),
    ],
)
def test_what_does_not_fit_is_refused(function, what):
    with pytest.raises(Refused, match=what):
        wanted(function, "f", REWARD)


@pytest.mark.parametrize(
    "value", [1, 1.0, True, Fraction(1), numpy.float32(1), numpy.int64(1), numpy.float64(1)]
)
def test_numbers_are_rewards(value):
    assert number(value) == 1.0
    assert type(number(value)) is float


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (None, r"returned None \(NoneType\), not a number"),
        ("0.5", r"returned '0.5' \(str\), not a number"),
        ([1.0], r"returned \[1.0\] \(list\), not a number"),
        (Decimal(1), "Decimal"),
        (torch.tensor(1.0), "Tensor"),
        (math.nan, "returned nan"),
        (-math.inf, "returned -inf"),
        (10**400, "returned inf"),
        (numpy.float32("nan"), "returned nan"),
    ],
)
def test_everything_else_is_not(value, what):
    with pytest.raises(WrongValue, match=what):
        number(value)


def test_a_reply_holds_a_value_or_an_error_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.path", ["elsewhere"])
    monkeypatch.setattr("sys.argv", [])
    monkeypatch.setitem(__import__("sys").modules, "function_file", None)
    (tmp_path / "beside.py").write_text("def broken(text):\n    raise ValueError('no\\nnumber')\n")
    file = str(tmp_path / "rewards.py")
    Path(file).write_text(
        "import beside\ndef f(answer):\n    return beside.broken(answer) if answer else 2\n"
    )
    function = load(file, "f")
    assert answer(function, {"answer": ""}, file, REWARD) == {"value": 2.0}
    assert answer(function, {"answer": "a"}, file, REWARD) == {
        "error": "raised an error",
        "message": f"ValueError: no ({file}:3)",
    }
    assert answer(lambda: "x", {}, file, REWARD) == {
        "error": "without a number",
        "message": "returned 'x' (str), not a number",
    }
    assert answer(lambda: exit(3), {}, file, REWARD)["message"].startswith("SystemExit: 3")  # type: ignore[union-attr]


def better(a: str, b: str, row: dict) -> "str": ...
def likelier(a, b) -> float: ...
def list_of(a) -> list: ...


def test_a_judge_is_asked_for_two_answers():
    assert wanted(better, "f", JUDGE) == ["a", "b", "row"]
    assert wanted(likelier, "f", JUDGE) == ["a", "b"]
    with pytest.raises(Refused, match='f says that it returns list; a verdict is "a", "b", "tie", or the'):
        wanted(list_of, "f", JUDGE)
    with pytest.raises(Refused, match="f asks for answer. There is, by name: prompt"):
        wanted(lambda answer: "a", "f", JUDGE)


@pytest.mark.parametrize("value", ["a", "b", "tie", 0, 1, 0.25, numpy.float32(0.5)])
def test_verdicts_and_probabilities_are_verdicts(value):
    assert verdict(value) == value


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (True, "returned True, not"),
        ("A", "returned 'A', not"),
        ("the first", "returned 'the first', not"),
        (1.01, "returned 1.01, which is no probability"),
        (-1, "returned -1, which is no probability"),
        (None, "returned None"),
        (math.nan, "returned nan"),
    ],
)
def test_nothing_else_is_a_verdict(value, what):
    with pytest.raises(WrongValue, match=what):
        verdict(value)
