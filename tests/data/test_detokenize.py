"""Detokenising: the pieces are the whole text, and no piece has half a character."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lite_align.data.detokenize import Detokenizer
from tests.data import families

CHATML = families.tokenizer("chatml")
SENTENCE = families.metaspace(None, [], [], legacy=True)


def pieces(tokenizer, ids) -> list[str]:
    stream = Detokenizer(tokenizer)
    return [*(stream.add(token) for token in ids), stream.end()]


def test_a_character_of_four_tokens_comes_whole():
    ids = CHATML.encode("a🙂é", add_special_tokens=False)
    assert [piece for piece in pieces(CHATML, ids) if piece] == ["a", "🙂", "é"]
    assert len(ids) == 7


def test_bytes_that_never_become_a_character_are_told_at_the_end():
    ids = CHATML.encode("🙂", add_special_tokens=False)[:2]
    found = pieces(CHATML, ids)
    assert found[:2] == ["", ""]
    assert found[2].strip("\ufffd") == ""
    assert found[2]


def test_special_tokens_have_no_text():
    ids = CHATML.encode("<|im_start|>hello<|im_end|>", add_special_tokens=False)
    assert "".join(pieces(CHATML, ids)) == "hello"


@pytest.mark.parametrize("tokenizer", [CHATML, SENTENCE], ids=["bytes", "sentencepiece"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_pieces_are_the_text_of_the_row(tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=20))
    found = pieces(tokenizer, ids)
    whole = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert "".join(found) == whole
    for number, piece in enumerate(found[:-1]):
        later = "".join(found[number + 1 :])
        # A replacement character in the middle is one for good; none is given out that later bytes could mend.
        assert not (piece.endswith("\ufffd") and not later)
