"""Who writes critiques and revisions: the base with its adapters off, or an endpoint."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from lite_align.data.render import Unusable
from lite_align.data.types import Conversation, Message
from lite_align.flywheel.judges.aimed import spelled_out
from lite_align.flywheel.judges.chat_api import ChatAPI, Endpoint, NoReply
from lite_align.flywheel.judges.opening import Local
from lite_align.model.backbone import Role

MOST_TOKENS = 384
"""Of a critique or a revision."""

AT_ONCE = 16
"""Answers of the base that are written together."""

_ANSWER = (Message("assistant", "An answer"),)


@dataclass(frozen=True)
class Written:
    """The next turn of a conversation, or why there is none: the kind, and after a colon what happened."""

    text: str = ""
    problem: str | None = None


class Writer(Protocol):
    """Writes the next turn of conversations that end with a user turn."""

    name: str

    def write(self, conversations: Sequence[Conversation]) -> list[Written]:
        """The next turns, in order."""
        ...

    def tell(self) -> list[str]:
        """What it took so far, for people."""
        ...

    def close(self) -> None:
        """End what it holds."""
        ...


class BaseWriter:
    """The base, adapters off, taking the likeliest token each time: the same turns give the same text.

    Args:
        local: the base.
        max_tokens: longest turn; one that does not end in so many is a problem.
    """

    def __init__(self, local: Local, max_tokens: int = MOST_TOKENS) -> None:
        loaded = local.backbone.loaded
        self.name = f"base {loaded.name} {loaded.identity['base'][:8]}"
        self._local, self._most = local, max_tokens
        self._tokens = 0

    def write(self, conversations: Sequence[Conversation]) -> list[Written]:
        """See `Writer`."""
        backbone, renderer, _, positions = self._local
        found: list[Written | None] = [None] * len(conversations)
        prompts: dict[int, tuple[int, ...]] = {}
        examples = [(turns, _ANSWER) for turns in conversations]
        for number, one in enumerate(renderer.conversations(examples)):
            if isinstance(one, Unusable):
                found[number] = Written(problem=f"{one.reason.replace('_', ' ')}: {one.detail}")
                continue
            ids = one.ids[: one.trained.index(True)]
            if len(ids) + self._most > positions:
                found[number] = Written(problem=f"too long: {len(ids):,} tokens of {positions:,} positions")
                continue
            prompts[number] = ids
        with backbone.role(Role.BASE):
            answers = (
                backbone.generate(
                    list(prompts.values()),
                    stop_ids=renderer.stop_ids,
                    max_new_tokens=self._most,
                    batch_size=AT_ONCE,
                )
                if prompts
                else []
            )
        self._tokens += sum(map(len, answers))
        for number, ids in zip(prompts, answers, strict=True):
            text = str(renderer.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()
            ended = bool(ids) and ids[-1] in renderer.stop_ids
            found[number] = Written(text, None if ended else f"cut off: no end in {self._most:,} tokens")
        return [one for one in found if one is not None]

    def tell(self) -> list[str]:
        """See `Writer`."""
        return [f"{self._tokens:,} tokens written"]

    def close(self) -> None:
        """See `Writer`."""


class EndpointWriter:
    """An endpoint; the control tokens that a text spells are broken up.

    Args:
        endpoint: where and how.
        at_once: questions that are on their way together.
        max_tokens: longest turn.
    """

    def __init__(self, endpoint: Endpoint, *, at_once: int, max_tokens: int = MOST_TOKENS) -> None:
        self.name = f"endpoint {endpoint.model} {endpoint.host}"
        self._api, self._at_once, self._most = ChatAPI(endpoint), at_once, max_tokens
        self._questions = 0

    def write(self, conversations: Sequence[Conversation]) -> list[Written]:
        """See `Writer`.

        Raises:
            UserError: no call can succeed: see `ChatAPI.ask`.
        """
        pool = ThreadPoolExecutor(self._at_once)
        try:
            found = list(pool.map(self._ask, conversations))
        finally:
            pool.shutdown(cancel_futures=True)
        self._questions += len(conversations)
        return found

    def tell(self) -> list[str]:
        """See `Writer`."""
        return [f"{self._questions:,} questions"]

    def close(self) -> None:
        """Close the connections."""
        self._api.close()

    def _ask(self, conversation: Conversation) -> Written:
        turns = [{"role": turn.role, "content": spelled_out(turn.content)} for turn in conversation]
        try:
            text = self._api.ask({"messages": turns, "temperature": 0, "max_tokens": self._most})
        except NoReply as error:
            return Written(problem=str(error))
        return Written(self._api.hidden(text).strip())
