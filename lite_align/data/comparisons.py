"""All answers to a prompt in one tree, with the comparisons between them: what a reward model is trained on.

Pairs come as trees of two leaves. Those with the same prompt are put together, so that the prompt is computed once
for all of its answers, and an answer once however often it is compared (InstructGPT, arXiv 2203.02155 section 3.5).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lite_align.data.forest import grow, whole
from lite_align.data.types import Pair, Rendered, Tree


@dataclass(frozen=True, slots=True)
class Comparison:
    """Leaf `chosen` of a tree was preferred to leaf `rejected`, as the row `pair` says."""

    chosen: int
    rejected: int
    pair: Pair


@dataclass(frozen=True, slots=True)
class Compared:
    """A tree of answers, each of which ends where its score is read, and how they compare."""

    tree: Tree
    comparisons: tuple[Comparison, ...]

    @property
    def weight(self) -> float:
        """Sum of the weights of all comparisons."""
        return sum(comparison.pair.weight for comparison in self.comparisons)


def up_to_score(rendered: Rendered, *, judged: bool = False) -> Rendered:
    """Cut a conversation after the token at which its score is read; no token of it is trained.

    That is the stop token of the answer, the last trained one. With `judged` another turn follows, of which only the
    opening counts: the score is read at the last token before its content. In capitals what is trained:

        a b C D E f g           gives a b C D E
        a b C D E f g h I J     judged, gives a b C D E f g h
    """
    end = len(rendered.ids)
    while end and not rendered.trained[end - 1]:
        end -= 1
    while judged and end and rendered.trained[end - 1]:
        end -= 1
    return Rendered(rendered.ids[:end], (False,) * end)


def group(examples: Iterable[tuple[Pair, Tree]], *, most_tokens: int, judged: bool = False) -> list[Compared]:
    """Put pairs with the same prompt into one tree, in the order in which the prompts appear.

    Args:
        examples: pairs with their trees: leaf 0 chosen, leaf 1 rejected, as rendered.
        most_tokens: a tree takes no further pair that would make it longer than this; what is left begins another
            tree of the same prompt. A single pair always fits.
        judged: whether the last turn of each answer is a judge's (see `up_to_score`).
    """
    prompts: dict[tuple[int, ...], list[_Answers]] = {}
    for pair, tree in examples:
        sides = [whole(tree, leaf) for leaf in (0, 1)]
        prompt = sides[0].ids[: sides[0].trained.index(True)]
        scored = tuple(up_to_score(side, judged=judged).ids for side in sides)
        parts = prompts.setdefault(prompt, [_Answers(len(prompt))])
        if parts[-1].with_pair(scored) > most_tokens and parts[-1].comparisons:
            parts.append(_Answers(len(prompt)))
        parts[-1].add(pair, scored)
    answers = [part for parts in prompts.values() for part in parts]
    return [part.compared(key) for key, part in enumerate(answers)]


class _Answers:
    """The different answers to one prompt while they are collected."""

    def __init__(self, prompt: int) -> None:
        self.prompt = prompt
        self.leaves: dict[tuple[int, ...], int] = {}
        self.comparisons: list[Comparison] = []

    def with_pair(self, scored: Sequence[tuple[int, ...]]) -> int:
        """Tokens of the tree if these two answers were in it too."""
        return self.prompt + sum(len(ids) - self.prompt for ids in self.leaves.keys() | set(scored))

    def add(self, pair: Pair, scored: Sequence[tuple[int, ...]]) -> None:
        chosen, rejected = (self.leaves.setdefault(ids, len(self.leaves)) for ids in scored)
        self.comparisons.append(Comparison(chosen, rejected, pair))

    def compared(self, key: int) -> Compared:
        tree = grow(key, [Rendered(ids, (False,) * len(ids)) for ids in self.leaves])
        return Compared(tree, tuple(self.comparisons))
