"""Every preference format of the table, with the pair that a person would read from its row."""

import pytest

from lite_align.data.formats import FORMATS, convert, detect
from lite_align.data.sources import RawTable
from lite_align.data.types import Message, Pair, Source
from lite_align.errors import DataError

HI = ({"role": "user", "content": "Hi"},)
HELLO, NO = {"role": "assistant", "content": "Hello!"}, {"role": "assistant", "content": "No."}
GPT_HELLO, GPT_NO = {"from": "gpt", "value": "Hello!"}, {"from": "gpt", "value": "No."}
HUMAN_HI = {"from": "human", "value": "Hi"}
U, A, S = (lambda text: Message("user", text)), (lambda text: Message("assistant", text)), Message


def table(*rows) -> RawTable:
    return RawTable("data.jsonl", [(Source("data.jsonl", n), row) for n, row in enumerate(rows, 1)], [], "0")


ASKED, GREETED, REFUSED = (U("Hi"),), (A("Hello!"),), (A("No."),)


def pair(prompt=ASKED, chosen=GREETED, rejected=REFUSED, **more) -> Pair:
    return Pair(Source("data.jsonl", 1), prompt=prompt, chosen=chosen, rejected=rejected, **more)


ORACLES = [
    ("pair.text", {"prompt": "Hi", "chosen": "Hello!", "rejected": "No."}, pair()),
    ("pair.text", {"prompt": "Hi", "chosen": " Hello!", "rejected": " No."}, pair()),
    ("pair.chat", {"prompt": [*HI], "chosen": [HELLO], "rejected": [NO]}, pair()),
    ("pair.chat", {"prompt": [*HI], "chosen": "Hello!", "rejected": NO}, pair()),
    ("pair.chat", {"prompt": [*HI], "chosen": [*HI, HELLO], "rejected": [*HI, NO]}, pair()),
    (
        "pair.chat",  # several turns in the answer
        {"prompt": [*HI], "chosen": [HELLO, *HI, NO], "rejected": [NO]},
        pair(chosen=(A("Hello!"), U("Hi"), A("No."))),
    ),
    ("pair.chat-implicit", {"chosen": [*HI, HELLO], "rejected": [*HI, NO]}, pair()),
    (
        "pair.chat-implicit",  # they part at the first answer, not at the last
        {"chosen": [*HI, HELLO, *HI, NO], "rejected": [*HI, NO, *HI, NO]},
        pair(chosen=(A("Hello!"), U("Hi"), A("No.")), rejected=(A("No."), U("Hi"), A("No."))),
    ),
    (
        "pair.chat-implicit",
        {"chosen": [*HI, NO, *HI, HELLO], "rejected": [*HI, NO, *HI, NO]},
        pair(prompt=(U("Hi"), A("No."), U("Hi"))),
    ),
    (
        "pair.text-implicit",
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        pair((U("The sky is"),), (A("blue."),), (A("green."),)),
    ),
    (
        "pair.text-implicit",  # "gr" is shared, but inside a word
        {"chosen": "Q: hi A: great answer", "rejected": "Q: hi A: grim answer"},
        pair((U("Q: hi A:"),), (A("great answer"),), (A("grim answer"),)),
    ),
    (
        "hh-rlhf",
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: No."},
        pair(),
    ),
    (
        "hh-rlhf",  # "Ap" is shared, but the turn is the answer
        {
            "chosen": "\n\nHuman: A\n\nAssistant: B\n\nHuman: Fruit?\n\nAssistant: Apple.",
            "rejected": "\n\nHuman: A\n\nAssistant: B\n\nHuman: Fruit?\n\nAssistant: Apricot.",
        },
        pair((U("A"), A("B"), U("Fruit?")), (A("Apple."),), (A("Apricot."),)),
    ),
    (
        "hh-rlhf.prompt",
        {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Hello!", "rejected": " No."},
        pair(),
    ),
    (
        "ultrafeedback-bin",
        {
            "prompt": "Hi",
            "prompt_id": "a1",
            "messages": [*HI, HELLO],
            "chosen": [*HI, HELLO],
            "rejected": [*HI, NO],
            "score_chosen": 8.0,
            "score_rejected": 3.0,
        },
        pair(margin=5.0, id="a1"),
    ),
    ("ultrafeedback-bin", {"prompt": "Hi", "chosen": [HELLO], "rejected": NO}, pair()),
    (
        "ultrafeedback-raw",
        {
            "instruction": "Hi",
            "completions": [
                {"response": "Hm.", "overall_score": 5},
                {"response": "Hello!", "overall_score": 8},
                {"response": "No.", "overall_score": 3},
            ],
        },
        pair(margin=5.0),
    ),
    (
        "argilla",
        {
            "instruction": "Hi",
            "chosen_response": "Hello!",
            "rejected_response": "No.",
            "chosen_rating": 4,
            "rejected_rating": 2,
        },
        pair(margin=2.0),
    ),
    (
        "orca",
        {"system": "Be kind.", "question": "Hi", "chosen": "Hello!", "rejected": "No."},
        pair((S("system", "Be kind."), U("Hi"))),
    ),
    ("orca", {"system": "", "question": "Hi", "chosen": "Hello!", "rejected": "No."}, pair()),
    ("icr", {"input": "Hi", "chosen": "Hello!", "rejected": "No."}, pair()),
    ("icr", {"input": "Hi", "chosen": "Hello!", "rejected": "No.", "status": "tie"}, pair(margin=0.0)),
    (
        "alpaca-rank",
        {"instruction": "Translate", "input": "chat", "chosen": "cat", "rejected": "dog"},
        pair((U("Translate\nchat"),), (A("cat"),), (A("dog"),)),
    ),
    (
        "alpaca-rank",
        {
            "instruction": "Hi",
            "input": "",
            "system": "Be kind.",
            "history": [["A", "B"]],
            "chosen": "Hello!",
            "rejected": "No.",
        },
        pair((S("system", "Be kind."), U("A"), A("B"), U("Hi"))),
    ),
    ("sharegpt-rank", {"conversations": [HUMAN_HI], "chosen": GPT_HELLO, "rejected": GPT_NO}, pair()),
    ("sharegpt-rank", {"conversations": [HUMAN_HI], "chosen": [GPT_HELLO], "rejected": "No."}, pair()),
    (
        "sharegpt-rank",
        {"system": "Be kind.", "conversations": [HUMAN_HI], "chosen": GPT_HELLO, "rejected": GPT_NO},
        pair((S("system", "Be kind."), U("Hi"))),
    ),
    ("messages+dict", {"messages": [*HI], "chosen": HELLO, "rejected": NO}, pair()),
    ("swift", {"messages": [*HI, HELLO], "rejected_response": "No."}, pair()),
    (
        "openai-pref",
        {"input": {"messages": [*HI]}, "preferred_output": [HELLO], "non_preferred_output": [NO]},
        pair(),
    ),
    (
        "ranked",  # rank 1 is the best, wherever it stands
        {
            "prompt": "Hi",
            "answers": [
                {"answer": "No.", "rank": 7},
                {"answer": "Hello!", "rank": 1},
                {"answer": "Hm.", "rank": 2},
            ],
        },
        pair(),
    ),
    (
        "ranked",
        {
            "prompt": "\n\nHuman: Hi\n\nAssistant: ",
            "answers": [{"answer": "Hello!", "rank": 1.0}, {"answer": "No.", "rank": 1.0}],
        },
        pair(margin=0.0, rejected=(A("Hello!"),)),
    ),
    ("stackexchange", {"question": "Hi", "response_j": "Hello!", "response_k": "No."}, pair()),
    (
        "messages-weighted",
        {
            "chosen_messages": [
                {"role": "user", "content": [{"type": "text", "value": "Hi"}], "loss_weight": 0.0},
                {"role": "assistant", "content": [{"type": "text", "value": "Hello!"}], "loss_weight": 0.5},
            ],
            "rejected_messages": [
                {"role": "user", "content": [{"type": "text", "value": "Hi"}], "loss_weight": 0.0},
                {"role": "assistant", "content": [{"type": "text", "text": "No."}], "loss_weight": 0.5},
            ],
        },
        pair(weight=0.5),
    ),
]


@pytest.mark.parametrize(("name", "row", "expected"), ORACLES, ids=[oracle[0] for oracle in ORACLES])
def test_a_row_is_the_pair_that_a_person_reads(name, row, expected):
    data = table(row)
    detection = detect(data, wanted="pair")
    assert (detection.name, detection.kind, detection.share) == (name, "pair", 1.0)
    converted = convert(data, detection)
    if name == "ranked" and expected.margin == 0.0:
        assert converted[0].margin == 0.0
        return
    assert converted == [expected]


def test_every_pair_format_has_an_oracle():
    alone = {name for name, entry in FORMATS.items() if entry.kind == "pair" and not entry.together}
    assert {name for name, *_ in ORACLES} == alone


def test_the_optional_columns_are_read():
    row = {"prompt": "Hi", "chosen": "Hello!", "rejected": "No.", "source": "web", "id": 7, "margin": 1.5}
    assert convert(table(row), detect(table(row))) == [pair(category="web", id="7", margin=1.5)]
    row |= {"category": "greeting", "weight": 0.25}
    assert convert(table(row), detect(table(row))) == [
        pair(category="greeting", id="7", margin=1.5, weight=0.25)
    ]


GOOD_TEXT = {"prompt": "p", "chosen": "c", "rejected": "r"}
GOOD_CHAT = {"prompt": [*HI], "chosen": [HELLO], "rejected": [NO]}
GOOD_WHOLE = {"chosen": [*HI, HELLO], "rejected": [*HI, NO]}
GOOD_HH = {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}
GOOD_RANK = {"prompt": "p", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 2}]}
GOOD_RAW = {
    "instruction": "i",
    "completions": [{"response": "a", "overall_score": 1}, {"response": "b", "overall_score": 2}],
}
GOOD_ALPACA = {"instruction": "i", "chosen": "c", "rejected": "r"}
GOOD_WEIGHTED = {
    "chosen_messages": [{**HI[0], "loss_weight": 0}, {**HELLO, "loss_weight": 1}],
    "rejected_messages": [{**HI[0], "loss_weight": 0}, {**NO, "loss_weight": 1}],
}

BAD_ROWS = [
    (GOOD_TEXT, {"chosen": 7}, '"chosen" is a number; text expected'),
    (GOOD_TEXT, {"chosen": True}, '"chosen" is true or false'),
    (GOOD_TEXT, {"chosen": ["c"]}, '"chosen" is a list'),
    (GOOD_TEXT, {"chosen": {"text": "c"}}, '"chosen" is an object'),
    (GOOD_TEXT, {"chosen": None}, '"chosen" is null'),
    (GOOD_TEXT, {"rejected": 7.5}, '"rejected" is a number'),
    (GOOD_TEXT, {"rejected": ...}, 'has no "rejected"; columns: prompt, chosen'),
    (GOOD_TEXT, {"rejected": ..., "reject": "r"}, 'has no "rejected"; columns: prompt, chosen, reject'),
    (GOOD_TEXT, {"chosen": ...}, 'has no "chosen"'),
    (GOOD_TEXT, {"prompt": 7}, '"prompt" is a number'),
    (GOOD_TEXT, {"prompt": ""}, "the prompt is empty"),
    (GOOD_TEXT, {"prompt": " \n "}, "the prompt is empty"),
    (GOOD_TEXT, {"system": 3}, '"system" is a number'),
    (GOOD_TEXT, {"category": 3}, '"category" is a number'),
    (GOOD_TEXT, {"margin": "much"}, '"margin" is text; a finite number'),
    (GOOD_TEXT, {"weight": -1}, '"weight" is -1'),
    (GOOD_TEXT, {"weight": True}, '"weight" is true or false'),
    (GOOD_TEXT, {"weight": [1]}, '"weight" is a list'),
    (GOOD_TEXT, {"score_chosen": {}, "score_rejected": 1}, '"score_chosen" is an object'),
    (GOOD_CHAT, {"chosen": [{"role": "user", "content": "c"}]}, 'answer "chosen" begins with a turn of the user'),
    (GOOD_CHAT, {"rejected": [NO, *HI]}, 'answer "rejected" ends with a turn of the user'),
    (GOOD_CHAT, {"rejected": [{"role": "system", "content": "c"}]}, "a turn of the system"),
    (GOOD_CHAT, {"chosen": []}, '"chosen" is an empty list'),
    (GOOD_CHAT, {"chosen": ["c"]}, 'turn 1 of "chosen" is text'),
    (GOOD_CHAT, {"chosen": 7}, '"chosen" is a number; text or messages expected'),
    (GOOD_CHAT, {"prompt": [HELLO]}, "the prompt begins with a turn of the assistant"),
    (GOOD_CHAT, {"prompt": [*HI, HELLO]}, "the prompt ends with a turn of the assistant"),
    (GOOD_CHAT, {"prompt": [{"role": "user", "content": ""}]}, "the prompt is empty"),
    (GOOD_CHAT, {"prompt": [{"role": "system", "content": "Be kind."}]}, "the prompt is empty"),
    (GOOD_CHAT, {"prompt": [*HI, {"role": "system", "content": "x"}, *HI]}, "system turn stands after"),
    (GOOD_CHAT, {"prompt": [{"role": "user", "content": " "}, HELLO, *HI]}, "turn 1 of the prompt (user) is empty"),
    (GOOD_CHAT, {"prompt": [{"role": "narrator", "content": "x"}]}, "unknown role 'narrator'"),
    (GOOD_CHAT, {"prompt": [{"role": 1, "content": "x"}]}, "has no role"),
    (GOOD_CHAT, {"prompt": [{"speaker": "user", "content": "x"}]}, "has no role"),
    (GOOD_CHAT, {"prompt": [{"role": "user"}]}, 'content of turn 1 of "prompt" is null'),
    (GOOD_CHAT, {"prompt": [{"role": "user", "content": 7}]}, "is a number; text expected"),
    (GOOD_CHAT, {"prompt": [{"role": "user", "content": {"text": "x"}}]}, "is an object; text expected"),
    (GOOD_CHAT, {"prompt": [{"role": "user", "content": [{"type": "image_url"}]}]}, "part of type 'image_url'"),
    (GOOD_CHAT, {"prompt": [{"role": "user", "content": ["x"]}]}, "part without a text"),
    (GOOD_CHAT, {"chosen": [{**HELLO, "tool_calls": [{"id": 1}]}]}, '"tool_calls"'),
    (GOOD_CHAT, {"chosen": [{**HELLO, "reasoning_content": "hm"}]}, '"reasoning_content"'),
    (GOOD_CHAT, {"prompt": []}, '"prompt" is an empty list'),
    (GOOD_WHOLE, {"rejected": [{"role": "user", "content": "Ho"}, NO]}, "share no first turn"),
    (
        {"chosen": [*HI, HELLO, *HI, HELLO], "rejected": [*HI, HELLO, *HI, NO]},
        {"rejected": [*HI, HELLO, {"role": "user", "content": "Ho"}, NO]},
        "part at turn 3, which is of the user",
    ),
    (GOOD_WHOLE, {"chosen": [*HI]}, "share no first turn"),
    (GOOD_WHOLE, {"chosen": [HELLO], "rejected": [HELLO]}, "share no first turn"),
    (GOOD_HH, {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes\n\nHuman: So?"}, "ends with a turn of the user"),
    (GOOD_HH, {"chosen": "\n\nHuman: Ho\n\nAssistant: Yes"}, "share no first turn"),
    (GOOD_HH, {"chosen": "\n\nHuman:\n\nAssistant: Yes", "rejected": "\n\nHuman:\n\nAssistant: No"}, "prompt is empty"),
    ({"chosen": "One b", "rejected": "One c"}, {"chosen": "One", "rejected": "Two"}, "share no whole first word"),
    (GOOD_RANK, {"answers": [{"answer": "a", "rank": 1}]}, "only one answer"),
    (GOOD_RANK, {"answers": [{"answer": "a"}, {"answer": "b", "rank": 2}]}, '"rank" of entry 1 in "answers" is null'),
    (GOOD_RANK, {"answers": [{"answer": 1, "rank": 1}, {"answer": "b", "rank": 2}]}, "text expected"),
    (GOOD_RANK, {"answers": ["a", "b"]}, "must be a list of objects"),
    (GOOD_RANK, {"answers": []}, "must be a list of objects"),
    (
        GOOD_RAW,
        {"completions": [{"response": "a", "overall_score": "high"}, {"response": "b", "overall_score": 1}]},
        "a finite number",
    ),
    (GOOD_ALPACA, {"history": "x"}, '"history" is text'),
    (GOOD_ALPACA, {"history": [["a"]]}, "round 1"),
    (GOOD_ALPACA, {"input": 5}, '"input" is a number'),
    (
        GOOD_WEIGHTED,
        {"chosen_messages": [{**HI[0], "loss_weight": 0}, {**HELLO, "loss_weight": 0.5}]},
        "different loss weight",
    ),
    (GOOD_WEIGHTED, {"chosen_messages": [{**HI[0]}, {**HELLO, "loss_weight": "x"}]}, '"loss_weight"'),
]  # fmt: skip


@pytest.mark.parametrize(("good", "change", "words"), BAD_ROWS, ids=range(len(BAD_ROWS)))
def test_a_bad_row_is_named_among_many_and_among_few(good, change, words):
    bad = {name: value for name, value in (good | change).items() if value is not ...}
    for rows, line in (([good] * 99 + [bad], 100), ([good, bad, good], 2)):
        data = table(*rows)
        with pytest.raises(DataError) as caught:
            convert(data, detect(data, wanted="pair"))
        [detail] = [detail for detail in caught.value.details if detail.startswith(f"data.jsonl:{line} ")]
        assert words in detail
        assert caught.value.exit_code == 2
        assert caught.value.remedy


# Rankings: of one row one pair, or all of them.

RATED = [("A", 5.0), ("B", 1.0), ("C", 5.0), ("D", 3.5)]
RATED_ROW = {
    "instruction": "Hi",
    "category": "greeting",
    "completions": [{"response": text, "overall_score": score} for text, score in RATED],
}
RANKED_ROW = {
    "prompt": "Hi",
    "answers": [{"answer": t, "rank": r} for t, r in (("A", 3), ("B", 1), ("C", 2))],
}


def compared(rows) -> list[tuple[str, str, float | None]]:
    return [(pair.chosen[0].content, pair.rejected[0].content, pair.margin) for pair in rows]


def test_a_reward_model_gets_every_two_answers_with_different_scores():
    """Scores 5, 1, 5, 3.5: the tie A, C is no comparison; the best against the worst comes first."""
    data = table(RATED_ROW)
    rows = convert(data, detect(data, wanted="pair"), every_pair=True)
    assert compared(rows) == [
        ("A", "B", 4.0),
        ("A", "D", 1.5),
        ("C", "D", 1.5),
        ("C", "B", 4.0),
        ("D", "B", 2.5),
    ]
    assert {(row.category, row.source) for row in rows} == {("greeting", Source("data.jsonl", 1))}
    assert compared(convert(data, detect(data, wanted="pair"))) == [("A", "B", 4.0)]


def test_ranks_give_every_pair_without_margins():
    data = table(RANKED_ROW)
    rows = convert(data, detect(data, wanted="pair"), every_pair=True)
    assert compared(rows) == [("B", "A", None), ("B", "C", None), ("C", "A", None)]


def test_answers_that_are_all_alike_stay_one_tie_to_be_counted():
    row = {"prompt": "Hi", "answers": [{"answer": "A", "rank": 2}, {"answer": "B", "rank": 2}]}
    (only,) = convert(table(row), detect(table(row), wanted="pair"), every_pair=True)
    assert only.margin == 0.0
