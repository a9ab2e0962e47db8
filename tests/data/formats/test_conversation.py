import pytest
from hypothesis import given
from hypothesis import strategies as st

from lite_align.data.formats.conversation import (
    BadRow,
    is_transcript,
    split_text,
    split_turns,
    transcript,
    turns,
)
from lite_align.data.types import Message


def test_role_names_of_all_habits_are_read():
    spoken = ["human", "User", "prompter", "gpt", "bot", "model", "developer", "observation", "function_call"]
    read = turns([{"from": role, "value": "x"} for role in spoken], "messages")
    assert [turn.role for turn in read] == ["user"] * 3 + ["assistant"] * 3 + ["system", "tool", "assistant"]


def test_typed_text_parts_are_joined():
    content = [{"type": "text", "text": "a"}, {"type": "text", "value": "b"}]
    assert turns({"role": "user", "content": content}, "prompt") == (Message("user", "ab"),)


def test_a_transcript_is_its_turns():
    text = "\n\nHuman: Hi: there\n\nNo mark Human: here\n\nAssistant: Yes.\n"
    assert transcript(text, "chosen") == (
        Message("user", "Hi: there\n\nNo mark Human: here"),
        Message("assistant", "Yes."),
    )
    assert not is_transcript("Human: Hi")
    assert not is_transcript("They said:\n\nHuman: Hi\n\nAssistant: Yes")
    with pytest.raises(BadRow, match="does not begin"):
        transcript("Note.\n\nHuman: Hi\n\nAssistant: Yes", "chosen")


def test_equal_conversations_part_before_the_last_turn():
    both = (Message("user", "Hi"), Message("assistant", "Yes"))
    assert split_turns(both, both) == (both[:1], both[1:], both[1:])


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("Same words here", "Same words here", ("Same words", "here", "here")),
        ("The sky", "The sky is", ("The", "sky", "sky is")),
        ("天空。蓝色", "天空。绿色", ("天空。", "蓝色", "绿色")),
        ("A b\nc d", "A b\nc e", ("A b\nc", "d", "e")),
    ],
)
def test_texts_part_after_a_whole_word(chosen, rejected, expected):
    assert split_text(chosen, rejected) == expected


WORDS = st.lists(st.sampled_from(["Apple", "Apricot", "don't", "a", "naïve", "x-y"]), min_size=1, max_size=6)


@given(WORDS, WORDS)
def test_texts_never_part_inside_a_word(chosen, rejected):
    try:
        prompt, better, worse = split_text(" ".join(chosen), " ".join(rejected))
    except BadRow:
        assert chosen[0] != rejected[0] or len(chosen) == 1 or len(rejected) == 1
    else:
        assert prompt.split() + better.split() == chosen
        assert prompt.split() + worse.split() == rejected
