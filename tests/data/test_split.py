from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lite_align.data import split
from lite_align.data.split import prompt_key, text_key
from lite_align.data.types import Chat, Conversation, Message, Pair, Source
from lite_align.errors import DataError, RecipeError


def pair(line: int, prompt: str, category: str | None = None, system: str = "") -> Pair:
    turns = (Message("system", system), Message("user", prompt)) if system else (Message("user", prompt),)
    answers = Message("assistant", "c"), Message("assistant", "r")
    return Pair(Source("f", line), category, prompt=turns, chosen=answers[:1], rejected=answers[1:])


def prompt(row: Pair | Chat) -> Conversation:
    return row.messages if isinstance(row, Chat) and row.raw else row.prompt


def hold_out(rows: list, share: float, seed: int) -> tuple[list, list]:
    return split.hold_out(rows, prompt, share, seed)


def shared_prompts(train: list, held: list) -> list[tuple[Source, Source]]:
    return split.shared_prompts(train, held, prompt)


SPELLINGS = [
    "caf\u00e9",
    "cafe\u0301",
    " Caf\u00e9 ",
    "CAF\u00c9",
    "tea",
    "Tea\n",
    "te a",
    "x",
    "y",
    "Z",
    "z",
]
PAIRS = st.lists(
    st.tuples(
        st.sampled_from(SPELLINGS), st.sampled_from(["", "Be kind."]), st.sampled_from([None, "a", "b"])
    )
)


@given(PAIRS, st.floats(0.01, 0.99), st.integers(0, 5))
def test_no_prompt_straddles_and_nothing_is_lost(rows, share, seed):
    pairs = [pair(line, prompt, category, system) for line, (prompt, system, category) in enumerate(rows)]
    prompts = {prompt_key(item.prompt) for item in pairs}
    if len(prompts) < 2:
        with pytest.raises(DataError, match="two prompts"):
            hold_out(pairs, share, seed)
        return
    train, held = hold_out(pairs, share, seed)
    assert train
    assert held
    assert not {prompt_key(item.prompt) for item in train} & {prompt_key(item.prompt) for item in held}
    assert sorted([*train, *held], key=lambda item: item.source.line) == pairs
    assert train == sorted(train, key=lambda item: item.source.line)
    wanted = min(max(1, round(share * len(prompts))), len(prompts) - 1)
    assert len({prompt_key(item.prompt) for item in held}) == wanted
    assert shared_prompts(train, held) == []


def test_spellings_of_one_prompt_are_one_prompt():
    assert len({text_key(spelling) for spelling in SPELLINGS[:4]}) == 1
    assert prompt_key(pair(1, "Hi", system="A").prompt) == prompt_key(pair(1, "hi ", system="B").prompt)


def test_the_choice_depends_on_seed_and_prompts_not_on_order():
    pairs = [pair(line, f"prompt {line}") for line in range(100)]
    shuffled = pairs[:]
    Random(0).shuffle(shuffled)
    chosen = {item.source.line for item in hold_out(pairs, 0.1, 1)[1]}
    assert chosen == {item.source.line for item in hold_out(shuffled, 0.1, 1)[1]}
    assert len(chosen) == 10
    assert chosen != {item.source.line for item in hold_out(pairs, 0.1, 2)[1]}


def test_categories_keep_their_proportions():
    pairs = [pair(line, f"p{line}", "big" if line < 160 else "small") for line in range(200)]
    counts = Counter(item.category for item in hold_out(pairs, 0.1, 3)[1])
    assert counts == {"big": 16, "small": 4}


def test_shares_at_the_edges():
    pairs = [pair(1, "a"), pair(2, "b")]
    assert hold_out(pairs, 0, 1) == (pairs, [])
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(RecipeError, match="held_out"):
            hold_out(pairs, share, 1)
    with pytest.raises(DataError, match="two prompts"):
        hold_out([pair(1, "a"), pair(2, "A")], 0.5, 1)


def test_leaks_of_a_separate_file_are_named():
    train, held = [pair(1, "Hi there"), pair(2, "x")], [pair(8, "y"), pair(9, " hi  THERE")]
    assert shared_prompts(train, held) == [(Source("f", 9), Source("f", 1))]


def chat(line: int, *contents: str, raw: bool = False) -> Chat:
    roles = ("assistant",) if raw else ("user", "assistant")
    turns = tuple(Message(roles[n % len(roles)], content) for n, content in enumerate(contents))
    return Chat(Source("f", line), messages=turns, raw=raw)


def test_conversations_with_one_first_question_stay_together_and_texts_are_told_apart_by_all_they_say():
    rows = [chat(n, f"Question {n % 5}?", f"a{n}", "and then?", f"b{n}") for n in range(20)]
    train, held_out = hold_out(rows, 0.4, 0)
    assert {row.messages[0].content for row in train} & {row.messages[0].content for row in held_out} == set()
    assert (len(train), len(held_out)) == (12, 8)
    assert shared_prompts(train, held_out) == []
    assert shared_prompts(rows[:1], rows[5:6]) == [(Source("f", 5), Source("f", 0))]
    texts = [chat(n, f"Text {n % 9}", raw=True) for n in range(10)]
    train, held_out = hold_out(texts, 0.5, 0)
    assert (len(train) + len(held_out), shared_prompts(train, held_out)) == (10, [])
    assert {len(train), len(held_out)} <= {4, 5, 6}
