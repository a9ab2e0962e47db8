"""Thumbs as pairs and pairs as thumbs, and what is offered for thumbs where pairs were asked for."""

import pytest

from lite_align.data.formats.thumbs import Count, offer, pair_up, take_apart
from lite_align.data.types import Message, Rated, Source


def thumb(line: int, prompt: str, answer: str, label: bool) -> Rated:
    return Rated(
        Source("f", line),
        "chat",
        prompt=(Message("user", prompt),),
        answer=(Message("assistant", answer),),
        label=label,
    )


RATED = [
    thumb(1, "a", "no", False),
    thumb(2, "a", "yes", True),
    thumb(3, "b", "yes", True),
    thumb(4, "a", "fine", True),
]


def test_thumbs_become_pairs_where_a_prompt_has_both_and_back():
    [pair] = pair_up(RATED)
    assert (pair.source.line, pair.chosen[0].content, pair.rejected[0].content) == (2, "yes", "no")
    assert take_apart([pair]) == [RATED[1], thumb(2, "a", "no", False)]


def test_the_count_is_of_thumbs_prompts_and_pairs():
    count = Count.of([*RATED, thumb(5, "a", "never", False)])
    assert count == Count(up=3, down=2, prompts=2, with_both=1, pairs=2)
    assert str(count) == "5 thumbs (3 up, 2 down)"
    assert count.used == "2 pairs built from 5 thumbs (3 up, 2 down) of 2 prompts; 1 thumbs are unused"


@pytest.mark.parametrize(
    ("count", "what", "remedy"),
    [
        (
            Count(702, 502, 990, 214, 214),
            "f holds 1,204 thumbs (702 up, 502 down), not pairs",
            "lite-align dpo f --set loss.name=kto trains on them as they are; 214 prompts have both: "
            "--set data.pair_thumbs=true makes 214 pairs.",
        ),
        (
            Count(2, 1, 3, 0, 0),
            "f holds 3 thumbs (2 up, 1 down), not pairs; none of its 3 prompts has both",
            "lite-align dpo f --set loss.name=kto trains on them as they are. For pairs, give each prompt a good and "
            "a bad answer.",
        ),
    ],
)
def test_the_offer_counts_both_ways(count, what, remedy):
    error = offer("f", count)
    assert (error.what, error.remedy) == (what, remedy)
    assert error.exit_code == 2
