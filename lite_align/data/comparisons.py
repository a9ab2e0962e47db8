"""All answers to a prompt in one tree, with the comparisons between them: what a reward model is trained on.

Pairs with the same prompt are put together, so that the prompt is computed once for all of its answers, and an answer
once however often it is compared (InstructGPT, arXiv 2203.02155 section 3.5).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lite_align.data.forest import grow, whole
from lite_align.data.types import Conversation, Message, Pair, Rendered, Tree

_OPENED = Message("assistant", "An answer")


def judged(answer: Conversation, suffix: str | None) -> Conversation:
    """An answer and a user turn that asks for a review; the turn that it opens is there to be cut off again."""
    return answer if suffix is None else (*answer, Message("user", suffix), _OPENED)


def up_to_score(rendered: Rendered, *, judged: bool = False) -> Rendered:
    """Cut a conversation after the token at which its score is read.

    That is the stop token of the answer, the last trained one. If it is `judged`, another turn follows, of which only
    the opening counts: the score is read at the last token before its content. In capitals what is trained:

        a b C D E f g           gives a b C D E
        a b C D E f g h I J     judged, gives a b C D E f g h
    """
    end = len(rendered.ids)
    while end and not rendered.trained[end - 1]:
        end -= 1
    while judged and end and rendered.trained[end - 1]:
        end -= 1
    return Rendered(rendered.ids[:end], rendered.trained[:end])


class Scored(NamedTuple):
    """A pair as two sequences that end where their scores are read.

    `prompt` counts the tokens before the answers, `tokens` those of each answer with its stop token.
    """

    pair: Pair
    prompt: int
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    tokens: tuple[int, int]

    @classmethod
    def of(cls, pair: Pair, tree: Tree) -> "Scored":
        """A pair from its tree, of which leaf 0 is the chosen answer and leaf 1 the rejected one."""
        sides = [whole(tree, leaf) for leaf in (0, 1)]
        prompt = sides[0].trained.index(True)
        chosen, rejected = (side.ids for side in sides)
        return cls(pair, prompt, chosen, rejected, (sum(sides[0].trained), sum(sides[1].trained)))


def by_prompt(pairs: Iterable[Scored]) -> list[list[Scored]]:
    """Pairs with the same prompt side by side, prompts in the order in which they appear."""
    prompts: dict[tuple[int, ...], list[Scored]] = {}
    for pair in pairs:
        prompts.setdefault(pair.chosen[: pair.prompt], []).append(pair)
    return list(prompts.values())


class Comparison(NamedTuple):
    """Leaf `chosen` of a tree was preferred to leaf `rejected`, as a pair says."""

    chosen: int
    rejected: int
    scored: Scored


@dataclass(frozen=True, slots=True)
class Compared:
    """A tree of different answers to one prompt, no token of them trained, and how they compare."""

    tree: Tree
    comparisons: tuple[Comparison, ...]


class Answers:
    """Different answers to one prompt of so many tokens, while they are collected."""

    def __init__(self, prompt: int) -> None:
        self.prompt = prompt
        self.leaves: dict[tuple[int, ...], int] = {}

    def tokens(self, *more: tuple[int, ...]) -> int:
        """Tokens of the tree if these sequences were in it too."""
        return self.prompt + sum(len(ids) - self.prompt for ids in self.leaves.keys() | set(more))

    def add(self, ids: tuple[int, ...]) -> int:
        """Take in a sequence and return its leaf; one that is there already keeps its own."""
        return self.leaves.setdefault(ids, len(self.leaves))

    def tree(self, key: int) -> Tree:
        """All of them as one tree."""
        return grow(key, [Rendered(ids, (False,) * len(ids)) for ids in self.leaves])


def group(pairs: Iterable[Scored], *, most_tokens: int) -> list[Compared]:
    """Put pairs with the same prompt into one tree.

    A tree takes no further pair that would make it longer than `most_tokens`: what is left begins another tree of the
    same prompt. A single pair always fits.
    """
    found: list[Compared] = []
    for prompt in by_prompt(pairs):
        answers, comparisons = Answers(prompt[0].prompt), list[Comparison]()
        for pair in prompt:
            if comparisons and answers.tokens(pair.chosen, pair.rejected) > most_tokens:
                found.append(Compared(answers.tree(len(found)), tuple(comparisons)))
                answers, comparisons = Answers(pair.prompt), []
            comparisons.append(Comparison(answers.add(pair.chosen), answers.add(pair.rejected), pair))
        found.append(Compared(answers.tree(len(found)), tuple(comparisons)))
    return found


def bundle(prompt: int, sequences: Sequence[tuple[int, ...]], *, most_tokens: int) -> list[Tree]:
    """Sequences with a common prompt of so many tokens as the leaves of trees of at most `most_tokens`, in order.

    Equal sequences stand as often as they are given; a single one always fits.
    """
    parts: list[list[tuple[int, ...]]] = [[]]
    for ids in sequences:
        if parts[-1] and prompt + sum(len(other) - prompt for other in (*parts[-1], ids)) > most_tokens:
            parts.append([])
        parts[-1].append(ids)
    return [grow(0, [Rendered(ids, (False,) * len(ids)) for ids in part]) for part in parts if part]
