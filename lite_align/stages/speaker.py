"""A run's model as a partner in a conversation: what fits its positions, and answers shown while they are sampled."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lite_align.data.detokenize import Detokenizer
from lite_align.data.render import Renderer, without_oldest_round
from lite_align.data.types import Conversation
from lite_align.errors import DataError, UserError
from lite_align.model.backbone import Backbone, Role
from lite_align.model.load import settle
from lite_align.stages.session import device
from lite_align.train.finished import FinishedRun


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: sample from the likeliest tokens with this probability together.
        max_tokens: longest answer.
        seed: of the first answer; each further message counts one up.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 512
    seed: int = 42

    def told(self) -> str:
        """One line for people."""
        chosen = (
            f"temperature {self.temperature:g} · top-p {self.top_p:g} · seed {self.seed}"
            if self.temperature
            else "the likeliest token (--temperature samples)"
        )
        return f"{chosen} · at most {self.max_tokens:,} tokens"


@dataclass(frozen=True)
class Reply:
    """An answer: its text, and how it ended: "stop" (a stop token), "length" or "interrupted"."""

    text: str
    ended: str = "stop"

    @property
    def note(self) -> str:
        """What a reader should know of it, "" for an ordinary one."""
        if self.ended == "interrupted":
            return "stopped by you"
        if self.ended == "length":
            return "cut at the longest answer (--max-tokens)"
        return "" if self.text else "an empty answer; it is not kept"


class Speaker:
    """Answers as the policy of a run, as its frozen reference where it has one, or as the base.

    Args:
        backbone: the base with the run's adapters.
        renderer: writes prompts.
        sampling: how tokens are chosen.
        positions: longest row that the model can read.

    Raises:
        UserError: not even one token of a prompt fits beside the longest answer.
    """

    def __init__(self, backbone: Backbone, renderer: Renderer, sampling: Sampling, positions: int) -> None:
        if sampling.max_tokens >= positions:
            raise UserError(
                f"An answer of {sampling.max_tokens:,} tokens leaves no room: the model has {positions:,} positions.",
                remedy=f"Set --max-tokens to less, {positions // 2:,} for example.",
            )
        self.backbone, self.renderer, self.sampling, self.positions = backbone, renderer, sampling, positions
        self.name = backbone.loaded.name
        reference = [Role.REFERENCE] if backbone.has(Role.REFERENCE) else []
        self.roles: Sequence[Role] = (Role.POLICY, *reference, Role.BASE)

    @classmethod
    def load(cls, run: FinishedRun, sampling: Sampling) -> "Speaker":
        """Load the model of a run.

        Raises:
            ModelError: its base cannot be loaded, or the adapters do not fit it.
            UserError: as for the class.
        """
        on = device()
        backbone = run.backbone(str(on))
        positions = settle(run.recipe.model, device=on).positions
        return cls(backbone, Renderer(backbone.loaded.tokenizer), sampling, positions)

    def fit(self, conversation: Conversation) -> tuple[Conversation, int]:
        """The conversation without its oldest rounds, as many as leave room for the longest answer, and their number.

        Raises:
            DataError: the last message alone is too long, or the template cannot write the conversation.
        """
        room = self.positions - self.sampling.max_tokens
        dropped = 0
        while (tokens := len(self.renderer.prompt_ids(conversation))) > room:
            shorter = without_oldest_round(conversation)
            if shorter is None:
                raise DataError(
                    f"This message has {tokens:,} tokens; the model has {self.positions:,} positions, of which "
                    f"{self.sampling.max_tokens:,} are kept for the answer.",
                    remedy="Shorten it, or start with a smaller --max-tokens.",
                )
            conversation, dropped = shorter, dropped + 1
        return conversation, dropped

    def say(self, conversation: Conversation, role: Role, seed: int, show: Callable[[str], None]) -> Reply:
        """Answer as a role; `show` gets the text while it comes. Ctrl-C ends the answer and keeps what was said.

        Raises:
            DataError: the template cannot write the conversation.
        """
        prompt = self.renderer.prompt_ids(conversation)
        text = Detokenizer(self.backbone.loaded.tokenizer)
        pieces: list[str] = []
        ids: list[int] = []

        def hear(piece: str) -> None:
            pieces.append(piece)
            show(piece)

        def tell(token: int) -> None:
            ids.append(token)
            if token not in self.renderer.stop_ids:
                hear(text.add(token))

        interrupted = False
        try:
            with self.backbone.role(role):
                self.backbone.generate(
                    [prompt],
                    stop_ids=self.renderer.stop_ids,
                    max_new_tokens=self.sampling.max_tokens,
                    temperature=self.sampling.temperature,
                    top_p=self.sampling.top_p,
                    seed=seed,
                    tell=tell,
                )
        except KeyboardInterrupt:
            interrupted = True
        hear(text.end())
        stopped = bool(ids) and ids[-1] in self.renderer.stop_ids
        ended = "interrupted" if interrupted else "stop" if stopped else "length"
        return Reply("".join(pieces).strip(), ended)
