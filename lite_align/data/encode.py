"""Text to token ids with the place of every control token, none of which data can forge (LA206).

Control tokens are all special tokens, and those added tokens that are not marked special but belong to the
template (`<tool_call>`). In text of users, tools and system none may appear. An assistant may write those that
are neither special nor around any turn (thinking, tool calls): it is the model itself that writes them.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerFast

from lite_align.data.template import Refused

Fragment = tuple[str, str]  # the text just before, which is not encoded anew, and the text
_PIPED = re.compile(r"^<[|｜].*[|｜]>$")


class DataSpan(NamedTuple):
    """Characters `start:end` of a rendered text come from data, from a turn with this role."""

    start: int
    end: int
    role: str


class Control(NamedTuple):
    """A control token: its number in a piece, its id, and its characters there."""

    number: int
    id: int
    start: int
    end: int


class Piece(NamedTuple):
    """The tokens of a text that stands after `shift` characters of context, of which `first` tokens are left off."""

    ids: list[int]
    controls: list[Control]
    encoding: Encoding
    first: int
    shift: int

    def tokens_before(self, character: int) -> int:
        """How many tokens begin before a character of the text."""
        starts = [start - self.shift for start, _ in self.encoding.offsets[self.first :]]
        return sum(start < character for start in starts)


class Encoder:
    """A copy of the tokenizer's backend that cuts texts at given places and finds forged control tokens.

    Args:
        tokenizer: it is not changed.
        template: source of the chat template; added tokens that stand in it are control tokens.
        written: what the template writes around turns; added tokens that stand there are barred to assistants.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, template: str, written: str) -> None:
        # The copy has no post-processor: that would trim white space from the offsets.
        self._backend: Tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.post_processor = None
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = False
        self.control, self.barred = _control_ids(tokenizer, template, written)

    def controls(self, text: str) -> list[Control]:
        """The control tokens of a text that is trusted (the template's own)."""
        return self._whole(text).controls

    def batch(self, fragments: Iterable[Fragment]) -> dict[Fragment, Piece]:
        """Encode each different fragment once, all in one call of the tokenizer."""
        unique = list(dict.fromkeys(fragments))
        encodings = self._backend.encode_batch([c + t for c, t in unique], add_special_tokens=False)
        pieces: dict[Fragment, Piece] = {}
        for (context, text), encoding in zip(unique, encodings, strict=True):
            piece = self._after(encoding, len(context))
            pieces[context, text] = piece or self._continued("\n", text)
        return pieces

    def unforged(
        self, fragment: Fragment, begin: int, slots: Sequence[DataSpan], piece: Piece
    ) -> list[tuple[int, Piece]]:
        """The fragment as pieces without a control token that data wrote, each with its first character.

        The text is cut inside every forged token and encoded again, until none is left: whatever made the token
        (an added token, a vocabulary piece, a normaliser), two halves encoded apart cannot become it.

        Args:
            fragment: context and text.
            begin: the first character of the text in the rendered conversation.
            slots: the characters of the conversation that come from data.
            piece: the fragment's tokens as `batch` gave them.

        Raises:
            Refused: a single character is a control token.
        """
        context, text = fragment
        cuts = {0}
        stretches = [(begin, piece)]
        while forged := self._forged(stretches, slots):
            new = cuts | {cut - begin for cut in forged}
            if new == cuts or max(new) >= len(text):
                raise Refused("control_tokens", "LA206: a character of this row is a control token by itself")
            cuts = new
            bounds = [*sorted(cuts), len(text)]
            stretches = [
                (begin + a, self._continued("\n" if a else context, text[a:b]))
                for a, b in zip(bounds, bounds[1:])
            ]
        return stretches

    def _forged(self, stretches: list[tuple[int, Piece]], slots: Sequence[DataSpan]) -> set[int]:
        """The characters before which the text must be cut."""
        cuts: set[int] = set()
        for offset, piece in stretches:
            for control in piece.controls:
                start, end = offset + control.start, offset + control.end
                slot = slot_at(slots, start, end)
                if slot is None or (slot.role == "assistant" and control.id not in self.barred):
                    continue
                inner = [edge for edge in (slot.start, slot.end) if start < edge < end]
                cuts.add(inner[0] if inner else start + 1)
        return cuts

    def _continued(self, context: str, text: str) -> Piece:
        """Encode `text` as it stands after `context`.

        SentencePiece puts a blank before what it takes for the beginning. After a line break it does not; the
        break is taken off again. Where even that merges with the text, the tokenizer has no such habit.
        """
        for before in dict.fromkeys((context, "\n")) if context else ():
            encoding = self._backend.encode(before + text, add_special_tokens=False)
            piece = self._after(encoding, len(before))
            if piece is not None:
                return piece
        return self._whole(text)

    def _whole(self, text: str) -> Piece:
        piece = self._after(self._backend.encode(text, add_special_tokens=False), 0)
        assert piece is not None
        return piece

    def _after(self, encoding: Encoding, length: int) -> Piece | None:
        """The tokens after the first `length` characters, or None if a token lies across that place."""
        ids = encoding.ids
        first = 0
        if length:
            while first < len(ids) and _characters(encoding, first)[1] <= length:
                first += 1
            if first < len(ids) and _characters(encoding, first)[0] < length:
                return None
        controls: list[Control] = []
        for number, token in enumerate(ids):
            if token in self.control and number >= first:
                start, end = _characters(encoding, number)
                controls.append(Control(number - first, token, start - length, end - length))
        return Piece(ids[first:], controls, encoding, first, length)


def _characters(encoding: Encoding, number: int) -> tuple[int, int]:
    characters = encoding.token_to_chars(number)
    assert characters is not None  # only tokens of a post-processor have none
    return characters


def slot_at(slots: Sequence[DataSpan], start: int, end: int) -> DataSpan | None:
    """The first slot that shares a character with `start:end`."""
    return next((slot for slot in slots if slot.start < end and start < slot.end), None)


def _control_ids(
    tokenizer: PreTrainedTokenizerFast, template: str, written: str
) -> tuple[frozenset[int], frozenset[int]]:
    """Ids of all control tokens, and of those that assistants may not write either.

    An added token that is not special is ordinary vocabulary (Gemma has blank lines and HTML tags there) unless
    the template uses it or it is written `<|…|>`. The unknown token is what unknown characters become, so it is
    left out where it serves as nothing else.
    """
    control, barred = set(tokenizer.all_special_ids), set(tokenizer.all_special_ids)
    for number, token in tokenizer.added_tokens_decoder.items():
        text = token.content.strip()
        around = bool(text) and text in written and text not in ("<think>", "</think>")
        if token.special or around:
            barred.add(number)
        if token.special or around or (text and (text in template or _PIPED.match(text))):
            control.add(number)
    unknown = tokenizer.unk_token_id
    if unknown not in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        control.discard(unknown)
        barred.discard(unknown)
    return frozenset(control), frozenset(barred)
