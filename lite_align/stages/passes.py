"""Passes over trees: how they are laid out and packed, and what happens where memory runs out."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import torch

from lite_align.data import forest
from lite_align.data.types import Tree
from lite_align.model.backbone import Backbone, Role
from lite_align.train.faults import Shortage, Size, TokenBudget, attempt

T = TypeVar("T")

PAD_TO = 64
"""Batches have a multiple of so many tokens. Libraries choose, and some compile and keep, a kernel for every number of
rows: on a CPU in bf16, a 15M model with batches of all lengths came to 1.3 GB, with these to 0.9."""


def laid_out(trees: Sequence[Tree], *, share_prompts: bool) -> list[Tree]:
    """The trees as they are computed: as they are, or every answer with a prompt of its own."""
    return list(trees) if share_prompts else [forest.apart(tree) for tree in trees]


def to_batch(trees: Sequence[Tree], device: torch.device) -> forest.Batch:
    """Pack trees into one row on a device, padded to a multiple of `PAD_TO` tokens."""
    return forest.batch(trees, pad_to=PAD_TO).to(device)


def packs(trees: Sequence[Tree], tokens: int) -> list[list[Tree]]:
    """Trees in packs of at most so many tokens."""
    return [[trees[i] for i in pack] for pack in forest.pack(trees, tokens)]


def batches(trees: Sequence[Tree], tokens: int, device: torch.device) -> list[forest.Batch]:
    """Pack trees into batches of at most so many tokens on a device."""
    return [to_batch(pack, device) for pack in packs(trees, tokens)]


@torch.no_grad()
def leaf_logps(
    backbone: Backbone,
    role: Role,
    trees: Sequence[Tree],
    budget: TokenBudget,
    *,
    where: str,
    advance: Callable[[int], None] = lambda count: None,
) -> list[list[float]]:
    """Log-probs under a role of the trained tokens of every leaf, summed, tree by tree; see `in_packs`.

    `advance` is told how many more trees are done.
    """

    def measured(pack: list[Tree]) -> list[list[float]]:
        batch = to_batch(pack, backbone.device)
        with backbone.role(role):
            logps = backbone.leaf_logps(batch).tolist()
        return [logps[a:b] for a, b in zip(batch.first_leaf, batch.first_leaf[1:])]

    found: list[list[float]] = [[] for _ in trees]
    for pack, results in in_packs(trees, forest.pack(trees, budget.tokens), measured, budget, where=where):
        for number, logps in zip(pack, results, strict=True):
            found[number] = logps
        advance(len(pack))
    return found


def in_packs(
    trees: Sequence[Tree],
    packs: Sequence[Sequence[int]],
    work: Callable[[list[Tree]], T],
    budget: TokenBudget,
    *,
    where: str,
) -> Iterator[tuple[list[int], T]]:
    """Do some work without gradients on pack after pack, and yield each pack with its result.

    Where memory runs out, the budget is lowered and the trees that are left are packed again.

    Args:
        trees: of which the packs are made.
        packs: indices into `trees`.
        work: what to do with the trees of a pack.
        budget: of the packs.
        where: what is done, for messages ("the evaluation").

    Raises:
        TooLittleMemory: a pack of one tree ran out of memory.
    """
    left = [list(pack) for pack in packs]
    while left:
        pack = [trees[i] for i in left[0]]
        result = attempt(partial(work, pack))
        if isinstance(result, Shortage):
            budget.lower(result, where, [Size(sum(tree.tokens for tree in pack), len(pack))])
            rest = [i for indices in left for i in indices]
            again = forest.pack([trees[i] for i in rest], budget.tokens)
            left = [[rest[i] for i in indices] for indices in again]
            continue
        yield left.pop(0), result
