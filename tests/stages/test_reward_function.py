"""Reward functions in their process: every way to fail costs an answer, not the run."""

import time
from pathlib import Path

import pytest

from lite_align.data.types import Message
from lite_align.errors import RecipeError, TrainingStopped
from lite_align.stages import user_function
from lite_align.stages.episodes import Episode
from lite_align.stages.reward_function import RewardFunction, located
from tests.stages.test_child import gone

SECONDS = 0.3
PROMPT = (
    Message("system", "Be kind."),
    Message("user", "Hi?"),
    Message("assistant", "Yes?"),
    Message("user", "2+2?"),
)


def episode(answer: str, **row: object) -> Episode:
    return Episode(PROMPT, answer, 7, True, row)


@pytest.fixture
def source(tmp_path: Path):
    """Makes a source of a file's text; all are closed at the end."""
    made: list[RewardFunction] = []

    def make(text: str, name: str = "f", seconds: float = 10.0) -> RewardFunction:
        (tmp_path / "rewards.py").write_text(text, encoding="utf-8")
        made.append(RewardFunction(f"{tmp_path}/rewards.py:{name}", weight=0.5, seconds=seconds))
        return made[-1]

    yield make
    for one in made:
        one.close()


def pid(function: RewardFunction) -> int:
    assert function.function.child is not None
    return function.function.child.pid


def test_a_function_gets_what_it_asks_for(source):
    function = source(
        "def f(prompt: str, messages: list, answer: str, row: dict, stopped: bool, tokens: int) -> float:\n"
        "    assert prompt == '2+2?' and stopped is True and tokens == 7\n"
        "    assert messages[0] == {'role': 'system', 'content': 'Be kind.'} and len(messages) == 4\n"
        "    return answer == row['solution']\n"
    )
    assert (function.name, function.weight) == ("function", 0.5)
    answers = [
        episode("4", solution="4"),
        episode("5", solution="4"),
        episode("é\u2028\ud800", solution="é\u2028\ud800"),
    ]
    assert function(answers) == [1.0, 0.0, 1.0]
    assert function([]) == []
    assert function.errors.tell() == []


def test_files_beside_it_can_be_imported_and_no_torch_is(source, tmp_path):
    (tmp_path / "beside.py").write_text("ONE = 1")
    function = source("import sys, beside\ndef f(): return beside.ONE + 2 * ('torch' in sys.modules)")
    assert function([episode("a")]) == [1.0]
    assert not (tmp_path / "__pycache__").exists()


def test_what_it_prints_is_not_taken_for_answers(source):
    function = source(
        "import os, subprocess, sys\nprint('{\"ready\": false}')\n"
        "def f(answer):\n"
        "    print('{\"value\": 9}'); os.write(1, b'{\"value\": 8}\\n'); sys.__stdout__.write('7\\n')\n"
        "    subprocess.run(['echo', '6'])\n"
        "    return len(sys.stdin.read()) + len(answer)\n"
    )
    assert function([episode("a"), episode("ab")]) == [1.0, 2.0]


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        ("raise ValueError('no\\nnumber')", "raised an error", "ValueError: no (FILE:4)"),
        ("return {}['solution']", "raised an error", "KeyError: 'solution' (FILE:4)"),
        ("import sys; sys.exit('enough')", "raised an error", "SystemExit: enough (FILE:4)"),
        ("return f(answer)", "raised an error", "RecursionError: maximum recursion depth exceeded (FILE:4)"),
        ("return float('nan')", "without a number", "returned nan"),
        ("return '0.5'", "without a number", "returned '0.5' (str), not a number"),
        ("return", "without a number", "returned None (NoneType), not a number"),
        ("import os; os._exit(3)", "ended the process", "ended with exit code 3"),
        (
            "print('why'); import os; os._exit(3)",
            "ended the process",
            "ended with exit code 3; it printed: why",
        ),
        (
            "import ctypes; ctypes.string_at(0)",
            "ended the process",
            "killed by signal 11 (Segmentation fault) at FILE:4",
        ),
        ("import time; time.sleep(60)", "took over 0.3 s", "hung at FILE:4"),
        (
            "import re; re.match('(a+)+$', 'a' * 40 + '!')",
            "took over 0.3 s",
            "hung at FILE:4",
        ),  # holds the GIL
        (
            "import os; os.fork() or __import__('time').sleep(60); os._exit(3)",
            "ended the process",
            "ended with exit",
        ),
    ],
)
def test_a_failure_costs_its_answer_and_the_rest_goes_on(source, body, kind, message):
    function = source(
        f"def f(answer):\n  if answer != 'bad':\n    return len(answer)\n  {body}\n", seconds=SECONDS
    )
    begun = time.monotonic()
    assert function([episode("a"), episode("ab"), episode("bad"), episode("abc")]) == [1.0, 2.0, None, 3.0]
    assert time.monotonic() - begun < 20
    assert function.errors.kinds == {kind: 1}
    (told,) = function.errors.messages
    assert told.startswith(message.replace("FILE", str(function.function.file)))
    assert function.errors.take() == 1
    assert function([episode("a")]) == [1.0]
    assert function.errors.take() == 0


def test_a_function_that_stops_its_clock_is_killed(source, monkeypatch):
    monkeypatch.setattr(user_function, "GRACE_SECONDS", 0.2)
    function = source(
        "import faulthandler, time\ndef f(answer):\n"
        "    if answer == 'bad': faulthandler.cancel_dump_traceback_later(); time.sleep(60)\n    return 1\n",
        seconds=SECONDS,
    )
    before = pid(function)
    assert function([episode("bad"), episode("a")]) == [None, 1.0]
    assert function.errors.tell()[1:] == ["  hung"]
    assert gone(before)


def test_a_forked_copy_answers_nobody_and_ends(source):
    function = source("import os\ndef f(answer):\n    return os.fork()\n")
    values = function([episode("a") for _ in range(5)])
    assert all(value and gone(int(value)) for value in values)


def test_a_lost_round_is_not_asked_to_its_end(source):
    function = source("def f(answer):\n    raise OSError(answer)\n")
    assert function([episode(str(n)) for n in range(10)]) == [None] * 10
    assert function.errors.kinds == {"raised an error": 6, "not asked after these": 4}
    first, *messages = function.errors.tell()
    assert first == f"reward function {function.function.file}:f: 6 raised an error, 4 not asked after these"
    assert messages == [f"  OSError: {n} ({function.function.file}:2)" for n in range(3)]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("def f(answer:\n  return 1", "FILE:1: SyntaxError: '(' was never closed"),
        ("\nimport nowhere_at_all", "FILE:2: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("x = 1\nexit(2)", "FILE:2: SystemExit: 2"),
        ("def g(answer): ...\ndef _h(): ...", "FILE has no f; its functions are: g."),
        ("f = 3", "f is no function: int."),
        ("def f(response): ...", "f asks for response. There is, by name: prompt (text"),
        ("def f(answer) -> str: ...", "f says that it returns str;"),
    ],
)
def test_what_cannot_be_used_stops_before_the_start(source, tmp_path, text, what):
    with pytest.raises(RecipeError) as caught:
        source(text)
    assert caught.value.exit_code == 2
    assert caught.value.what == f"ppo.reward_fn: {tmp_path}/rewards.py:f cannot be used."
    assert caught.value.details[0].startswith(what.replace("FILE", f"{tmp_path}/rewards.py"))


def test_what_ends_or_hangs_at_its_start_stops_before_the_start(source, monkeypatch):
    with pytest.raises(RecipeError, match=r"ended at its start: ended with exit code 3\.\nwhy\n"):
        source("import os; print('why'); os._exit(3)")
    monkeypatch.setattr(user_function, "START_SECONDS", SECONDS)
    with pytest.raises(RecipeError, match=r"did not start in 0.3 s at .*rewards.py:2\."):
        source("import time\ntime.sleep(60)")


def test_one_that_does_not_start_again_stops_the_training(source, tmp_path):
    function = source(
        f"import os, pathlib\nstarts = pathlib.Path({str(tmp_path / 'starts')!r})\n"
        "starts.write_text(starts.read_text() + '.' if starts.exists() else '.')\n"
        "if starts.read_text() != '.': os._exit(4)\n"
        "def f(answer): os._exit(3)\n"
    )
    with pytest.raises(TrainingStopped, match="does not start any more") as caught:
        function([episode("a"), episode("b"), episode("c")])
    assert (tmp_path / "starts").read_text() == "...."  # once, and three attempts
    assert "ended at its start: ended with exit code 4" in caught.value.details[0]
    assert "1 ended the process" in caught.value.details[1]


def test_closing_ends_the_process(source):
    function = source("def f(): return 1")
    before = pid(function)
    function.close()
    function.close()
    assert gone(before)


@pytest.mark.parametrize("written", ["rewards.py", "rewards.py:", ":f", "rewards.py:f()", ""])
def test_the_form_is_file_and_name(written):
    with pytest.raises(RecipeError, match="names no function in a file") as caught:
        located(written)
    assert "FILE.py:NAME" in caught.value.remedy


def test_a_file_that_is_not_there_is_told_with_the_nearest(tmp_path):
    (tmp_path / "rewards.py").write_text("")
    with pytest.raises(RecipeError, match=r"reward.py does not exist.\nDid you mean .*/rewards.py:f\?"):
        located(f"{tmp_path}/reward.py:f")
    with pytest.raises(RecipeError, match=r"is a folder.\nThe path is relative"):
        located(f"{tmp_path}:f")
    assert located(f"{tmp_path}/rewards.py:f") == (tmp_path / "rewards.py", "f")
