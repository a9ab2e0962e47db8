"""Reference log-probs by content: computed once for a model and some token ids, then shared by every run.

The key holds what the numbers depend on (base weights, quantisation, dtype, reference adapter, attention, exact
token ids and masks) and nothing else: a sweep over beta, learning rate, rank or seed recomputes nothing.
"""

import hashlib
import json
import random
import sqlite3
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import torch

from lite_align.data import forest
from lite_align.data.types import Tree
from lite_align.errors import DiskFull, TrainingStopped, UserError
from lite_align.model.backbone import Backbone, Role
from lite_align.model.folder import cache_root
from lite_align.stages.passes import in_packs, to_batch
from lite_align.train.faults import TokenBudget
from lite_align.view import View

CHECKED_ROWS = 8
# Two forwards of one model in other packs differ by rounding: at most about this much a token, with either sign,
# so a sum over n tokens differs by this times the root of n.
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


def tolerance(dtype: torch.dtype, tokens: int) -> float:
    """Largest difference in nats that rounding explains for the log-prob of an answer of `tokens` tokens."""
    return ROUNDING[dtype] * max(1, tokens) ** 0.5


def tree_digest(tree: Tree) -> bytes:
    """Sha256 over the token ids and masks of a tree; its number in the data set does not matter."""
    content = [
        tree.root,
        [int(t) for t in tree.root_trained],
        [[leaf.ids, [int(t) for t in leaf.trained]] for leaf in tree.leaves],
    ]
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).digest()


def forest_digest(trees: Sequence[Tree]) -> str:
    """Sha256 over all rows as tokens, in order: another tokenizer, split or held-out file is another run."""
    return hashlib.sha256(b"".join(map(tree_digest, trees))).hexdigest()


class ReferenceCache:
    """Leaf log-probs on disk, one SQLite file for each reference identity; several runs may share it.

    Args:
        folder: where the files are.
        identity: everything besides the token ids that the values depend on.

    Raises (every method):
        UserError: the file is damaged, is not ours, or cannot be written.
        DiskFull: no space is left for it.
    """

    def __init__(self, folder: Path, identity: Mapping[str, str]) -> None:
        text = json.dumps(dict(identity), sort_keys=True)
        self.path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.sqlite"
        with self._open() as database, database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS leaf_logps (tree BLOB PRIMARY KEY, logps BLOB NOT NULL)"
            )

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """The database for the length of a block; what goes wrong with the file becomes an error for people."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=60)) as database:
                yield database
        except (OSError, sqlite3.Error, struct.error) as error:
            if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                raise DiskFull(
                    f"The reference log-probs do not fit on the disk of {self.path}.",
                    remedy="Make room, or set LITE_ALIGN_CACHE to a folder on another disk.",
                ) from error
            raise UserError(
                f"The reference cache {self.path} cannot be used: {error}.",
                remedy="Delete that file (it is computed again), or set LITE_ALIGN_CACHE to another folder.",
            ) from error

    def lookup(self, digests: Sequence[bytes]) -> dict[bytes, tuple[float, ...]]:
        """Return the stored log-probs of the digests that are there, one float32 for each leaf."""
        found: dict[bytes, tuple[float, ...]] = {}
        with self._open() as database:
            for start in range(0, len(digests), 500):
                part = digests[start : start + 500]
                marks = ",".join("?" * len(part))
                rows = database.execute(f"SELECT tree, logps FROM leaf_logps WHERE tree IN ({marks})", part)
                found |= {tree: struct.unpack(f"<{len(logps) // 4}f", logps) for tree, logps in rows}
        return found

    def store(self, values: Mapping[bytes, Sequence[float]]) -> None:
        """Add log-probs in one transaction; a crash leaves all of them or none."""
        rows = [(digest, struct.pack(f"<{len(logps)}f", *logps)) for digest, logps in values.items()]
        with self._open() as database, database:
            database.executemany("INSERT OR REPLACE INTO leaf_logps VALUES (?, ?)", rows)


def compute(backbone: Backbone, trees: Sequence[Tree]) -> list[tuple[float, ...]]:
    """Leaf log-probs of trees in one packed pass under the REFERENCE role, without gradients."""
    batch = to_batch(trees, backbone.device)
    with torch.no_grad(), backbone.role(Role.REFERENCE):
        logps = backbone.leaf_logps(batch).float().tolist()
    return [tuple(logps[a:b]) for a, b in zip(batch.first_leaf, batch.first_leaf[1:])]


def fill(
    backbone: Backbone,
    trees: Sequence[Tree],
    cache: ReferenceCache,
    *,
    budget: TokenBudget,
    view: View,
) -> tuple[list[tuple[float, ...]], int]:
    """Return the reference log-probs of all trees in order, and how many of them were in the cache.

    The packs are planned over all different trees and each is stored when it is done, so a killed pass goes on
    where it stopped with the same packs, and so with the same bits (unless memory ran out in between).

    Raises:
        TooLittleMemory: memory runs out with one tree at a time.
    """
    digests = [tree_digest(tree) for tree in trees]
    known = cache.lookup(digests)
    hits = sum(digest in known for digest in digests)
    different = dict(zip(digests, trees, strict=True))
    order = list(different)
    packs = forest.pack(list(different.values()), budget.tokens)
    missing = [[i for i in pack if order[i] not in known] for pack in packs]
    computed = in_packs(
        list(different.values()),
        list(filter(None, missing)),
        lambda trees: compute(backbone, trees),
        budget,
        where="the reference pass",
    )
    with view.bar("reference", len(different), "pairs", done=len(different.keys() & known)) as bar:
        for pack, values in computed:
            fresh = {order[i]: logps for i, logps in zip(pack, values, strict=True)}
            cache.store(fresh)
            known |= fresh
            bar.advance(len(pack))
    return [known[digest] for digest in digests], hits


def verify(
    backbone: Backbone,
    trees: Sequence[Tree],
    values: Sequence[tuple[float, ...]],
    *,
    seed: int,
    budget: TokenBudget,
) -> float:
    """Recompute eight random trees and return the largest difference to the cached values, in nats.

    Raises:
        TooLittleMemory: memory runs out with one tree.
        TrainingStopped: the cache does not belong to this model and data.
    """
    chosen = random.Random(seed).sample(range(len(trees)), min(CHECKED_ROWS, len(trees)))
    alone = [[i] for i in chosen]
    worst = 0.0
    for (i,), (live,) in in_packs(
        trees, alone, lambda pack: compute(backbone, pack), budget, where="the check of the reference"
    ):
        difference = max(abs(a - b) for a, b in zip(live, values[i], strict=True))
        worst = max(worst, difference)
        if difference <= tolerance(backbone.dtype, trees[i].tokens):  # not >=: NaN must not pass
            continue
        raise TrainingStopped(
            f"The cached reference log-prob of a pair is {difference:.3g} nats away from the live reference.",
            remedy=f"Delete {cache_root() / 'reference'} and run again; if it comes back, please report it.",
        )
    return worst
