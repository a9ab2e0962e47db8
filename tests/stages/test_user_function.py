"""Functions of any kind in their process; how a call can fail is tested in test_reward_function."""

import pytest

from lite_align.data.types import Message
from lite_align.errors import RecipeError
from lite_align.stages import function_child
from lite_align.stages.user_function import NeverStarts, NoValue, UserFunction, located, turns

CONVERSATION = (Message("user", "Hi?"), Message("assistant", "Yes?"), Message("user", "2+2?"))


def test_the_contract_of_the_kind_decides_what_is_asked_for_and_given_back(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def f(a, b, prompt): return 'a' if prompt == '2+2?' and a > b else 0.25 if a == b else 'neither'\n"
    )
    function = UserFunction("judge", f"{file}:f", seconds=5.0, option="--by")
    given = {**turns(CONVERSATION), "row": {}}
    assert function({**given, "a": "5", "b": "4"}) == "a"
    assert function({**given, "a": "4", "b": "4"}) == 0.25
    with pytest.raises(NoValue, match="without a verdict: returned 'neither'"):
        function({**given, "a": "4", "b": "5"})
    function.close()
    assert function.child is None


def test_one_that_does_not_start_again_says_why(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        f"import os, pathlib\nmark = pathlib.Path({str(tmp_path / 'mark')!r})\n"
        "mark.exists() and os._exit(4)\nmark.touch()\ndef f(a): os._exit(3)\n"
    )
    function = UserFunction("judge", f"{file}:f", seconds=5.0, option="--by")
    given = {**turns(CONVERSATION), "row": {}, "a": "1", "b": "2"}
    with pytest.raises(NoValue, match="ended the process: ended with exit code 3"):
        function(given)
    with pytest.raises(NeverStarts, match="does not start any more") as caught:
        function(given)
    assert caught.value.error.what.startswith(f"--by: {file}:f ended at its start")


def test_messages_name_the_option(tmp_path):
    with pytest.raises(RecipeError, match=r"^--by: \"mine.py\" names no function in a file"):
        located("mine.py", "--by")


def test_turns_are_the_last_question_and_all_messages():
    given = turns(CONVERSATION)
    assert given["prompt"] == "2+2?"
    assert given["messages"][1] == {"role": "assistant", "content": "Yes?"}
    assert turns((Message("system", "Be kind."),))["prompt"] == ""
    for contract in function_child.CONTRACTS.values():
        assert given.keys() <= contract.arguments.keys()
