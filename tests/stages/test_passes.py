"""Packs that run out of memory, and trees whose prompts are not shared."""

from contextlib import nullcontext
from itertools import chain
from pathlib import Path

import pytest
import torch

from lite_align.data import forest
from lite_align.data.types import Leaf, Tree
from lite_align.errors import TooLittleMemory
from lite_align.model.backbone import Backbone, Role
from lite_align.stages.passes import batches, in_packs, laid_out, leaf_logps
from lite_align.train.faults import TokenBudget
from tests import finished
from tests.stages import small

# Ten tokens each: a root of 4 and leaves of 3.
TREES = [
    Tree(key, (1, 2, 3, key + 10), (False,) * 4, (Leaf((5, 6, 7), (True,) * 3), Leaf((8, 9, 7), (True,) * 3)))
    for key in range(7)
]


class Device:
    """Knows how many tokens it has room for, and which trees it has seen in each pass."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.seen: list[list[int]] = []

    def work(self, trees: list[Tree]) -> list[int]:
        self.seen.append([tree.key for tree in trees])
        if sum(tree.tokens for tree in trees) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return [100 + tree.key for tree in trees]


def run(device: Device, budget: TokenBudget, packs: list[list[int]]) -> dict[int, int]:
    done = in_packs(TREES, packs, device.work, budget, where="the evaluation")
    return {i: value for pack, values in done for i, value in zip(pack, values, strict=True)}


def test_enough_memory_keeps_the_packs():
    device, budget = Device(100), TokenBudget(30)
    assert run(device, budget, [[6, 0], [3, 1, 2]]) == {i: 100 + i for i in (6, 0, 3, 1, 2)}
    assert device.seen == [[6, 0], [3, 1, 2]]
    assert budget.tokens == 30


def test_what_is_left_is_packed_again_and_nothing_is_done_twice():
    told = []
    device, budget = Device(20), TokenBudget(70, tell=told.append)
    assert run(device, budget, [[0], [1, 2, 3, 4, 5, 6]]) == {i: 100 + i for i in range(7)}
    assert [len(keys) for keys in device.seen] == [1, 6, 3, 1, 1, 1, 1, 1, 1]  # 60 -> 30 -> 15 tokens
    made = [keys for keys in device.seen if 10 * len(keys) <= device.room]
    assert sorted(chain(*made)) == list(range(7))
    assert [(lowered.before, lowered.after) for lowered in told] == [(70, 30), (30, 15)]
    assert told[0].where == "the evaluation"


def test_one_tree_that_does_not_fit_ends_it():
    with pytest.raises(TooLittleMemory, match="the evaluation"):
        run(Device(9), TokenBudget(70), [[0, 1]])


def test_batches_keep_to_the_tokens():
    made = batches(TREES, 25, torch.device("cpu"))
    assert [batch.tokens for batch in made] == [20, 20, 20, 10]
    assert batches([], 25, torch.device("cpu")) == []


def test_prompts_are_shared_or_not():
    assert laid_out(TREES[:2], share_prompts=True) == TREES[:2]
    (alone,) = laid_out(TREES[:1], share_prompts=False)
    assert alone.tokens == 14
    assert alone.root == ()
    assert [leaf.ids for leaf in alone.leaves] == [(1, 2, 3, 10, 5, 6, 7), (1, 2, 3, 10, 8, 9, 7)]
    batch = forest.batch([alone])
    assert batch.position_ids.tolist() == [[*range(7), *range(7)]]
    assert [(s.start, s.stop, s.shared_stop - s.shared_start) for s in batch.segments] == [
        (0, 7, 0),
        (7, 14, 0),
    ]


def test_log_probs_come_in_the_order_of_the_trees_though_memory_runs_out(monkeypatch: pytest.MonkeyPatch):
    """A stand-in for the model: the log-prob of a leaf is the number of its tree and of the leaf."""

    class Stub:
        device = torch.device("cpu")

        def role(self, role: Role) -> nullcontext[None]:
            assert role is Role.POLICY
            return nullcontext()

        def leaf_logps(self, batch: forest.Batch) -> torch.Tensor:
            if len(batch.keys) > 2:
                raise torch.OutOfMemoryError("out of memory")
            assert not torch.is_grad_enabled()
            return torch.tensor([[10.0 * key, 10.0 * key + 1] for key in batch.keys]).flatten()

    told: list[int] = []
    found = leaf_logps(Stub(), Role.POLICY, TREES, TokenBudget(60), where="here", advance=told.append)  # type: ignore[arg-type]
    assert found == [[10.0 * key, 10.0 * key + 1] for key in range(7)]
    assert sum(told) == 7


def test_log_probs_are_those_of_one_tree_at_a_time(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch):
    """Memory runs out at the second pack: the first is kept, the rest is packed anew, all in order."""
    model = small.backbone(tiny_llama)
    finished.move(model, Role.POLICY, 0.1)
    sizes = [1, 5, 2, 3, 1, 4, 2]
    trees = [
        Tree(
            n, (1, 20 + n), (False,) * 2, tuple(Leaf((30 + n + i,) * size, (True,) * size) for i in range(2))
        )
        for n, size in enumerate(sizes)
    ]
    with torch.no_grad(), model.role(Role.POLICY):
        expected = [model.leaf_logps(forest.batch([tree])).tolist() for tree in trees]
    plain, packs, advances = Backbone.leaf_logps, [], []

    def short(self: Backbone, batch: forest.Batch) -> torch.Tensor:
        packs.append(list(batch.keys))
        if len(packs) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(self, batch)

    monkeypatch.setattr(Backbone, "leaf_logps", short)
    with model.role(Role.REFERENCE):
        found = leaf_logps(
            model, Role.POLICY, trees, TokenBudget(24), where="the evaluation", advance=advances.append
        )
        assert model.current_role is Role.REFERENCE
    assert list(chain(*found)) == pytest.approx(list(chain(*expected)), abs=1e-5)
    assert [len(logps) for logps in found] == [2] * 7
    done = [keys for number, keys in enumerate(packs) if number != 1]
    assert sorted(chain(*done)) == list(range(7))
    assert advances == [len(keys) for keys in done]
    assert len(done) > 2
