"""Rows before tokens (Pair, Ranking, Chat, Prompt, Rated, Unused) and after (Rendered, Leaf, Tree). No torch here."""

from dataclasses import dataclass

Roles = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a row stands: a file and its line (JSONL) or row number (other formats), counted from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `role` is one of `Roles`."""

    role: str
    content: str


Conversation = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """What every row carries besides its text."""

    source: Source
    category: str | None = None
    id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair(Row):
    """A prompt with a chosen and a rejected answer.

    `chosen` and `rejected` hold the turns that follow the prompt (usually one assistant turn). `margin` is how
    much better the chosen answer was rated, where the file says so; `weight` scales the pair in the loss.
    """

    prompt: Conversation
    chosen: Conversation
    rejected: Conversation
    margin: float | None = None
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking(Row):
    """All pairs of answers to one prompt that a row ranks differently; the best against the worst comes first."""

    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat(Row):
    """A conversation to imitate (SFT).

    `raw` says that it is a text without turns: one assistant message, written without the chat template.
    """

    messages: Conversation
    raw: bool = False

    @property
    def prompt(self) -> Conversation:
        """The turns before the first answer; none of a raw text."""
        return () if self.raw else self.messages[: first_answer(self.messages)]


def first_answer(messages: Conversation) -> int:
    """Number of the first assistant turn that answers something; one before any question answers nothing.

    Raises:
        ValueError: there is none.
    """
    asked = False
    for number, message in enumerate(messages):
        if message.role == "assistant" and asked:
            return number
        asked = asked or message.role in ("user", "tool")
    raise ValueError("the conversation has no answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt(Row):
    """A prompt without an answer (PPO, sampling)."""

    messages: Conversation


@dataclass(frozen=True, slots=True, kw_only=True)
class Rated(Row):
    """A prompt with one answer and a thumb up or down (KTO); `weight` scales it in the loss."""

    prompt: Conversation
    answer: Conversation
    label: bool
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Unused(Row):
    """What gives nothing to train on by a rule of `data.lint`, and why."""

    rule: str
    reason: str


@dataclass(frozen=True, slots=True)
class Rendered:
    """Token ids of prompt and answer together, and which of them are trained.

    Example: prompt `<user>Hi<assistant>` and answer `Hello<end>` give ids (1, 7, 2, 9, 3) and
    trained (False, False, False, True, True).
    """

    ids: tuple[int, ...]
    trained: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Leaf:
    """The tokens of one answer after the shared root, and which of them are trained."""

    ids: tuple[int, ...]
    trained: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Tree:
    """One example: a root shared by all answers and one leaf for each of them.

    `key` numbers the example inside its data set. A root token can be trained too (answers that open alike);
    its log-prob then counts for every leaf.
    """

    key: int
    root: tuple[int, ...]
    root_trained: tuple[bool, ...]
    leaves: tuple[Leaf, ...]

    @property
    def tokens(self) -> int:
        """Number of tokens that a packed row spends on this tree."""
        return len(self.root) + sum(len(leaf.ids) for leaf in self.leaves)
