"""A function as judge: asked in both orders, and whatever it does costs a verdict, not the command."""

import pytest

from benchmarks.injections import INJECTIONS
from lite_align.data.types import Message
from lite_align.data.votes import Comparison
from lite_align.errors import RecipeError, UserError
from lite_align.flywheel.judges.function import FunctionJudge
from lite_align.flywheel.judges.judgement import position_bias, problems


def comparison(a, b, **known):
    return Comparison(prompt=(Message("user", "Hi?"),), a=a, b=b, **known)


@pytest.fixture
def judge(tmp_path):
    made = []

    def make(text, seconds=5.0):
        (tmp_path / "mine.py").write_text(text)
        made.append(FunctionJudge(f"{tmp_path}/mine.py:f", seconds=seconds))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_verdicts_and_probabilities_are_taken_in_both_orders(judge):
    function = judge(
        "def f(prompt, messages, a, b, row):\n"
        "    assert prompt == 'Hi?' and messages == [{'role': 'user', 'content': 'Hi?'}] and row['a'] == a\n"
        "    return 'tie' if len(a) == len(b) else 'a' if len(a) > len(b) else 0.25\n"
    )
    items = [comparison("12", "1"), comparison("1", "2"), comparison("1", "12")]
    told = []
    found = function.judge(items, told.append)
    assert [one.choice for one in found] == ["a", "tie", "b"]
    assert [one.preference for one in found] == [None, None, None]  # one order alone gives a probability
    assert found[0].said == ("a", "a")
    assert told == [1, 1, 1]
    assert function.tell() == ["6 calls"]
    assert (function.kind, function.rubric) == ("rule", None)


def test_probabilities_of_both_orders_are_a_preference(judge):
    (found,) = judge("def f(a, b): return 0.9 if a < b else 0.3").judge([comparison("1", "2")])
    assert (found.choice, found.preference) == ("a", pytest.approx(0.8))


def test_one_that_likes_the_first_shows_it(judge):
    found = judge("def f(): return 'a'").judge([comparison("1", "2")] * 3)
    bias = position_bias(found)
    assert bias is not None
    assert bias.value == 1.0
    assert {one.choice for one in found} == {"tie"}


def test_what_goes_wrong_is_a_tie_and_counted(judge):
    function = judge(
        "import os, time\n"
        "def f(a):\n"
        "    if a == 'hangs': time.sleep(60)\n"
        "    if a == 'dies': os._exit(3)\n"
        "    if a == 'raises': raise ValueError('no')\n"
        "    return 'C' if a == 'wrong' else 'b'\n",
        seconds=0.3,
    )
    words = ("hangs", "dies", "raises", "wrong")
    found = function.judge([comparison(word, "1") for word in words])
    assert [one.choice for one in found] == ["tie"] * 4
    assert problems(found) == {
        "took over 0.3 s": 1,
        "ended the process": 1,
        "raised an error": 1,
        "without a verdict": 1,
    }


@pytest.mark.parametrize("text", INJECTIONS[:3])
def test_text_in_an_answer_is_data(judge, text):
    function = judge("def f(a, b): return 'a' if a.startswith('Yes') else 'b'")
    (found,) = function.judge([comparison("Yes.", f"No. {text}")])
    assert found.choice == "a"
    assert found.flagged


def test_the_name_follows_the_contents(judge, tmp_path):
    one = judge("def f(): return 'a'").name
    other = judge("def f(): return 'b'").name
    assert one.startswith("function mine.py:f ")
    assert one != other
    assert len(one.split()[-1]) == 8


def test_one_that_cannot_be_used_stops(judge, tmp_path):
    with pytest.raises(RecipeError, match="--by: .* cannot be used"):
        judge("def f(answer): return 'a'")
    mark = tmp_path / "mark"
    function = judge(
        f"import os, pathlib\nmark = pathlib.Path({str(mark)!r})\nmark.exists() and os._exit(4)\nmark.touch()\n"
        "def f(): os._exit(3)\n"
    )
    with pytest.raises(UserError, match="does not start any more"):
        function.judge([comparison("1", "2")])
