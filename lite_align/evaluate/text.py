"""How varied and how repetitive texts are: pure functions of whitespace words, as plain as the signals they give."""

from collections.abc import Sequence

Ngram = tuple[str, ...]


def ngrams(text: str, n: int) -> list[Ngram]:
    """All runs of n whitespace words of a text, in order; none if it has fewer than n words.

    Example: 2-grams of "a b c" are (a, b) and (b, c).
    """
    if n < 1:
        raise ValueError(f"an n-gram has at least one word, not {n}")
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different n-grams of all texts together over all their n-grams (distinct-n, Li et al. 2016, arXiv 1510.03055).

    1 says that nothing occurs twice. No n-gram goes over the end of a text. Texts too short for any n-gram have no
    variety: 0. The more text, the lower the share: compare equally many texts of like length.
    """
    found = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(found)) / len(found) if found else 0.0


def repeated_ngrams(text: str, n: int) -> float:
    """Share of the n-grams of a text that occurred earlier in the same text; 0 of a text with none."""
    found = ngrams(text, n)
    return 1 - len(set(found)) / len(found) if found else 0.0
