"""What a reward function can ask for and return; the process itself is tested in test_reward_function."""

import math
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy
import pytest
import torch

from lite_align.stages.reward_child import ARGUMENTS, Refused, WrongValue, answer, checked, load, wanted


def test_arguments_are_asked_for_by_name():
    def one(answer, row=None, other=3): ...
    def keywords(*, tokens: int, stopped: bool) -> float: ...
    def everything(answer, **rest): ...
    def typed(messages: list[dict[str, str]], row: Mapping[str, object], answer: "str") -> "float": ...
    def loose(*rest, prompt: object) -> bool: ...

    class Judge:
        def __call__(self, prompt, answer) -> numpy.float32: ...

    assert wanted(one, "f") == ["answer", "row"]
    assert wanted(keywords, "f") == ["tokens", "stopped"]
    assert wanted(everything, "f") == list(ARGUMENTS)
    assert wanted(typed, "f") == ["messages", "row", "answer"]
    assert wanted(loose, "f") == ["prompt"]
    assert wanted(Judge(), "f") == ["prompt", "answer"]
    assert wanted(lambda: 1, "f") == []


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
        wanted(function, "f")


@pytest.mark.parametrize(
    "value", [1, 1.0, True, Fraction(1), numpy.float32(1), numpy.int64(1), numpy.float64(1)]
)
def test_numbers_are_rewards(value):
    assert checked(value) == 1.0
    assert type(checked(value)) is float


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
        checked(value)


def test_a_reply_holds_a_value_or_an_error_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.path", ["elsewhere"])
    monkeypatch.setattr("sys.argv", [])
    monkeypatch.setitem(__import__("sys").modules, "reward_file", None)
    (tmp_path / "beside.py").write_text("def broken(text):\n    raise ValueError('no\\nnumber')\n")
    file = str(tmp_path / "rewards.py")
    Path(file).write_text(
        "import beside\ndef f(answer):\n    return beside.broken(answer) if answer else 2\n"
    )
    function = load(file, "f")
    assert answer(function, {"answer": ""}, file) == {"value": 2.0}
    assert answer(function, {"answer": "a"}, file) == {
        "error": "raised an error",
        "message": f"ValueError: no ({file}:3)",
    }
    assert answer(lambda: "x", {}, file) == {
        "error": "without a number",
        "message": "returned 'x' (str), not a number",
    }
    assert answer(lambda: exit(3), {}, file)["message"].startswith("SystemExit: 3")  # type: ignore[union-attr]
