"""The one base in memory, on which every model of a comparison answers the same prompts: adapters come and go."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lite_align.data.render import Renderer
from lite_align.data.types import Tree
from lite_align.errors import UserError
from lite_align.flywheel.questions import Questions, asked
from lite_align.flywheel.sides import Side
from lite_align.model import lora
from lite_align.model.backbone import Backbone, Role
from lite_align.model.folder import TINY
from lite_align.model.load import load_model, settle
from lite_align.model.sampler import Sampled
from lite_align.recipe import LoraOptions, ModelOptions, PPOOptions
from lite_align.stages import passes
from lite_align.stages.rollouts import Asked, Collector, seed_of
from lite_align.stages.session import device
from lite_align.stages.speaker import Sampling
from lite_align.train.faults import TokenBudget
from lite_align.train.finished import attach, shape_of
from lite_align.view import View

PASS_TOKENS = 4096
"""Tokens of a pass without gradients; fewer once memory ran out."""

AT_ONCE = 64
"""Answers that are sampled together; fewer once memory ran out."""


@dataclass(frozen=True)
class Answer:
    """An answer of a model.

    Attributes:
        text: as people read it.
        tokens: with the stop token.
        logp: of the whole answer under the model at the temperature, nats.
        stopped: whether it ended itself.
        sampled: its tokens.
    """

    text: str
    tokens: int
    logp: float
    stopped: bool
    sampled: Sampled


class Bench:
    """Sides of one base, each put into a role when it is needed.

    Args:
        model: the base, settled (see `sides.common_base`).
        sides: that will be seen; the first one with an adapter gives the roles their shape.
        sampling: how answers are drawn.
        view: hears of smaller passes.

    Attributes:
        backbone: the base, loaded once.
        collector: samples and measures answers.
        greedy: the same with the likeliest tokens.
        renderer: of its tokenizer.
        budget: tokens of a pass.
    """

    def __init__(self, model: ModelOptions, sides: Sequence[Side], sampling: Sampling, view: View) -> None:
        on = device()
        self.model, self.sampling = model, sampling
        self.positions = settle(model, device=on).positions
        if sampling.max_tokens >= self.positions:
            raise UserError(
                f"Answers of {sampling.max_tokens:,} tokens leave no room: the model has {self.positions:,} positions.",
                remedy="Lower --max-tokens.",
            )
        loaded = load_model(model, device=on)
        first = next((side.adapter for side in sides if side.adapter is not None), None)
        shape = LoraOptions(rank=1) if first is None else shape_of(lora.read_adapter(first)[0])
        self.backbone = Backbone(loaded, shape, seed=0)
        self.renderer = Renderer(loaded.tokenizer, trusted=model.name == TINY)

        def tell(lowered: object) -> None:
            view.warn(f"Memory ran out: {lowered}")

        self.budget = TokenBudget(PASS_TOKENS, tell=tell, levers=("a lower --max-tokens", "fewer --samples"))
        self.greedy = self._collector(temperature=0.0)
        self.collector = self._collector(sampling.temperature) if sampling.temperature else self.greedy
        self._placed: dict[Role, str] = {}

    def _collector(self, temperature: float) -> Collector:
        options = PPOOptions(
            rollouts=AT_ONCE,
            max_new_tokens=self.sampling.max_tokens,
            temperature=temperature or 1.0,
            top_p=self.sampling.top_p if temperature else 1.0,
            top_k=0 if temperature else 1,
        )
        return Collector(
            self.backbone,
            self.renderer,
            options,
            model_reward=None,
            text_rewards=(),
            budget=self.budget,
            share_prompts=True,
        )

    def put(self, side: Side, role: Role = Role.POLICY) -> Role:
        """Put a side into a role, and return the role that it is seen as."""
        if side.adapter is None:
            if role is not Role.REFERENCE:
                return Role.BASE
            if self.backbone.has(role):
                self.backbone.remove(role)
                del self._placed[role]
            return role
        if self._placed.get(role) != side.sha256:
            attach(self.backbone, role, side.adapter)
            self._placed[role] = side.sha256
        return role

    def ask(self, questions: Questions) -> list[Asked]:
        """Prompts as tokens, rendered once for all sides; see `questions.asked`."""
        return asked(questions, self.renderer, self.positions, self.sampling.max_tokens)

    def answers(
        self,
        role: Role,
        prompts: Sequence[Asked],
        samples: int,
        advance: Callable[[int], None] | None = None,
        *,
        collector: Collector | None = None,
        seed: object = None,
    ) -> list[Answer]:
        """What a role says, the answers to a prompt side by side; the random numbers are the same for every role.

        `collector` is `greedy` for the likeliest tokens, None samples; `seed` is in place of that of the sampling.
        """
        number = self.sampling.seed if seed is None else seed_of(seed)
        drawn = (collector or self.collector).sample(prompts, samples, number, advance, role=role)
        stops = self.renderer.stop_ids
        return [
            # Our files of rows hold no NUL, which a model can say.
            Answer(
                self.collector.text(one.ids).replace("\0", "\ufffd"),
                len(one.ids),
                sum(one.logps),
                one.ids[-1] in stops,
                one,
            )
            for one in drawn
        ]

    def logps(
        self, role: Role, trees: Sequence[Tree], advance: Callable[[int], None] = lambda count: None
    ) -> list[list[float]]:
        """Log-probs of the trained tokens of every leaf under a role."""
        return passes.leaf_logps(
            self.backbone, role, trees, self.budget, where="the evaluation", advance=advance
        )
