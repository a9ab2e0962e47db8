"""The base itself as judge, adapters off: it reads both answers by a rubric, and is not asked to write.

The verdict is the probability of the letter A against the letter B at the one place where it would be written. There is
no text to parse, so none that an answer could plant; what an answer can do is persuade, and only the model withstands
that. Answers are data of a user turn: control tokens that they spell are plain text (LA206), and a mark that occurs in
neither of them stands around each (`aimed.fence`).

Shape letters: M trained tokens, one a leaf.
"""

import math
from collections.abc import Sequence
from statistics import fmean

import torch

from lite_align.data import forest
from lite_align.data.render import Renderer, Unusable
from lite_align.data.types import Message, Rendered, Tree
from lite_align.data.votes import Comparison, Source
from lite_align.errors import ModelError
from lite_align.flywheel.judges.judgement import Advance, Judgement, Reply, in_both_orders, swapped
from lite_align.flywheel.judges.question import LETTERS, ONE_LETTER, question
from lite_align.flywheel.judges.reward import sigmoid
from lite_align.flywheel.rubrics import Rubric
from lite_align.model.backbone import Backbone, Role
from lite_align.stages import passes
from lite_align.train.faults import TokenBudget

TOGETHER = 64
"""Comparisons that are packed together."""

Ids = tuple[int, ...]


class BaseJudge:
    """Asks the base which answer is better, in both orders.

    Args:
        backbone: its BASE role is asked.
        renderer: of its tokenizer.
        rubric: what to judge by.
        budget: tokens of a pass.
        positions: longest row that the model can read.
        seed: of the marks around the answers.

    Attributes:
        lead: tokens that begin either letter, mostly none.
        letters: the tokens at which A and B differ.

    Raises:
        ModelError: the tokenizer writes the two letters alike.
    """

    kind: Source = "ai"

    def __init__(
        self,
        backbone: Backbone,
        renderer: Renderer,
        rubric: Rubric,
        budget: TokenBudget,
        positions: int,
        *,
        seed: int = 0,
    ) -> None:
        self.name = f"base {backbone.loaded.name} {backbone.loaded.identity['base'][:8]}"
        self.rubric = rubric.hash
        self._rubric, self._seed = rubric.text, seed
        self._backbone, self._renderer, self._budget, self._positions = backbone, renderer, budget, positions
        self.lead, self.letters = letters(renderer)
        self._tokens, self._masses = 0, list[float]()

    def judge(
        self, comparisons: Sequence[Comparison], advance: Advance = lambda count: None
    ) -> list[Judgement]:
        """See `Judge`; the preference is the mean over both orders of P(A) / (P(A) + P(B))."""
        found: list[Judgement] = []
        for start in range(0, len(comparisons), TOGETHER):
            some = comparisons[start : start + TOGETHER]
            replies = self._replies([ordered for one in some for ordered in (one, swapped(one))])
            found += [in_both_orders(one, *replies[2 * n : 2 * n + 2]) for n, one in enumerate(some)]
            advance(len(some))
        return found

    def tell(self) -> list[str]:
        """See `Judge`."""
        mass = (
            f"; A and B have {100 * fmean(self._masses):.2g} % of the probability where one is due"
            if self._masses
            else ""
        )
        return [f"{self._tokens:,} tokens read, none written{mass}"]

    def close(self) -> None:
        """See `Judge`."""

    def _replies(self, comparisons: Sequence[Comparison]) -> list[Reply]:
        asked = [self._sequence(one) for one in self._rendered(comparisons)]
        replies = [
            Reply.failed(one.reason.replace("_", " "), one.detail) if isinstance(one, Unusable) else None
            for one in asked
        ]
        sequences = [one for one in asked if isinstance(one, Rendered)]
        measured = iter(self._differences(sequences))
        return [reply or Reply.likely(sigmoid(next(measured))) for reply in replies]

    def _rendered(self, comparisons: Sequence[Comparison]) -> list[Rendered | Unusable]:
        answer = (Message("assistant", LETTERS[0]),)
        return self._renderer.conversations(
            [(question(one, self._rubric, ONE_LETTER, seed=self._seed), answer) for one in comparisons]
        )

    def _sequence(self, rendered: Rendered | Unusable) -> Rendered | Unusable:
        """The question up to the letter A, which alone is trained: the place where a letter is due."""
        if isinstance(rendered, Unusable):
            return rendered
        ids = (*rendered.ids[: rendered.trained.index(True)], *self.lead, self.letters[0])
        if len(ids) > self._positions:
            return Unusable("too_long", f"{len(ids):,} tokens; the model has {self._positions:,} positions")
        return Rendered(ids, (*[False] * (len(ids) - 1), True))

    @torch.no_grad()
    def _differences(self, sequences: Sequence[Rendered]) -> list[float]:
        """The log-odds of A against B of every question; what several begin with is computed once."""
        if not sequences:
            return []
        alone = [forest.single(number, sequence) for number, sequence in enumerate(sequences)]
        shared = forest.shared(alone, self._budget.tokens)
        trees = [tree for tree, _ in shared]
        self._tokens += sum(tree.tokens for tree in trees)
        found = [0.0] * len(sequences)
        packs = forest.pack(trees, self._budget.tokens)
        for pack, values in passes.in_packs(trees, packs, self._measured, self._budget, where="the judging"):
            questions = [number for tree in pack for number in shared[tree][1]]
            for number, (a, b) in zip(questions, values, strict=True):
                found[number] = a - b
                self._masses.append(math.exp(a) + math.exp(b))
        return found

    def _measured(self, trees: list[Tree]) -> list[tuple[float, float]]:
        """The log-probs of A and B at the end of every leaf."""
        batch = passes.to_batch(trees, self._backbone.device)
        with self._backbone.role(Role.BASE):
            states = self._backbone.states(batch)
            a, b = (
                self._backbone.state_logps(states, torch.full_like(batch.target, letter)).tolist()
                for letter in self.letters
            )
        return list(zip(a, b, strict=True))


def letters(renderer: Renderer) -> tuple[Ids, tuple[int, int]]:
    """The tokens that begin the answers A and B alike, and the first ones at which they differ.

    Raises:
        ModelError: they do not differ before one of them ends.
    """
    asked = (Message("user", ONE_LETTER),)
    a, b = (renderer.conversation(asked, (Message("assistant", letter),)) for letter in LETTERS)
    begin = a.trained.index(True)
    sides = [
        tuple(token for token, trained in zip(one.ids[begin:], one.trained[begin:], strict=True) if trained)
        for one in (a, b)
    ]
    same = next((n for n, (one, other) in enumerate(zip(*sides)) if one != other), None)
    if same is None:
        raise ModelError(
            "The tokenizer writes the letters A and B with the same tokens: the base cannot tell a verdict.",
            remedy="Use another judge: a reward run, an endpoint, or a function (--by).",
        )
    return sides[0][:same], (sides[0][same], sides[1][same])
