"""A chat template as text: what it writes around each content, found by rendering it with marks as contents.

A conversation is dissected into *slots* (text of the data) and *literals* (white space at the ends of a content
and `<think>` tags, which templates look at). The template is rendered once for each such shape with a mark in
each slot; what stands between the marks is the template's own text. No tokens here: see `render`.
"""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from lite_align.data.types import Conversation, Message
from lite_align.errors import ModelError

Shape = tuple[
    tuple[str, tuple[str | None, ...]], ...
]  # for each message: role, and literals with None for a slot

SECONDS, MEGABYTES, CHARACTERS = 2, 512, 1_000_000  # what a template may spend on a probe of a few words
_LONGEST = 262_144  # characters of template source; the longest in use have about 20,000
_REMEMBERED = 4096  # shapes, so that odd data cannot fill the memory
_MARK = re.compile(r"Qz(\d{4})zQ")
_THINKING = re.compile(r"(</?think>)")
_PINNED_DAY = datetime(2025, 1, 1)
PLAIN = (None,)


class Refused(Exception):
    """One conversation cannot be rendered exactly.

    Args:
        reason: one word for counting (`template`, `roles`, `empty`, `control_tokens`).
        detail: the sentence for people, with the rule (LA…) where there is one.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class Slot(NamedTuple):
    """Which text of the data stands here: message number and number of the slot inside its content."""

    message: int
    part: int


@dataclass(frozen=True, slots=True)
class Structure:
    """What the template writes for one shape: `literals[0] slots[0] literals[1] … literals[n]`.

    `dropped` lists the slots of earlier reasoning that the template leaves out.
    """

    literals: tuple[str, ...]
    slots: tuple[Slot, ...]
    dropped: tuple[Slot, ...] = ()

    def after(self, prefix: "Structure") -> "Point | None":
        """The point where `prefix` ends inside this structure, or None if it does not begin with it."""
        n = len(prefix.slots)
        begins = self.slots[:n] == prefix.slots and self.literals[:n] == prefix.literals[:n]
        if begins and self.literals[n].startswith(prefix.literals[n]):
            return Point(n, len(prefix.literals[n]))
        return None


class Point(NamedTuple):
    """A place in a structure: the number of a literal and an offset in it, in characters."""

    literal: int
    offset: int


def dissect(message: Message) -> tuple[tuple[str | None, ...], tuple[str, ...]]:
    r"""Split a content into literals and slots: its shape (None for a slot) and the texts of the slots.

    Example: `" Hi\n"` gives `((" ", None, "\n"), ("Hi",))`. Thinking tags are literals in assistant turns only.
    """
    shape: list[str | None] = []
    texts: list[str] = []

    def literal(text: str) -> None:
        if text and shape and shape[-1] is not None:
            shape[-1] += text
        elif text:
            shape.append(text)

    pieces = _THINKING.split(message.content) if message.role == "assistant" else [message.content]
    for number, piece in enumerate(pieces):
        core = "" if number % 2 else piece.strip()
        if not core:
            literal(piece)
            continue
        start = len(piece) - len(piece.lstrip())
        literal(piece[:start])
        shape.append(None)
        texts.append(core)
        literal(piece[start + len(core) :])
    return tuple(shape), tuple(texts)


def fold_system(messages: Conversation) -> Conversation:
    """Move a leading system text to the front of the first user turn, for templates without a system role."""
    if len(messages) < 2 or messages[1].role != "user":
        raise Refused("roles", "the template has no system role and no user turn follows the system turn")
    system, user, *rest = messages
    text = f"{system.content}\n\n{user.content}" if system.content.strip() else user.content
    return (Message("user", text), *rest)


class ChatTemplate:
    """The chat template of a tokenizer: tried in a child process, then rendered in transformers' sandbox.

    Args:
        tokenizer: its template and special tokens are used; it is not changed.
        template: source that replaces the tokenizer's own.
        trusted: the template is ours, so the child process is not started.

    Raises:
        ModelError: there is no template, or it is too slow or large, or it cannot write a plain conversation.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str | None, *, trusted: bool) -> None:
        self._tokenizer = tokenizer
        self.source = template if template is not None else _own_template(tokenizer)
        self.sha256 = hashlib.sha256(self.source.encode()).hexdigest()
        self.notes: list[str] = []
        self._text = self._pin_date(self.source)
        self._structures: dict[tuple[Shape, bool], Structure | Refused] = {}
        if not trusted:
            _probe_in_child(self._text, tokenizer.special_tokens_map)
        self.folds_system = self._must_fold_system()
        self.written = self._write_every_role()

    def render(self, messages: Sequence[dict[str, str]], *, generation: bool = False) -> str:
        """Write a conversation as text, with the generation prompt at the end or without.

        Raises:
            Refused: the template raises, as many do on roles that they do not know.
        """
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages),
                chat_template=self._text,
                tokenize=False,
                add_generation_prompt=generation,
            )
        except Exception as error:  # a template is a foreign program and can raise whatever Python can
            reason = str(error) or type(error).__name__
            raise Refused("roles", f"the chat template refuses this conversation: {reason}") from error
        assert isinstance(text, str)
        return text

    def structure(self, shape: Shape, *, generation: bool = False) -> Structure:
        """What the template writes around the slots of `shape`; remembered.

        Raises:
            Refused: a content is dropped, doubled or moved (LA207), or the template raises.
        """
        found = self._structures.get((shape, generation))
        if found is None:
            if len(self._structures) >= _REMEMBERED:
                self._structures.clear()
            try:
                found = self._probe(shape, generation)
            except Refused as refusal:
                found = refusal
            self._structures[shape, generation] = found
        if isinstance(found, Refused):
            raise Refused(found.reason, found.detail)
        return found

    def _probe(self, shape: Shape, generation: bool) -> Structure:
        slots: list[Slot] = []
        messages: list[dict[str, str]] = []
        for number, (role, parts) in enumerate(shape):
            content, part = "", 0
            for literal in parts:
                if literal is None:
                    content += f"Qz{len(slots):04d}zQ"
                    slots.append(Slot(number, part))
                    part += 1
                else:
                    content += literal
            messages.append({"role": role, "content": content})
        pieces = _MARK.split(self.render(messages, generation=generation))
        order = [slots[int(piece)] for piece in pieces[1::2] if int(piece) < len(slots)]
        dropped = tuple(slot for slot in slots if slot not in order)
        self._check(shape, order, dropped, doubled=len(pieces) // 2 != len(set(order)))
        return Structure(tuple(pieces[0::2]), tuple(order), dropped)

    def _check(self, shape: Shape, order: list[Slot], dropped: tuple[Slot, ...], *, doubled: bool) -> None:
        """Every content once and in order (LA207); what is tolerated is that earlier reasoning goes."""
        if doubled:
            raise Refused("template", "LA207: the chat template writes a message content more than once")
        for slot in dropped:
            role, parts = shape[slot.message]
            last = max((other.part for other in order if other.message == slot.message), default=-1)
            reasoning = (
                role == "assistant" and "</think>" in "".join(filter(None, parts)) and last > slot.part
            )
            if not reasoning:
                what = f"the content of turn {slot.message + 1} ({role})"
                raise Refused("template", f"LA207: the chat template drops {what}")
        # The system text may stand in a later turn (templates that write it into the last user turn).
        turns = [slot for slot in order if shape[slot.message][0] != "system"]
        if turns != sorted(turns):
            raise Refused("template", "LA207: the chat template changes the order of the turns")

    def _must_fold_system(self) -> bool:
        user, assistant = ("user", PLAIN), ("assistant", PLAIN)
        try:
            self.structure((user, assistant))
        except Refused as refusal:
            raise ModelError(
                f"The chat template cannot write a user turn and an answer: {refusal.detail}.",
                remedy="Use an instruct model whose template works, or pass a corrected template.",
            ) from refusal
        try:
            self.structure((("system", PLAIN), user, assistant))
        except Refused:
            self.notes.append(
                "the chat template has no system role: system text is put before the first user message"
            )
            return True
        return False

    def _write_every_role(self) -> str:
        """The template's own text around turns of every role that it knows."""
        user, answer = ("user", PLAIN), ("assistant", PLAIN)
        texts: list[str] = []
        for shape in (
            (user, answer),
            (("system", PLAIN), user, answer),
            (user, answer, user, answer),
            (user, answer, ("tool", PLAIN), answer),
        ):
            try:
                texts += self.structure(shape).literals
            except Refused:
                continue  # a role that the template does not know
        return "\0".join(texts)

    def _pin_date(self, source: str) -> str:
        """Let `strftime_now` answer one fixed day, so that a run resumed tomorrow has the same tokens."""
        if "strftime_now" not in source:
            return source
        formats = dict.fromkeys(re.findall(r"strftime_now\(\s*['\"]([^'\"]*)['\"]\s*\)", source))
        days = {form: _PINNED_DAY.strftime(form) for form in formats}
        fallback = _PINNED_DAY.strftime("%d %b %Y")
        self.notes.append(
            f"the chat template writes the date: pinned to {fallback}, so that token ids stay equal"
        )
        table = json.dumps(days, ensure_ascii=True)
        default = json.dumps(fallback)
        answer = f"{{{{ {table}.get(format, {default}) }}}}"
        return f"{{% macro strftime_now(format) %}}{answer}{{% endmacro %}}{source}"


def _own_template(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:
        raise ModelError(
            f"The tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template.",
            details=(
                "Without one nothing says how a conversation is written, and a guess would train on it.",
            ),
            remedy="Use the instruct version of the model (--model), or train one with a template.",
        ) from error


_CHILD = """
import json, sys
import jinja2, jinja2.ext, jinja2.sandbox

class Generation(jinja2.ext.Extension):
    tags = {"generation"}
    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)

def refuse(message):
    raise jinja2.TemplateError(message)

job = json.load(sys.stdin)
try:
    import resource
    bytes_ = job["megabytes"] * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (bytes_, bytes_))
    spent = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(spent.ru_utime + spent.ru_stime + 1) + job["seconds"]
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
except (ImportError, ValueError, OSError):
    pass
environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
environment.filters["tojson"] = lambda x, **options: json.dumps(x, ensure_ascii=False)
environment.globals.update(raise_exception=refuse, strftime_now=lambda form: form)
try:
    template = environment.from_string(job["template"])
except jinja2.TemplateSyntaxError as error:
    print(json.dumps({"syntax": f"line {error.lineno}: {error.message}"}))
    sys.exit()
longest = 0
for messages in job["conversations"]:
    for generation in (False, True):
        try:
            text = template.render(messages=messages, add_generation_prompt=generation, tools=None,
                                   documents=None, **job["variables"])
            longest = max(longest, len(text))
        except MemoryError:
            raise
        except Exception:  # a template may refuse a conversation; only time and size are asked here
            continue
print(json.dumps({"longest": longest}))
"""


def _probe_in_child(source: str, variables: dict[str, str]) -> None:
    """Render small conversations in a child with limits on time and memory.

    The limit on time is CPU time, so that a busy machine refuses nothing; the wall clock only catches a child
    that the operating system cannot limit. A template that raises on a probe is not refused here.
    """
    turns = [("system", "Be kind."), ("user", "Name a fruit."), ("assistant", "Apple."), ("user", "Another?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    job = {
        "template": source,
        "variables": variables,
        "conversations": [messages, messages[:3], messages[:2], messages[1:], messages[1:3], messages[1:2]],
        "seconds": SECONDS,
        "megabytes": MEGABYTES,
    }
    remedy = "Do not use this model: its template may be hostile. An ordinary one needs a millisecond."
    limits = f"{SECONDS} seconds, {MEGABYTES} MiB, {CHARACTERS:,} characters"
    if len(source) > _LONGEST:
        raise ModelError(f"S5: the chat template has {len(source):,} characters.", remedy=remedy)
    try:
        child = subprocess.run(
            [sys.executable, "-I", "-c", _CHILD],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=SECONDS * 5,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"S5: the chat template exceeds its limits ({limits}).", remedy=remedy) from error
    if child.returncode != 0:
        raise ModelError(f"S5: the chat template exceeds its limits ({limits}).", remedy=remedy)
    answer = json.loads(child.stdout)
    if "syntax" in answer:
        raise ModelError(
            f"The chat template is not valid Jinja: {answer['syntax']}.",
            remedy="Use the instruct version of the model, or pass a corrected template.",
        )
    if answer["longest"] > CHARACTERS:
        raise ModelError(f"S5: the chat template exceeds its limits ({limits}).", remedy=remedy)
