"""Token by token to text, without ever giving out half a character."""

from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\ufffd"
"""What a decoder writes for bytes that are no whole character (yet)."""


class Detokenizer:
    """Text of a growing row of tokens: what `add` and `end` return makes up the text of the whole row.

    Special tokens have no text. Bytes of a character that is not whole yet are held back; the row is decoded from its
    start each time, because a token's text may depend on those before it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._given = 0

    def add(self, token: int) -> str:
        """Take the next token and return the text that is certain now."""
        self._ids.append(token)
        return self._further(self._text().rstrip(_INCOMPLETE))

    def end(self) -> str:
        """The rest, with a replacement character for what never became whole."""
        return self._further(self._text())

    def _text(self) -> str:
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def _further(self, text: str) -> str:
        new = text[self._given :]
        self._given = max(self._given, len(text))
        return new
