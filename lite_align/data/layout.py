"""A conversation as the characters that a chat template writes, cut where answers begin and measured where they stop.

What follows from the shape of a conversation alone (who speaks, which contents there are) is found once and remembered;
the contents are put in between, and the text is compared with what the template writes of them.
"""

from dataclasses import dataclass
from typing import NamedTuple

from lite_align.data.encode import DataSpan, Encoder, Fragment
from lite_align.data.template import (
    PLAIN,
    ChatTemplate,
    Point,
    Refused,
    Shape,
    Structure,
    dissect,
    fold_system,
)
from lite_align.data.types import Conversation
from lite_align.errors import ModelError

_REMEMBERED = 4096  # shapes


class _Turn(NamedTuple):
    """A trained turn inside a structure: where it begins, the text before that, where its stop token is."""

    begin: Point
    context: str
    stop: Point | None


@dataclass(frozen=True, slots=True)
class _Plan:
    """All that follows from the shape of a conversation alone."""

    structure: Structure
    turns: tuple[_Turn, ...]
    controls: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """A rendered conversation cut into fragments; offsets are in characters of the whole text.

    Fragment 0 is the prompt, fragment i begins with trained turn i; `ends[i - 1]` is where its stop token begins
    and whether it has one (if not, where its content ends).
    """

    fragments: tuple[Fragment, ...]
    begins: tuple[int, ...]
    ends: tuple[tuple[int, bool], ...]
    slots: tuple[DataSpan, ...]
    controls: tuple[int, ...]


class Layouts:
    """Lays out conversations for one chat template.

    Args:
        template: that writes them.
        encoder: knows the control tokens.

    Raises:
        ModelError: the template ends an answer without a stop token (LA202).
    """

    def __init__(self, template: ChatTemplate, encoder: Encoder) -> None:
        self._template = template
        self._encoder = encoder
        self._plans: dict[tuple[Shape, int], _Plan] = {}
        self.injected: set[str] = set()
        """What the template writes between the generation prompt and an answer."""
        self.turn_end = self._turn_end()

    def of(self, prompt: Conversation, answer: Conversation) -> Layout:
        """Lay out a prompt and its answer.

        Raises:
            Refused: the template cannot write this conversation exactly.
        """
        messages, first = (*prompt, *answer), len(prompt)
        if not answer or answer[-1].role != "assistant":
            raise Refused("roles", "the answer does not end with an assistant turn")
        if self._template.folds_system and messages[0].role == "system":
            messages, first = fold_system(messages), max(first - 1, 1)
        dissected = [dissect(message) for message in messages]
        for message, (shape, _) in zip(messages[first:], dissected[first:]):
            if message.role == "assistant" and None not in shape:
                raise Refused("empty", "an answer is empty")
        plan = self._plan(tuple((m.role, shape) for m, (shape, _) in zip(messages, dissected)), first)

        pieces, slots, begins, position = [plan.structure.literals[0]], [], [0], 0
        position = len(pieces[0])
        for slot, literal in zip(plan.structure.slots, plan.structure.literals[1:]):
            text = dissected[slot.message][1][slot.part]
            slots.append(DataSpan(position, position + len(text), messages[slot.message].role))
            begins.append(position + len(text))
            pieces += text, literal
            position += len(text) + len(literal)
        text = "".join(pieces)
        self._compare(text, messages)

        def place(point: Point) -> int:
            return begins[point.literal] + point.offset

        cuts = [0, *(place(turn.begin) for turn in plan.turns), len(text)]
        contexts = ["", *(turn.context for turn in plan.turns)]
        ends = []
        for turn, following in zip(plan.turns, cuts[2:]):
            last = max(end for _, end, _ in slots if end <= following)
            ends.append((place(turn.stop), True) if turn.stop else (last, False))
        fragments = tuple((context, text[a:b]) for context, a, b in zip(contexts, cuts, cuts[1:]))
        return Layout(fragments, tuple(cuts[:-1]), tuple(ends), tuple(slots), plan.controls)

    def _compare(self, text: str, messages: Conversation) -> None:
        """The text put together must be what the template writes, which may look at contents (LA207)."""
        rendered = self._template.render([{"role": m.role, "content": m.content} for m in messages])
        if rendered != text:
            at = next(
                (i for i, (a, b) in enumerate(zip(text, rendered)) if a != b), min(len(text), len(rendered))
            )
            raise Refused(
                "template",
                "LA207: the chat template rewrites a message because of what it says: "
                f"{rendered[max(0, at - 20) : at + 40]!r}",
            )

    def _plan(self, shape: Shape, first: int) -> _Plan:
        plan = self._plans.get((shape, first))
        if plan is None:
            if len(self._plans) >= _REMEMBERED:
                self._plans.clear()
            structure = self._template.structure(shape)
            for slot in structure.dropped:
                if slot.message >= first:
                    raise Refused("template", "LA207: the chat template drops the reasoning of the answer")
            turns = tuple(
                self._turn(structure, shape, k, strict=k == first)
                for k in range(first, len(shape))
                if shape[k][0] == "assistant"
            )
            marked = "x".join(structure.literals)
            controls = tuple(control.id for control in self._encoder.controls(marked))
            plan = self._plans[shape, first] = _Plan(structure, turns, controls)
        return plan

    def _turn(self, structure: Structure, shape: Shape, number: int, *, strict: bool) -> _Turn:
        """Where trained turn `number` begins and stops.

        It begins after the generation prompt. Text that the template writes between that and a plain answer
        (an empty thinking block) belongs to the prompt too, if this conversation has it.
        """
        earlier = shape[:number]
        prompt = structure.after(self._template.structure(earlier, generation=True))
        opened = self._template.structure((*earlier, ("assistant", PLAIN)))
        opening = structure.after(Structure(opened.literals[:-1], opened.slots[:-1]))
        begin = prompt
        if opening is not None:
            start = prompt.offset if prompt is not None and prompt.literal == opening.literal else 0
            injected = structure.literals[opening.literal][start : opening.offset]
            if prompt is not None and injected.strip():
                self.injected.add(injected)
                begin = opening
            elif prompt is None and not strict:
                begin = opening
        if begin is None and not strict:
            begin = Point(next(i for i, slot in enumerate(structure.slots) if slot.message == number), 0)
            begin = Point(begin.literal, len(structure.literals[begin.literal]))
        if begin is None:
            raise Refused(
                "template",
                "LA204: the prompt with the template's generation prompt is not how prompt and answer begin",
            )
        before = structure.literals[begin.literal][: begin.offset]
        controls = self._encoder.controls(before)
        context = before[controls[-1].start :] if controls else before
        return _Turn(begin, context, self._stop(structure, number))

    def _stop(self, structure: Structure, number: int) -> Point | None:
        """The first control token after the last slot of a turn, if it is the one that ends turns."""
        literal = 1 + max(i for i, slot in enumerate(structure.slots) if slot.message == number)
        controls = self._encoder.controls(structure.literals[literal])
        if controls and controls[0].id == self.turn_end:
            return Point(literal, controls[0].start)
        return None

    def _turn_end(self) -> int:
        """The control token with which the template ends an assistant turn (LA202)."""
        structure = self._template.structure((("user", PLAIN), ("assistant", PLAIN)))
        controls = self._encoder.controls(structure.literals[-1])
        if not controls:
            raise ModelError(
                "LA202: the chat template ends an assistant turn without a stop token.",
                details=(f"After an answer it writes {structure.literals[-1]!r} alone.",),
                remedy="Use a template that writes the end token after each assistant turn.",
            )
        return controls[0].id
