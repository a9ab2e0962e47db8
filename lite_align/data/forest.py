"""Trees (a root and its leaves) and packed batches of them: no padding, every prompt stands in the row once.

Shape letters: T tokens in the row, S segments, K keys of all segments together, M trained tokens, L leaves,
N trees.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lite_align.data.types import Leaf, Rendered, Tree

SHORTEST_ROOT = 16
"""Tokens that are worth sharing: the header that a template writes before every conversation is not."""


class Segment(NamedTuple):
    """Row positions `start:stop` that attend to `shared_start:shared_stop`, then causally to themselves.

    The segment of a tree's first leaf begins with the root and shares nothing (its shared range is empty).
    """

    start: int
    stop: int
    shared_start: int
    shared_stop: int

    @property
    def queries(self) -> int:
        """Number of positions of the segment itself."""
        return self.stop - self.start

    @property
    def keys(self) -> int:
        """Number of positions it may look at: the shared ones and its own."""
        return self.stop - self.start + self.shared_stop - self.shared_start


@dataclass(frozen=True, slots=True)
class Batch:
    """Trees packed end to end into one row, with the indices that attention and the loss need.

    Example: two answers to one prompt, and one answer with a root of its own (trained tokens in capitals):

        tree 0: root a b c   leaves: D E  and  F          tree 1: root g   leaf: H

        position in row   0 1 2 3 4 5 6 7
        input_ids         a b c D E F g H
        position_ids      0 1 2 3 4 3 0 1        leaf F restarts at the end of its root
        segments          0 0 0 0 0 1 2 2        cu_q = 0 5 6 8
        kv_index          0 1 2 3 4 | 0 1 2 5 | 6 7        cu_k = 0 5 9 11
        predict           2 3 2 6                c predicts D and F, D predicts E, g predicts H
        target            D E F H
        term              0 1 2 3                logps[leaf[r]] += token_logps[term[r]]
        leaf              0 0 1 2                lengths = 2 1 1, first_leaf = (0, 2, 3)

    A trained root token stands once in `predict` and has one (term, leaf) entry for every leaf of its tree.

    Attributes:
        input_ids: (1, T) int64, padding included.
        position_ids: (1, T) int64.
        kv_index: (K,) int64; segment s attends to `kv_index[cu_k[s]:cu_k[s + 1]]`, bottom-right causally.
        cu_q: (S + 1,) int32, where the segments begin in the row.
        cu_k: (S + 1,) int32, where the keys of the segments begin in `kv_index`.
        max_q: the longest segment.
        max_k: the longest list of keys.
        predict: (M,) int64, the row position whose hidden state predicts `target`.
        target: (M,) int64, the trained token ids, each once.
        term: (R,) int64, index into the M trained tokens.
        leaf: (R,) int64, the leaf that this term counts for.
        lengths: (L,) int64, trained tokens per leaf, those of the root included.
        first_leaf: tree n owns the leaves `first_leaf[n]` to `first_leaf[n + 1] - 1`.
        keys: the keys of the N trees.
        tokens: number of tokens without padding.
        host_ids: `input_ids` on the host, wherever the batch is.
        segments: the S segments as host integers: first one per leaf, in order, then one for the padding.
    """

    input_ids: Tensor
    position_ids: Tensor
    kv_index: Tensor
    cu_q: Tensor
    cu_k: Tensor
    max_q: int
    max_k: int
    predict: Tensor
    target: Tensor
    term: Tensor
    leaf: Tensor
    lengths: Tensor
    first_leaf: tuple[int, ...]
    keys: tuple[int, ...]
    tokens: int
    host_ids: Tensor
    segments: tuple[Segment, ...]

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch with its tensors on `device`; host integers stay on the host."""
        moved = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor) and field.name != "host_ids":
                moved[field.name] = upload(value, device)
        return replace(self, **moved)

    def leaf_sum(self, token_values: Tensor) -> Tensor:
        """Sum values of trained tokens (M,) over each leaf: (L,); shared root tokens count for every leaf."""
        # index_select, not [...]: its backward adds in a fixed order on the CPU, that of indexing does not.
        values = token_values.index_select(0, self.term)
        return values.new_zeros(len(self.lengths)).index_add(0, self.leaf, values)

    def leaf_positions(self) -> list[Tensor]:
        """Return for each of the L leaves the row positions of its whole sequence, root first.

        Models that cannot share a root run these sequences one by one. The last `segment.queries` of them are
        the leaf's own segment, so that every row position belongs to exactly one leaf (or to the padding).
        """
        sizes = [segment.keys for segment in self.segments]
        return list(self.kv_index.split(sizes)[: len(self.lengths)])

    def leaf_ends(self) -> Tensor:
        """Return the row position of each leaf's last token: (L,) int64 on the device of the batch."""
        ends = [segment.stop - 1 for segment in self.segments[: len(self.lengths)]]
        return upload(torch.tensor(ends, dtype=torch.int64), self.input_ids.device)


def upload(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Copy a tensor of the host to a device, without waiting for what the device is doing."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    # From memory that is not pinned, CUDA first lets everything before the copy finish.
    return tensor.pin_memory().to(device, non_blocking=True)


def grow(key: int, sequences: Sequence[Rendered]) -> Tree:
    """Make a tree of sequences: the root is their longest common prefix, and every leaf keeps a token.

    Tokens are common where both their ids and their `trained` flags agree.

    Raises:
        ValueError: no sequence, an empty one, or one whose first token is trained (nothing could predict it).
    """
    if not sequences or any(not sequence.ids for sequence in sequences):
        raise ValueError("a tree needs sequences, and each of them needs a token")
    if any(sequence.trained[0] for sequence in sequences):
        raise ValueError("the first token of a sequence cannot be trained: no token stands before it")
    columns = list(zip(*(zip(sequence.ids, sequence.trained, strict=True) for sequence in sequences)))
    size = 0
    while size < len(columns) - 1 and len(set(columns[size])) == 1:
        size += 1
    first = sequences[0]
    leaves = tuple(Leaf(sequence.ids[size:], sequence.trained[size:]) for sequence in sequences)
    return Tree(key, first.ids[:size], first.trained[:size], leaves)


def whole(tree: Tree, leaf: int) -> Rendered:
    """Root and one leaf of a tree as the sequence that they were grown from."""
    answer = tree.leaves[leaf]
    return Rendered(tree.root + answer.ids, tree.root_trained + answer.trained)


def single(key: int, sequence: Rendered) -> Tree:
    """Make a tree of one sequence: the root is what stands before the first trained token.

    Raises:
        ValueError: no token is trained, or the first one is (nothing could predict it).
    """
    first = sequence.trained.index(True)
    if first == 0:
        raise ValueError("the first token of a sequence cannot be trained: no token stands before it")
    leaf = Leaf(sequence.ids[first:], sequence.trained[first:])
    return Tree(key, sequence.ids[:first], sequence.trained[:first], (leaf,))


def shared(
    trees: Sequence[Tree], budget: int, *, shortest: int = SHORTEST_ROOT
) -> list[tuple[Tree, tuple[int, ...]]]:
    """Put trees of one leaf that begin alike into trees with several leaves, so that as few tokens as possible stay.

    In lexical order trees that begin alike are neighbours; the best way to cut that order into stretches is found by
    dynamic programming. The result depends on nothing but the arguments.

    Args:
        trees: N trees of one leaf each.
        budget: tokens of a tree with several leaves, at most.
        shortest: tokens that are worth sharing.

    Returns each new tree (its key is that of its first leaf) with the indices of the trees that its leaves were.
    """
    sequences = [whole(tree, 0) for tree in trees]
    columns = [tuple(zip(one.ids, one.trained, strict=True)) for one in sequences]
    order = sorted(range(len(trees)), key=lambda index: (columns[index], index))
    alike = [_alike(columns[a], columns[b]) for a, b in zip(order, order[1:])]
    least, cut = [0], [0]  # of the first n trees in order: the tokens, and where the last stretch begins
    for stop in range(1, len(order) + 1):
        sizes = len(columns[order[stop - 1]])
        best, begin = least[stop - 1] + sizes, stop - 1
        root = sizes - 1  # every leaf keeps a token
        for start in range(stop - 2, -1, -1):
            size = len(columns[order[start]])
            root, sizes = min(root, alike[start], size - 1), sizes + size
            tokens = sizes - root * (stop - start - 1)
            if root < shortest or tokens > budget:
                break
            if least[start] + tokens < best:
                best, begin = least[start] + tokens, start
        least.append(best)
        cut.append(begin)
    stretches: list[tuple[int, ...]] = []
    stop = len(order)
    while stop:
        stretches.append(tuple(order[cut[stop] : stop]))
        stop = cut[stop]
    return [
        (
            trees[rows[0]] if len(rows) == 1 else grow(trees[rows[0]].key, [sequences[row] for row in rows]),
            rows,
        )
        for rows in reversed(stretches)
    ]


def _alike(one: Sequence[object], other: Sequence[object]) -> int:
    """How many first items two sequences have in common."""
    return next((n for n, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


def apart(tree: Tree) -> Tree:
    """The same sequences with nothing shared: an empty root, and leaves that begin with the root."""
    leaves = (Leaf(tree.root + leaf.ids, tree.root_trained + leaf.trained) for leaf in tree.leaves)
    return Tree(tree.key, (), (), tuple(leaves))


def pack(trees: Sequence[Tree], budget: int) -> list[list[int]]:
    """Sort trees into packs of at most `budget` tokens by first fit, longest tree first.

    Returns the indices of the trees, pack by pack. The same trees give the same packs. A tree longer than the
    budget gets a pack of its own.

    Raises:
        ValueError: a budget below one token.
    """
    if budget < 1:
        raise ValueError(f"a pack needs a budget of at least one token, not {budget}")
    packs: list[list[int]] = []
    free: list[int] = []
    size, start = 0, 0
    for index in sorted(range(len(trees)), key=lambda index: (-trees[index].tokens, index)):
        if trees[index].tokens != size:
            size, start = trees[index].tokens, 0
        # What did not take the last tree of this size does not take this one either.
        while start < len(packs) and free[start] < size:
            start += 1
        if start == len(packs):
            packs.append([])
            free.append(budget)
        packs[start].append(index)
        free[start] -= size
    return packs


def order(n: int, seed: int, epoch: int) -> list[int]:
    """Return the order of `n` examples in this epoch: a permutation that depends on the arguments alone."""
    indices = list(range(n))
    random.Random(f"order of examples, seed {seed}, epoch {epoch}").shuffle(indices)
    return indices


class _Row:
    """The lists of a batch while trees are laid down one after the other."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.segments: list[Segment] = []
        self.predict: list[int] = []
        self.target: list[int] = []
        self.terms: list[tuple[int, int]] = []
        self.first_leaf = [0]

    def train(self, ids: Sequence[int], trained: Sequence[bool], predictors: Sequence[int]) -> list[int]:
        """Add the trained ones of these tokens and return their numbers among all trained tokens."""
        numbers = []
        for token, flag, predictor in zip(ids, trained, predictors, strict=True):
            if flag:
                numbers.append(len(self.target))
                self.predict.append(predictor)
                self.target.append(token)
        return numbers

    def lay(self, tree: Tree) -> None:
        """Append a tree: its root, then its leaves."""
        begin, root = len(self.ids), len(tree.root)
        self.ids.extend(tree.root)
        self.positions.extend(range(root))
        shared = self.train(tree.root, tree.root_trained, range(begin - 1, begin + root - 1))
        for number, leaf in enumerate(tree.leaves):
            start = len(self.ids)
            self.ids.extend(leaf.ids)
            self.positions.extend(range(root, root + len(leaf.ids)))
            predictors = [begin + root - 1, *range(start, len(self.ids) - 1)]
            own = self.train(leaf.ids, leaf.trained, predictors)
            self.terms.extend((term, self.first_leaf[-1] + number) for term in (*shared, *own))
            if number == 0:
                self.segments.append(Segment(begin, len(self.ids), begin, begin))
            else:
                self.segments.append(Segment(start, len(self.ids), begin, begin + root))
        self.first_leaf.append(self.first_leaf[-1] + len(tree.leaves))


def batch(trees: Sequence[Tree], *, pad_to: int = 1, pad_id: int = 0) -> Batch:
    """Pack trees into one row, in the order given, on the CPU.

    T becomes a multiple of `pad_to` by `pad_id` tokens that form a segment of their own.

    Raises:
        ValueError: no trees.
    """
    if not trees:
        raise ValueError("a batch needs at least one tree")
    row = _Row()
    for tree in trees:
        row.lay(tree)
    tokens = len(row.ids)
    padding = -tokens % pad_to
    if padding:
        row.ids.extend([pad_id] * padding)
        row.positions.extend(range(padding))
        row.segments.append(Segment(tokens, tokens + padding, tokens, tokens))
    kv_index: list[int] = []
    cu_q, cu_k = [0], [0]
    for segment in row.segments:
        kv_index.extend(range(segment.shared_start, segment.shared_stop))
        kv_index.extend(range(segment.start, segment.stop))
        cu_q.append(segment.stop)
        cu_k.append(len(kv_index))
    leaf = torch.tensor([leaf for _, leaf in row.terms], dtype=torch.int64)
    ids = torch.tensor([row.ids], dtype=torch.int64)
    return Batch(
        input_ids=ids,
        position_ids=torch.tensor([row.positions], dtype=torch.int64),
        kv_index=torch.tensor(kv_index, dtype=torch.int64),
        cu_q=torch.tensor(cu_q, dtype=torch.int32),
        cu_k=torch.tensor(cu_k, dtype=torch.int32),
        max_q=max(segment.queries for segment in row.segments),
        max_k=max(segment.keys for segment in row.segments),
        predict=torch.tensor(row.predict, dtype=torch.int64),
        target=torch.tensor(row.target, dtype=torch.int64),
        term=torch.tensor([term for term, _ in row.terms], dtype=torch.int64),
        leaf=leaf,
        lengths=torch.bincount(leaf, minlength=row.first_leaf[-1]),
        first_leaf=tuple(row.first_leaf),
        keys=tuple(tree.key for tree in trees),
        tokens=tokens,
        host_ids=ids,
        segments=tuple(row.segments),
    )
