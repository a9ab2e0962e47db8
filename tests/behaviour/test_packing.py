"""How pairs fall into micro-batches changes nothing: the same update for every token budget, in fp32 and NF4."""

from typing import NamedTuple

import pytest
import torch

from lite_align.data import forest
from lite_align.model.backbone import Backbone, Role
from lite_align.stages.passes import to_batch
from tests.stages import small

ROWS = small.rows(16, prompts=11)


class Update(NamedTuple):
    """What one optimiser step did: how many micro-batches, the gradient, the adapter after two steps, metrics."""

    batches: int
    gradient: torch.Tensor
    adapter: torch.Tensor
    loss: float


@pytest.fixture(scope="module", params=["none", "nf4"])
def model(request, tiny_llama) -> Backbone:
    return small.backbone(tiny_llama, quantization=request.param)


def move(model: Backbone) -> None:
    """An adapter that is not at B = 0, so that A has gradients too."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in model.parameters(Role.POLICY):
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)


def update(model: Backbone, lines: list[dict[str, str]], budget: int) -> Update:
    """Two steps from the same adapter, whatever was trained before."""
    before = model.adapter_tensors(Role.POLICY)
    try:
        recipe = small.recipe({"sft_weight": 0.2}, batch_size=8, tokens_per_microbatch=budget)
        stage = small.stage(model, lines, recipe)
        move(model)
        engine = small.engine(stage)
        engine.update(stage.window(0), stage.loss)
        gradient = engine.parameters.gradient.clone()
        engine.update(stage.window(1), stage.loss)
        loss = engine.logged()["loss"]
        return Update(len(stage.window(0).batches), gradient, engine.parameters.flat.detach().clone(), loss)
    finally:
        model.set_adapter_tensors(Role.POLICY, before)


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_every_budget_gives_the_same_update(model):
    whole = update(model, ROWS, 100_000)
    assert whole.batches == 1
    assert whole.gradient.norm() > 1e-3
    sizes = []
    for budget in (1, 200, 400):
        parts = update(model, ROWS, budget)
        sizes.append(parts.batches)
        assert apart(parts.gradient, whole.gradient) <= 1e-5
        assert apart(parts.adapter, whole.adapter) <= 1e-5
        assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    assert sizes[0] == 8  # one pair at a time against eight at once
    assert 8 > sizes[1] > sizes[2] > 1


def test_a_window_that_is_left_out_in_part_would_be_noticed(model):
    whole, fewer = update(model, ROWS, 100_000), update(model, ROWS[:15], 100_000)
    assert apart(fewer.gradient, whole.gradient) > 1e-3


def test_pairs_that_share_a_prompt_are_what_they_are_apart(model):
    lines = [dict(row, prompt="the quick brown fox asks a question?") for row in ROWS[:6]]
    trees = small.as_trees(small.as_pairs(lines), model.loaded.tokenizer)
    assert len({tree.root[:8] for tree in trees}) == 1
    with torch.no_grad():
        together = model.leaf_logps(to_batch(trees, model.device)).view(-1, 2)
        alone = torch.stack([model.leaf_logps(to_batch([tree], model.device)) for tree in trees])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-5)
    one_tree = forest.grow(
        0, [sequence for tree in trees for sequence in (small.whole(tree, 0), small.whole(tree, 1))]
    )
    with torch.no_grad():
        twelve_leaves = model.leaf_logps(to_batch([one_tree], model.device)).view(-1, 2)
    torch.testing.assert_close(twelve_leaves, alone, rtol=1e-6, atol=1e-5)


def test_the_order_of_pairs_inside_a_step_changes_nothing(model):
    trees = small.as_trees(small.as_pairs(ROWS), model.loaded.tokenizer)
    with torch.no_grad():
        forward = model.leaf_logps(to_batch(trees, model.device)).view(-1, 2)
        backward = model.leaf_logps(to_batch(trees[::-1], model.device)).view(-1, 2)
    torch.testing.assert_close(backward.flip(0), forward, rtol=1e-6, atol=1e-5)
