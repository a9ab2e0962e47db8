"""Variety and repetition of texts, counted by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lite_align.evaluate.text import distinct_n, ngrams, repeated_ngrams


def test_ngrams_are_runs_of_words():
    assert ngrams(" a  b\nc ", 2) == [("a", "b"), ("b", "c")]
    assert ngrams("a b", 3) == []
    assert ngrams("", 1) == []
    with pytest.raises(ValueError, match="at least one word"):
        ngrams("a", 0)


@pytest.mark.parametrize(
    ("texts", "n", "expected"),
    [
        (["a b c", "a b d"], 1, 4 / 6),  # a b c d of a b c a b d
        (["a b c", "a b d"], 2, 3 / 4),  # ab bc bd of ab bc ab bd: none spans two texts
        (["no no no no"], 2, 1 / 3),
        (["a b c d"], 2, 1.0),
        (["a", "b"], 2, 0.0),
        ([], 2, 0.0),
    ],
)
def test_distinct_n(texts, n, expected):
    assert distinct_n(texts, n) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "n", "expected"),
    [
        ("a b c a b c", 3, 1 / 4),  # abc bca cab abc: the last occurred before
        ("no no no no no", 3, 2 / 3),  # three times the same
        ("a b c d e", 3, 0.0),
        ("a b", 3, 0.0),
        ("", 3, 0.0),
    ],
)
def test_repeated_ngrams(text, n, expected):
    assert repeated_ngrams(text, n) == pytest.approx(expected)


WORDS = st.lists(st.sampled_from(["a", "b", "c"]), max_size=12)


@given(WORDS, st.integers(1, 4))
def test_repeats_are_those_that_stand_earlier(words, n):
    grams = [words[i : i + n] for i in range(len(words) - n + 1)]
    again = sum(gram in grams[:i] for i, gram in enumerate(grams))
    text = " ".join(words)
    assert repeated_ngrams(text, n) == pytest.approx(again / len(grams) if grams else 0)
    assert distinct_n([text], n) == pytest.approx(1 - again / len(grams) if grams else 0)


@given(st.lists(WORDS, max_size=5), st.integers(1, 3))
def test_the_order_of_texts_does_not_matter(texts, n):
    joined = [" ".join(words) for words in texts]
    assert distinct_n(joined, n) == distinct_n(joined[::-1], n)
