"""Thumbs and pairs taken for one another: what one prompt's two thumbs give, and the two thumbs of a pair."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lite_align.data.types import Conversation, Pair, Rated
from lite_align.errors import DataError

TRAIN_AS_THEY_ARE = "--set loss.name=kto"
MAKE_PAIRS = "--set data.pair_thumbs=true"


def pair_up(rated: Sequence[Rated]) -> list[Pair]:
    """Build pairs where one prompt has both thumbs; each answer is used once, in the order of the file.

    A pair weighs what the lighter of its thumbs weighs.
    """
    return [
        Pair(
            up.source,
            up.category,
            up.id,
            prompt=up.prompt,
            chosen=up.answer,
            rejected=down.answer,
            weight=min(up.weight, down.weight),
        )
        for ups, downs in _by_prompt(rated).values()
        for up, down in zip(ups, downs, strict=False)
    ]


def take_apart(pairs: Iterable[Pair]) -> list[Rated]:
    """Two rows of each pair: a thumb up for the chosen answer, then a thumb down for the rejected one."""
    return [
        Rated(
            pair.source,
            pair.category,
            pair.id,
            prompt=pair.prompt,
            answer=answer,
            label=label,
            weight=pair.weight,
        )
        for pair in pairs
        for answer, label in ((pair.chosen, True), (pair.rejected, False))
    ]


@dataclass(frozen=True)
class Count:
    """How many thumbs there are, of how many prompts, how many prompts have both, and the pairs that these give."""

    up: int
    down: int
    prompts: int
    with_both: int
    pairs: int

    @classmethod
    def of(cls, rated: Sequence[Rated]) -> "Count":
        """Count rows."""
        groups = _by_prompt(rated).values()
        up = sum(row.label for row in rated)
        pairs = [min(len(ups), len(downs)) for ups, downs in groups]
        return cls(up, len(rated) - up, len(groups), sum(map(bool, pairs)), sum(pairs))

    def __str__(self) -> str:
        return f"{self.up + self.down:,} thumbs ({self.up:,} up, {self.down:,} down)"

    @property
    def used(self) -> str:
        """What pairs were built of, as a note."""
        rest = self.up + self.down - 2 * self.pairs
        return (
            f"{self.pairs:,} pairs built from {self} of {self.prompts:,} prompts; {rest:,} thumbs are unused"
        )


def offer(file: str, count: Count) -> DataError:
    """The error for thumbs where pairs were asked for: both ways to train on them, with what each would use."""
    as_they_are = f"{TRAIN_AS_THEY_ARE} trains on them as they are"
    if not count.pairs:
        return DataError(
            f"{file} holds {count}, not pairs; none of its {count.prompts:,} prompts has both",
            remedy=f"lite-align dpo {file} {as_they_are}. For pairs, give each prompt a good and a bad answer.",
        )
    prompts = "1 prompt has" if count.with_both == 1 else f"{count.with_both:,} prompts have"
    pairs = "1 pair" if count.pairs == 1 else f"{count.pairs:,} pairs"
    return DataError(
        f"{file} holds {count}, not pairs",
        remedy=f"lite-align dpo {file} {as_they_are}; {prompts} both: {MAKE_PAIRS} makes {pairs}.",
    )


def _by_prompt(rated: Sequence[Rated]) -> dict[Conversation, tuple[list[Rated], list[Rated]]]:
    """Rows with a thumb up and rows with a thumb down, of each prompt."""
    prompts: dict[Conversation, tuple[list[Rated], list[Rated]]] = {}
    for row in rated:
        ups, downs = prompts.setdefault(row.prompt, ([], []))
        (ups if row.label else downs).append(row)
    return prompts
