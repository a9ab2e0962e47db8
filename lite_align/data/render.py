"""Conversations to token ids with an exact mask of what is trained, through any chat template.

What is trained is what the model has to write at inference: from the end of the generation prompt to the
turn's stop token, that is the assistant content and its end token, in every assistant turn of the answer.

Which ids: those that the tokenizer gives for the whole rendered text. It is cut at two kinds of places only:
where an answer begins (there the prompt ends at inference too, and its ids must be a prefix, LA204), and inside
text of the data that would become a control token (LA206). The characters of each token decide the mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lite_align.data.encode import DataSpan, Encoder, Fragment, Piece, slot_at
from lite_align.data.layout import Layout, Layouts
from lite_align.data.template import ChatTemplate, Refused
from lite_align.data.types import Conversation, Message, Pair, Rendered
from lite_align.errors import DataError, ModelError

CHUNK = 512  # rows that are encoded together
_ANSWER = Message("assistant", "An answer")


@dataclass(frozen=True, slots=True)
class AnswerTokens:
    """Answers as token ids, each with the one prompt, which lost its oldest `turns_dropped` turns."""

    answers: tuple[Rendered, ...]
    turns_dropped: int


@dataclass(frozen=True, slots=True)
class PairTokens:
    """A pair as token ids; both answers follow one prompt, which lost its oldest `turns_dropped` turns."""

    chosen: Rendered
    rejected: Rendered
    turns_dropped: int


@dataclass(frozen=True, slots=True)
class Unusable:
    """A row that cannot be trained, and why.

    `reason` is `too_long`, `identical`, `template`, `roles`, `empty` or `control_tokens`; `detail` is a
    sentence for people.
    """

    reason: str
    detail: str


class Renderer:
    """Renders conversations and pairs for one tokenizer.

    Args:
        tokenizer: a fast tokenizer with a chat template; it is not changed.
        template: a chat template to use in place of the tokenizer's.
        trusted: the template is our own, so no child process tries it first.
        vocabulary: rows of the model's embedding; no id that the template writes may lie beyond it (LA210).

    Raises:
        ModelError: there is no template; it drops or doubles contents (LA207), writes two BOS (LA201) or no
            stop token (LA202); its generation prompt does not lead to its answers (LA204); it is hostile (S5).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        template: str | None = None,
        trusted: bool = False,
        vocabulary: int | None = None,
    ) -> None:
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise ModelError(
                f"{type(tokenizer).__name__} does not say which characters a token covers.",
                remedy="Use a model with a tokenizer.json; masks cannot be exact without it.",
            )
        self.tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer, template, trusted=trusted)
        self._encoder = Encoder(tokenizer, self._template.source, self._template.written)
        self.template_sha256 = self._template.sha256
        self._layouts = Layouts(self._template, self._encoder)
        self.turn_end = self._layouts.turn_end
        eos = tokenizer.eos_token_id
        self.stop_ids = frozenset({self.turn_end} | ({eos} if isinstance(eos, int) else set()))
        self._check_a_plain_conversation(vocabulary)

    @property
    def notes(self) -> list[str]:
        """What a reader of the plan should know about this template, one sentence each."""
        injected = [
            f"the template writes {text!r} before an answer: it belongs to the prompt and is not trained"
            for text in sorted(self._layouts.injected)
        ]
        return [*self._template.notes, *injected]

    def describe(self) -> list[str]:
        """The template in a few lines: its hash, the stop tokens by name, the notes."""
        stops = " ".join(str(self.tokenizer.convert_ids_to_tokens(stop)) for stop in sorted(self.stop_ids))
        return [f"template {self.template_sha256[:12]} · stops at {stops}", *self.notes]

    def conversation(self, prompt: Conversation, answer: Conversation) -> Rendered:
        """Token ids of prompt and answer, trained in every assistant turn of `answer`.

        Raises:
            DataError: the template cannot write this conversation exactly.
        """
        (rendered,) = self.conversations([(prompt, answer)])
        if isinstance(rendered, Unusable):
            raise DataError(
                rendered.detail, remedy="Leave the row out or change it to what the template allows."
            )
        return rendered

    def conversations(
        self, examples: Sequence[tuple[Conversation, Conversation]]
    ) -> list[Rendered | Unusable]:
        """`conversation` for many prompts and answers, all in one call of the tokenizer."""

        def layout(prompt: Conversation, answer: Conversation) -> Layout | Unusable:
            try:
                return self._layouts.of(prompt, answer)
            except Refused as refusal:
                return Unusable(refusal.reason, refusal.detail)

        return self._rendered([layout(prompt, answer) for prompt, answer in examples])

    def texts(self, texts: Sequence[str]) -> list[Rendered | Unusable]:
        """Token ids of texts without the template: as the tokenizer writes them, with its end token at the end.

        Trained is everything but the first token, which no token stands before.
        """
        whole = [
            Layout((("", text),), (0,), (), (DataSpan(0, len(text), "assistant"),), ()) for text in texts
        ]
        begin = self._text_begin()
        end = self.tokenizer.eos_token_id
        end = end if isinstance(end, int) else self.turn_end

        def written(rendered: Rendered | Unusable) -> Rendered | Unusable:
            if isinstance(rendered, Unusable):
                return rendered
            ids = (*begin, *rendered.ids, end)
            return Rendered(ids, (False, *[True] * (len(ids) - 1)))

        return [written(rendered) for rendered in self._rendered(whole)]

    def _text_begin(self) -> tuple[int, ...]:
        """What the tokenizer writes before a text of its own accord: the BOS token, where it has that habit."""
        written, plain = (self.tokenizer("a", add_special_tokens=add)["input_ids"] for add in (True, False))
        assert isinstance(written, list)
        assert isinstance(plain, list)
        return tuple(written[: written.index(plain[0])])

    def prompt_ids(self, prompt: Conversation) -> tuple[int, ...]:
        """Token ids of a prompt with the generation prompt: always a prefix of `conversation`.

        Raises:
            DataError: the template cannot write this conversation exactly.
        """
        rendered = self.conversation(prompt, (_ANSWER,))
        return rendered.ids[: rendered.trained.index(True)]

    def pair(self, pair: Pair, max_length: int, *, drop_turns: bool = True) -> PairTokens | Unusable:
        """`pairs` for one row."""
        return self.pairs([pair], max_length, drop_turns=drop_turns)[0]

    def pairs(
        self, pairs: Sequence[Pair], max_length: int, *, drop_turns: bool = True
    ) -> list[PairTokens | Unusable]:
        """`answers` for the chosen and the rejected answer of all pairs; the same tokens for both are no pair."""
        examples = [(pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs]
        return [_as_pair(tokens) for tokens in self.answers(examples, max_length, drop_turns=drop_turns)]

    def answers(
        self,
        examples: Sequence[tuple[Conversation, Sequence[Conversation]]],
        max_length: int,
        *,
        drop_turns: bool = True,
    ) -> list[AnswerTokens | Unusable]:
        """Token ids of prompts with their answers, in order; what cannot be trained is returned with its reason.

        Args:
            examples: a prompt with one or more answers each; they are encoded some hundred at a time.
            max_length: tokens of prompt and answer together. Where the longest answer has more, the oldest rounds of
                its prompt (a user turn and what answers it) go, whole; the system turn, the last round and the
                answers stay.
            drop_turns: False leaves such an example out instead.
        """
        results: list[AnswerTokens | Unusable] = []
        for start in range(0, len(examples), CHUNK):
            results += self._chunk(examples[start : start + CHUNK], max_length, drop_turns)
        return results

    def spans(self, rendered: Rendered) -> list[tuple[str, str]]:
        """The text of the tokens with a style for each stretch: `context`, `trained` or `special`.

        A character whose bytes are spread over tokens is shown whole, with the stretch in which it ends.
        """
        styles: list[str] = []
        for token, trained in zip(rendered.ids, rendered.trained, strict=True):
            plain = "special" if token in self._encoder.control else "context"
            styles.append("trained" if trained else plain)
        spans: list[tuple[str, str]] = []
        shown = 0
        for index, style in enumerate(styles):
            last = index + 1 == len(styles)
            if not last and styles[index + 1] == style and style != "special":
                continue
            text = self.tokenizer.decode(list(rendered.ids[: index + 1]), clean_up_tokenization_spaces=False)
            assert isinstance(text, str)
            if not last:
                text = text.rstrip("\ufffd")
            if text[shown:]:
                spans.append((text[shown:], style))
            shown = max(shown, len(text))
        return spans

    def _rendered(self, layouts: Sequence[Layout | Unusable]) -> list[Rendered | Unusable]:
        """Ids and mask of each layout, all in one batch; what cannot be used stays what it is."""
        usable = [layout for layout in layouts if isinstance(layout, Layout)]
        encoded = self._encoder.batch(fragment for layout in usable for fragment in layout.fragments)
        results: list[Rendered | Unusable] = []
        for layout in layouts:
            try:
                results.append(self._assemble(layout, encoded)[0] if isinstance(layout, Layout) else layout)
            except Refused as refusal:
                results.append(Unusable(refusal.reason, refusal.detail))
        return results

    def _assemble(self, layout: Layout, encoded: dict[Fragment, Piece]) -> tuple[Rendered, int]:
        ids: list[int] = []
        trained: list[bool] = []
        controls: list[int] = []
        prompt = 0
        for number, (fragment, begin) in enumerate(zip(layout.fragments, layout.begins)):
            stretches = self._encoder.unforged(fragment, begin, layout.slots, encoded[fragment])
            for start, piece in stretches:
                ids += piece.ids
                for control in piece.controls:
                    if slot_at(layout.slots, start + control.start, start + control.end) is None:
                        controls.append(control.id)
            trained += self._mask(number, layout, stretches)
            prompt = prompt or len(ids)
        if tuple(controls) != layout.controls:
            raise Refused(
                "control_tokens", "LA206: the text of this row changes the control tokens around it"
            )
        return Rendered(tuple(ids), tuple(trained)), prompt

    @staticmethod
    def _mask(number: int, layout: Layout, stretches: list[tuple[int, Piece]]) -> list[bool]:
        """Trained are, in every fragment but the prompt, the tokens up to and including the stop token."""
        mask: list[bool] = []
        if number == 0:
            return [False] * sum(len(piece.ids) for _, piece in stretches)
        end, stops = layout.ends[number - 1]
        for start, piece in stretches:
            stop = [c for c in piece.controls if stops and start + c.start <= end < start + c.end]
            if start + piece.encoding.offsets[-1][1] - piece.shift <= end:
                count = len(piece.ids)
            elif stop:
                count = stop[0].number + 1
            else:
                count = piece.tokens_before(end - start)
            mask += [True] * count + [False] * (len(piece.ids) - count)
        return mask

    def _chunk(
        self,
        examples: Sequence[tuple[Conversation, Sequence[Conversation]]],
        max_length: int,
        drop_turns: bool,
    ) -> list[AnswerTokens | Unusable]:
        results: list[AnswerTokens | Unusable | None] = [None] * len(examples)
        pending = [(number, prompt) for number, (prompt, _) in enumerate(examples)]
        while pending:
            ready: list[tuple[int, Conversation, list[Layout]]] = []
            for number, prompt in pending:
                try:
                    layouts = [self._layouts.of(prompt, answer) for answer in examples[number][1]]
                    ready.append((number, prompt, layouts))
                except Refused as refusal:
                    results[number] = Unusable(refusal.reason, refusal.detail)
            encoded = self._encoder.batch(
                f for _, _, layouts in ready for one in layouts for f in one.fragments
            )
            pending = []
            for number, prompt, layouts in ready:
                turns = len(examples[number][0]) - len(prompt)
                result = self._fit(layouts, encoded, max_length, turns)
                shorter = without_oldest_round(prompt) if drop_turns else None
                if isinstance(result, Unusable) and result.reason == "too_long" and shorter is not None:
                    pending.append((number, shorter))
                results[number] = result
        return [result for result in results if result is not None]

    def _fit(
        self,
        layouts: Sequence[Layout],
        encoded: dict[Fragment, Piece],
        max_length: int,
        turns_dropped: int,
    ) -> AnswerTokens | Unusable:
        try:
            assembled = [self._assemble(layout, encoded) for layout in layouts]
        except Refused as refusal:
            return Unusable(refusal.reason, refusal.detail)
        longest, prompt = max((len(rendered.ids), prompt) for rendered, prompt in assembled)
        if longest > max_length:
            which = "the answer" if len(layouts) == 1 else "the longer answer"
            parts = f"{prompt:,} of the prompt and {longest - prompt:,} of {which}"
            return Unusable("too_long", f"{longest:,} tokens ({parts}) do not fit in {max_length:,}")
        return AnswerTokens(tuple(rendered for rendered, _ in assembled), turns_dropped)

    def _check_a_plain_conversation(self, vocabulary: int | None) -> None:
        question, answer = Message("user", "Which fruit is red?"), Message("assistant", "An apple, for one.")
        remedy = "Use a model with a sound chat template, or pass a corrected template."
        try:
            rendered = self.conversation((question,), (answer,))
            self.conversation((question, answer, question), (answer,))
        except DataError as error:
            raise ModelError(
                f"The chat template cannot be trained on. {error.what}.", remedy=remedy
            ) from error
        bos = self.tokenizer.bos_token_id
        if bos is not None and rendered.ids[:2] == (bos, bos):
            raise ModelError("LA201: the chat template writes the BOS token twice.", remedy=remedy)
        beyond = [token for token in rendered.ids if vocabulary is not None and token >= vocabulary]
        if beyond:
            names = ", ".join(map(str, self.tokenizer.convert_ids_to_tokens(beyond)))
            raise ModelError(
                f"LA210: the tokenizer has tokens that the model has no embedding for: {names}.",
                remedy=remedy,
            )


def _as_pair(tokens: AnswerTokens | Unusable) -> PairTokens | Unusable:
    if isinstance(tokens, Unusable):
        return tokens
    chosen, rejected = tokens.answers
    if chosen.ids == rejected.ids:
        return Unusable("identical", "chosen and rejected are the same tokens")
    return PairTokens(chosen, rejected, tokens.turns_dropped)


def without_oldest_round(prompt: Conversation) -> Conversation | None:
    """The prompt without its oldest user turn and all that follows up to the next; None if only one is left.

    A leading system turn stays. What stands before the first user turn goes with the first round.
    """
    start = 1 if prompt and prompt[0].role == "system" else 0
    users = [number for number in range(start, len(prompt)) if prompt[number].role == "user"]
    return prompt[:start] + prompt[users[1] :] if len(users) > 1 else None
