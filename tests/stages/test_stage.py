"""What all stages have in common, on a stage that does nothing else."""

from typing import Any

import pytest

from lite_align.data.types import Leaf, Tree
from lite_align.model.backbone import Role
from lite_align.recipe import SFTRecipe, TrainOptions
from lite_align.stages.stage import Stage
from lite_align.train.engine import Loss, Window
from lite_align.train.faults import TokenBudget


class Adapters:
    """A backbone that only keeps adapters."""

    def __init__(self) -> None:
        self.kept: dict[Role, Any] = {Role.POLICY: {"a": 1}, Role.REWARD: {"b": 2}}

    def adapter_tensors(self, role: Role) -> Any:
        return self.kept[role]

    def set_adapter_tensors(self, role: Role, tensors: Any) -> None:
        self.kept[role] = tensors


class Plain(Stage[SFTRecipe, Any]):
    name = "plain"
    examples = 10  # pyright: ignore[reportAssignmentType]

    def window(self, step: int) -> Window[Any]:
        return Window([], 0.0)

    def loss(self, batch: Any) -> Loss:
        raise NotImplementedError

    def evaluate(self) -> dict[str, float]:
        return {}


class Scoring(Plain):
    role = Role.REWARD


def make(kind: type[Plain] = Plain, **settings: Any) -> Plain:
    options = TrainOptions(batch_size=4, tokens_per_microbatch=25)
    backbone: Any = Adapters()
    return kind(backbone, SFTRecipe(train=options), **settings)


def test_the_last_step_of_an_epoch_may_be_smaller():
    stage = make()
    assert stage.steps_per_epoch == 3
    assert [stage.epoch(step) for step in (0, 3, 6)] == [0, 1, 2]


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_processes_share_a_window_without_gaps(processes: int):
    parts = [make(process=(number, processes)).own_part("abcdef") for number in range(processes)]
    assert sorted("".join("".join(part) for part in parts)) == list("abcdef")


def test_passes_keep_within_the_budget_as_it_stands():
    trees = [Tree(key, (1, 2, 3), (False,) * 3, (Leaf((4, 5), (True, True)),)) for key in range(9)]

    def keys(pack: list[Tree]) -> list[int]:
        return [tree.key for tree in pack]

    for budget, most in ((None, 5), (TokenBudget(10), 2)):  # trees of 5 tokens: the recipe has room for 25
        done = list(make(budget=budget).in_passes(trees, keys, "the evaluation"))
        assert sorted(i for numbers, _ in done for i in numbers) == list(range(9))
        assert all(numbers == found for numbers, found in done)
        assert max(len(numbers) for numbers, _ in done) == most


@pytest.mark.parametrize(("kind", "role"), [(Plain, Role.POLICY), (Scoring, Role.REWARD)])
def test_the_state_is_the_adapter_of_the_trained_role(kind: type[Plain], role: Role):
    stage = make(kind)
    assert stage.adapters() == {role.value: stage.backbone.adapter_tensors(role)}
    other = next(one for one in (Role.POLICY, Role.REWARD) if one is not role)
    before = stage.backbone.adapter_tensors(other)
    new: Any = {"c": 3}
    stage.load_adapters({role.value: new})
    assert stage.backbone.adapter_tensors(role) == new
    assert stage.backbone.adapter_tensors(other) == before
