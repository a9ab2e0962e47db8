import pytest

from lite_align.data.formats import FORMATS, convert, detect, try_convert
from lite_align.data.sources import RawTable
from lite_align.data.types import Message, Source
from lite_align.errors import DataError

TEXT = {"prompt": "p", "chosen": "c", "rejected": "r"}
THUMB = {"prompt": "p", "completion": "c", "label": True}
CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}


def table(*rows) -> RawTable:
    return RawTable("data.jsonl", [(Source("data.jsonl", n), row) for n, row in enumerate(rows, 1)], [], "0")


def refusal(*rows, **options) -> DataError:
    with pytest.raises(DataError) as caught:
        detect(table(*rows), **options)
    return caught.value


def test_winner_share_and_runner_up():
    detection = detect(table(*[{**CHAT, "label": True}] * 3))
    assert (detection.name, detection.kind, detection.share) == ("kto.chat-only", "rated", 1.0)
    assert detection.runner_up == ("sft.messages", 1.0)
    assert detection.votes == {"kto.chat-only": 3, "sft.messages": 3}


def test_all_rows_vote_not_only_the_first():
    detection = detect(table({"prompt": [1], "chosen": "c", "rejected": "r"}, *[TEXT] * 9))
    assert detection.name == "pair.text"
    assert detection.share == 0.9


def test_rows_of_two_formats_are_refused_below_98_percent():
    error = refusal(*[TEXT] * 97, *[THUMB] * 3)
    assert "different formats" in error.what
    assert error.details[:2] == (
        "pair.text: 97 of 100 rows (97%), the first at data.jsonl:1",
        "kto.text: 3 of 100 rows (3%), the first at data.jsonl:98",
    )
    assert [detail.split(" ")[0] for detail in error.details[2:]] == [
        f"data.jsonl:{n}" for n in (98, 99, 100)
    ]
    assert "--format pair.text" in error.remedy


def test_a_few_rows_of_another_format_are_named_one_by_one():
    data = table(*[TEXT] * 98, THUMB, THUMB)
    detection = detect(data)
    with pytest.raises(DataError) as caught:
        convert(data, detection)
    assert caught.value.what.startswith("2 of 100 rows in data.jsonl do not fit pair.text")
    assert [detail[:14] for detail in caught.value.details] == ["data.jsonl:99 ", "data.jsonl:100"]
    rows, problems = try_convert(data, detection)
    assert (len(rows), [problem.source.line for problem in problems]) == (98, [99, 100])


def test_thumbs_are_not_taken_for_conversations_to_imitate():
    error = refusal(*[{**CHAT, "label": False}] * 90, *[CHAT] * 10)
    assert "kto.chat-only: 90 of 100" in error.details[0]


def test_no_format_names_the_nearest_and_each_row():
    error = refusal({"prompt": "p", "chosen": "c", "reject": "r"}, {"prompt": "p"}, wanted="pair")
    assert len(error.details) == 2
    assert error.details[0] == 'data.jsonl:1 has no "rejected"; columns: prompt, chosen, reject'
    error = refusal({"a": 1}, {"b": 2})
    assert "no known format" in error.what
    assert [detail.split(" ")[0] for detail in error.details] == ["data.jsonl:1", "data.jsonl:2"]
    assert "--map" in error.remedy


@pytest.mark.parametrize(
    ("row", "wanted", "verb"),
    [
        (CHAT, "pair", "for lite-align sft, which this version does not have yet"),
        ({"prompt": "p"}, "pair", "for lite-align sample, which this version does not have yet"),
        (TEXT, "chat", "lite-align dpo data.jsonl"),
        (TEXT, "prompt", "lite-align dpo data.jsonl"),
        (CHAT, "rated", "for lite-align sft, which this version does not have yet"),
        (THUMB, "chat", "lite-align dpo data.jsonl"),
    ],
)
def test_another_kind_names_the_right_verb(row, wanted, verb):
    assert verb in refusal(row, row, wanted=wanted).remedy


def test_a_format_can_be_named():
    detection = detect(table(TEXT), format="prompts")
    assert (detection.name, detection.kind) == ("prompts", "prompt")
    assert convert(table(TEXT), detection)[0].messages == (Message("user", "p"),)
    error = refusal(TEXT, format="pair.txt")
    assert "did you mean pair.text?" in error.what
    assert "media is not a known format" in refusal(TEXT, format="media").what


def test_columns_can_be_named():
    mapping = {"prompt": "q", "chosen": "good one", "rejected": "bad"}
    data = table({"q": "p", "good one": "c", "bad": "r"})
    assert convert(data, detect(data, mapping=mapping), mapping) == convert(table(TEXT), detect(table(TEXT)))


def test_columns_can_be_exchanged():
    mapping = {"chosen": "rejected", "rejected": "chosen"}
    [pair] = convert(table(TEXT), detect(table(TEXT), mapping=mapping), mapping)
    assert (pair.chosen[0].content, pair.rejected[0].content) == ("r", "c")


def test_wrong_names_in_a_mapping_are_all_told():
    error = refusal(TEXT, mapping={"chosen": "choosen", "rejectd": "rejected"})
    assert "did you mean chosen?" in error.details[0]
    assert "did you mean rejected?" in error.details[1]


BOTH = [
    {"prompt": "a", "completion": "no", "label": False},
    {"prompt": "a", "completion": "yes", "label": True},
    THUMB,
]


def test_thumbs_become_pairs_only_where_that_was_asked_for():
    data = table(*BOTH)
    detection = detect(data, wanted="pair", pair_thumbs=True)
    assert (detection.kind, detection.name) == ("pair", "kto.text")
    assert detection.notes[-1] == (
        "1 pairs built from 3 thumbs (2 up, 1 down) of 2 prompts; 1 thumbs are unused"
    )
    [pair] = convert(data, detection)
    assert (pair.chosen[0].content, pair.rejected[0].content) == ("yes", "no")
    error = refusal(*BOTH, wanted="pair")
    assert error.what == "data.jsonl holds 3 thumbs (2 up, 1 down), not pairs"
    assert "--set loss.name=kto trains on them as they are" in error.remedy
    assert "1 prompt has both: --set data.pair_thumbs=true makes 1 pair." in error.remedy


def test_thumbs_without_a_common_prompt_give_no_pairs():
    for asked in (False, True):
        rows = (THUMB, {"prompt": "q", "completion": "c", "label": False})
        error = refusal(*rows, wanted="pair", pair_thumbs=asked)
        assert "none of its 2 prompts has both" in error.what
        assert "pair_thumbs" not in error.remedy


def test_pairs_are_taken_for_two_thumbs_each():
    data = table(TEXT, TEXT)
    detection = detect(data, wanted="rated")
    assert (detection.kind, detection.notes[-1]) == (
        "rated",
        "each pair is taken as a thumb up and a thumb down",
    )
    up, down, *_ = rows = convert(data, detection)
    assert len(rows) == 4
    assert (up.answer[0].content, up.label) == ("c", True)
    assert (down.answer[0].content, down.label) == ("r", False)
    assert up.prompt == down.prompt
    assert up.source == down.source


def test_pairing_thumbs_of_a_file_of_pairs_is_told_to_do_nothing():
    assert "nothing to do" in detect(table(TEXT), wanted="pair", pair_thumbs=True).notes[-1]


def test_no_two_formats_are_equally_specific_for_an_oracle_row():
    ranks = {
        (entry.rank, frozenset(entry.columns.items()), entry.when, entry.without)
        for entry in FORMATS.values()
    }
    assert len(ranks) == len(FORMATS)
