"""Swapped answers and probes, as texts and as the tokens that are scored."""

from dataclasses import replace

import pytest

from lite_align.data.render import Renderer
from lite_align.data.types import Message, Pair, Source
from lite_align.evaluate.scores import PROBES
from lite_align.stages.probes import FLATTERY, TEXTS, probes, repeated, swaps, truncated
from tests.stages import small_reward

ANSWERS = ("the lazy dog. It answers.", "hello world", "a quick brown fox asks", "yes")
CATEGORIES = ("fact", "fact", "howto", "fact")


def pair(number: int) -> Pair:
    return Pair(
        Source("rows.jsonl", number),
        CATEGORIES[number],
        prompt=(Message("user", f"question {number}?"),),
        chosen=(Message("assistant", ANSWERS[number]),),
        rejected=(Message("assistant", "no"),),
    )


@pytest.fixture(params=[None, "the answer?"])
def suffix(request: pytest.FixtureRequest) -> str | None:
    return request.param


@pytest.fixture
def scored(tokenizer, suffix):
    return small_reward.scored([pair(n) for n in range(4)], tokenizer, suffix)


def told(tokenizer, ids: tuple[int, ...], suffix: str | None) -> tuple[str, str]:
    """Prompt and answer that a sequence holds; all around them must be as the template writes it."""
    tail = "" if suffix is None else f"\n<|im_start|>user\n{suffix}<|im_end|>\n<|im_start|>assistant\n"
    text = tokenizer.decode(list(ids))
    assert text.startswith("<s><|im_start|>user\n")
    assert text.endswith(f"<|im_end|>{tail}")
    prompt, answer = text.removeprefix("<s><|im_start|>user\n").split("<|im_end|>\n<|im_start|>assistant\n")[
        :2
    ]
    return prompt, answer.split("<|im_end|>")[0]


def test_texts_by_hand():
    assert repeated(" One. Two! Three?") == "One. One. One. One."
    assert repeated("no end") == "no end no end no end no end"
    assert repeated("Version 2.0 is out! Get it.") == " ".join(["Version 2.0 is out!"] * 4)
    assert truncated("a b c d e") == "a b"
    assert truncated("word") == ""
    assert PROBES.keys() == {"empty", *TEXTS}


def test_probes_stand_in_the_place_of_the_chosen_answer(tokenizer, suffix, scored):
    found = probes(Renderer(tokenizer), scored, suffix, max_length=512)
    texts = [{name: told(tokenizer, ids, suffix) for name, ids in one.items()} for one in found]
    assert texts[0] == {
        "empty": ("question 0?", ""),
        "repeated": ("question 0?", "the lazy dog. the lazy dog. the lazy dog. the lazy dog."),
        "truncated": ("question 0?", "the lazy"),
        "flattering": ("question 0?", FLATTERY),
    }
    assert texts[3].keys() == {"empty", "repeated", "flattering"}, "half of one word is nothing"
    assert all(one.keys() <= PROBES.keys() for one in found)


def test_swaps_are_the_next_answers_of_the_same_and_of_another_category(tokenizer, suffix, scored):
    found = swaps(scored, max_length=512)
    texts = [{name: told(tokenizer, ids, suffix) for name, ids in one.items()} for one in found]
    assert texts == [
        {"same": ("question 0?", ANSWERS[1]), "other": ("question 0?", ANSWERS[2])},
        {"same": ("question 1?", ANSWERS[3]), "other": ("question 1?", ANSWERS[2])},
        {"other": ("question 2?", ANSWERS[3])},
        {"same": ("question 3?", ANSWERS[0]), "other": ("question 3?", ANSWERS[2])},
    ]


def test_an_answer_like_the_own_one_is_no_swap(tokenizer):
    both = [pair(0), replace(pair(1), chosen=pair(0).chosen), pair(3)]
    found = swaps(small_reward.scored(both, tokenizer), max_length=512)
    assert [told(tokenizer, one["same"], None)[1] for one in found] == [ANSWERS[3], ANSWERS[3], ANSWERS[0]]
    assert swaps(small_reward.scored(both[:1], tokenizer), max_length=512) == [{}]


def test_what_is_too_long_is_left_out(tokenizer, suffix, scored):
    longest = len(scored[0].chosen)
    assert "flattering" not in probes(Renderer(tokenizer), scored, suffix, max_length=longest)[0]
    assert all(one == {} for one in swaps(scored, max_length=3))
