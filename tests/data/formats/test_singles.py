"""Thumbs, conversations and prompts: each format with what a person would read from its row."""

import pytest

from lite_align.data.formats import FORMATS, convert, detect
from lite_align.data.sources import RawTable
from lite_align.data.types import Chat, Message, Prompt, Rated, Source
from lite_align.errors import DataError

HI, HELLO = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}
FROM = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]
SOURCE = Source("data.jsonl", 1)
PROMPT, ANSWER = (Message("user", "Hi"),), (Message("assistant", "Hello!"),)


def table(*rows) -> RawTable:
    return RawTable("data.jsonl", [(Source("data.jsonl", n), row) for n, row in enumerate(rows, 1)], [], "0")


CHAT = Chat(SOURCE, messages=PROMPT + ANSWER)
UP, DOWN = (Rated(SOURCE, prompt=PROMPT, answer=ANSWER, label=label) for label in (True, False))

ORACLES = [
    *(
        ("kto.text", {"prompt": "Hi", "completion": "Hello!", "label": label}, expected)
        for label, expected in [
            *((label, UP) for label in (True, 1, "true", "1", "👍", "True")),
            *((label, DOWN) for label in (False, 0, "false", "0", "👎")),
        ]
    ),
    ("kto.chat", {"prompt": [HI], "completion": [HELLO], "label": True}, UP),
    ("kto.chat-only", {"conversations": FROM, "kto_tag": True}, UP),
    ("kto.chat-only", {"messages": [HI, HELLO], "label": False}, DOWN),
    ("sft.messages", {"messages": [HI, HELLO]}, CHAT),
    ("sft.sharegpt", {"conversations": FROM}, CHAT),
    (
        "sft.sharegpt",
        {
            "conversations": [
                FROM[0],
                {"from": "function_call", "value": "f()"},
                {"from": "observation", "value": "1"},
                FROM[1],
            ]
        },
        Chat(SOURCE, messages=(*PROMPT, Message("assistant", "f()"), Message("tool", "1"), *ANSWER)),
    ),
    ("sft.alpaca", {"instruction": "Hi", "input": "", "output": "Hello!"}, CHAT),
    ("sft.prompt-completion", {"prompt": "Hi", "completion": " Hello!"}, CHAT),
    ("sft.prompt-completion", {"prompt": "Hi", "completion": "Hello!", "label": "greeting"}, CHAT),
    ("sft.prompt-completion", {"prompt": [HI], "completion": [HELLO]}, CHAT),
    ("sft.qa", {"query": "Hi", "response": "Hello!", "history": []}, CHAT),
    ("sft.qa", {"question": "Hi", "answer": "Hello!"}, CHAT),
    (
        "sft.sharegpt",
        {"conversations": [{"from": "system", "value": "Kind."}, FROM[1], *FROM]},
        Chat(SOURCE, messages=(Message("system", "Kind."), *ANSWER, *PROMPT, *ANSWER)),
    ),
    (
        "sft.messages",
        {"messages": [HI, {**HELLO, "content": " "}]},
        Chat(SOURCE, messages=(*PROMPT, Message("assistant", " "))),
    ),
    ("sft.text", {"text": "Hello!"}, Chat(SOURCE, messages=ANSWER, raw=True)),
    ("prompts", {"prompt": "Hi"}, Prompt(SOURCE, messages=PROMPT)),
    ("prompts", {"prompt": [HI], "category": "x"}, Prompt(SOURCE, category="x", messages=PROMPT)),
    ("prompts.messages", {"messages": [HI]}, Prompt(SOURCE, messages=PROMPT)),
]


@pytest.mark.parametrize(("name", "row", "expected"), ORACLES)
def test_a_row_is_what_a_person_reads(name, row, expected):
    data = table(row)
    detection = detect(data)
    assert (detection.name, detection.kind) == (name, FORMATS[name].kind)
    assert convert(data, detection) == [expected]


def test_every_single_format_has_an_oracle():
    singles = {name for name, entry in FORMATS.items() if entry.kind in ("rated", "chat", "prompt")}
    assert {name for name, *_ in ORACLES} == singles


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "p", "completions": ["a", "b"], "labels": [True, False]}, "not supported"),
        ({"messages": [HI, HELLO], "images": ["cat.png"]}, "only text can be trained"),
        ({"prompt": "p", "chosen": "c", "rejected": "r", "image": "cat.png"}, "only text can be trained"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_reason(row, words):
    data = table({"prompt": "p", "chosen": "c", "rejected": "r"}, row)
    with pytest.raises(DataError) as caught:
        detect(data)
    assert caught.value.details[0].startswith("data.jsonl:2 ")
    assert words in caught.value.details[0]


@pytest.mark.parametrize(
    ("good", "bad", "words"),
    [
        ({"messages": [HI, HELLO]}, {"messages": [HELLO]}, "the prompt is empty"),
        (
            {"messages": [HI, HELLO]},
            {"messages": [HI, {**HELLO, "content": ""}, HI, HELLO]},
            "turn 2 of the prompt (assistant) is empty",
        ),
        ({"messages": [HI, HELLO]}, {"messages": [HI]}, "the answer is missing"),
        (
            {"conversations": FROM},
            {"conversations": [FROM[1], {"from": "observation", "value": "1"}, FROM[1]]},
            "begins with a turn of the tool",
        ),
        ({"text": "x"}, {"text": " "}, '"text" is empty'),
        ({"text": "x"}, {"text": 3}, '"text" is a number'),
        ({"prompt": "p"}, {"prompt": ""}, "the prompt is empty"),
        ({"instruction": "i", "output": "o"}, {"instruction": "i", "output": 3}, '"output" is a number'),
        (
            {"prompt": "p", "completion": "c", "label": True},
            {"prompt": "p", "completion": "c", "label": 2},
            "not a thumb",
        ),
        (
            {"prompt": "p", "completion": "c", "label": True},
            {"prompt": "p", "completion": "c"},
            'has no "label"',
        ),
    ],
)
def test_a_bad_row_is_named(good, bad, words):
    data = table(good, bad)
    with pytest.raises(DataError) as caught:
        convert(data, detect(data))
    assert any(detail.startswith("data.jsonl:2 ") and words in detail for detail in caught.value.details)
