"""What one process is asked to measure, and the rows that both sides get: token ids made from a seed."""

import random
from dataclasses import dataclass, field
from typing import Any, NamedTuple

RANK, ALPHA, BETA, RATE = 16, 32, 0.1, 5e-6
SPREAD = 0.6
"""Standard deviation of the logarithm of a length, about that of chat data."""


class Pair(NamedTuple):
    """Token ids of a prompt and its two answers."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Tokens of prompt, chosen and rejected answer."""
        return len(self.prompt), len(self.chosen), len(self.rejected)

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longer answer."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


MIXES = {"uf": (150, 330, 330), "long": (1536, 256, 256), "hh": (130, 60, 60)}
"""Mean tokens of prompt, chosen and rejected answer: as UltraFeedback, long documents, as Anthropic's HH."""


IDS = range(3, 1000)
"""Token ids of the rows; in the vocabulary of every model here."""


@dataclass(frozen=True)
class Job:
    """One process: a side, a model, rows and how many steps.

    Attributes:
        side: a key of `sides.SIDES`.
        model: a key of `models.SHAPES`.
        small: a model and rows of CPU size; everything else is the same.
        layers: fewer decoder blocks than the shape has.
        mix: a key of `MIXES`.
        batch: pairs an optimiser step.
        warmup: steps before the measured ones.
        steps: measured steps.
        settings: `key=value` of lite-align's recipe.
        variant: of the opponent.
        folder: a checkpoint to load in place of weights made on the device.
        cap: bytes of a smaller card to stand in for.
        card: bf16 operations and bytes a second that the device was measured to do.
        recipe: values of lite-align's recipe that the measurement itself needs.
    """

    side: str
    model: str = "llama-3-8b"
    small: bool = False
    layers: int | None = None
    mix: str = "uf"
    batch: int = 8
    warmup: int = 5
    steps: int = 20
    settings: tuple[str, ...] = ()
    variant: str = ""
    folder: str = ""
    cap: int | None = None
    card: tuple[float, float] | None = None
    recipe: dict[str, Any] = field(default_factory=dict)

    def rows(self) -> tuple[list[Pair], list[Pair]]:
        """Pairs of the warm-up and of the measured steps."""
        shrink = 8 if self.small else 1
        pairs = make_pairs(self.mix, self.batch * (self.warmup + self.steps), shrink=shrink)
        return pairs[: self.batch * self.warmup], pairs[self.batch * self.warmup :]


def make_pairs(mix: str, count: int, *, seed: int = 7, shrink: int = 1) -> list[Pair]:
    """Pairs with log-normal lengths around the means of a mix, cut at four times the mean."""
    source = random.Random(f"{mix} {seed}")

    def ids(mean: float) -> list[int]:
        drawn = mean * source.lognormvariate(-(SPREAD**2) / 2, SPREAD)  # its mean is exactly `mean`
        return source.choices(IDS, k=max(2, min(round(drawn), round(4 * mean))))

    return [Pair(*(ids(mean / shrink) for mean in MIXES[mix])) for _ in range(count)]
