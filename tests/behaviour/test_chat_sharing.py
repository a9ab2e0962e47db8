"""Conversations with a common beginning, packed into shared trees, are what they are in rows of their own."""

import pytest
import torch

from lite_align.data import chats, forest
from lite_align.data.render import Renderer
from lite_align.data.types import Chat, Message, Source, Tree
from lite_align.model.backbone import Backbone, Role
from lite_align.recipe import TrainOn
from lite_align.stages.passes import to_batch
from tests.data import families
from tests.stages import small

TEMPLATES = ("chatml", "headers", "inst", "turns", "thinking")
QUESTION = "the quick brown fox asks a question and the lazy dog answers"
DIALOGUES = (
    (QUESTION, "hello world"),
    (QUESTION, "hello", "and the dog", "the lazy dog"),
    (QUESTION, "hello", "and the dog", "quick", "why", "the world answers"),
    (QUESTION, "a fox"),
    ("hello world", "the fox"),
    (QUESTION + " now", "a dog"),
)


def trees_of(template: str, way: TrainOn = "all_turns") -> list[Tree]:
    rows = [
        Chat(
            Source("rows.jsonl", n),
            messages=tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(dialogue)),
        )
        for n, dialogue in enumerate(DIALOGUES)
    ]
    found = chats.render(Renderer(families.tokenizer(template), trusted=True), rows, 500, train_on=way)
    return [forest.single(n, one.tokens) for n, one in enumerate(found) if isinstance(one, chats.ChatTokens)]


@pytest.fixture(scope="module", params=["none", "nf4"])
def model(request, tiny_llama) -> Backbone:
    made = small.backbone(tiny_llama, quantization=request.param)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # away from B = 0, so that A has gradients too
        for _, parameter in made.parameters(Role.POLICY):
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return made


Members = tuple[Tree, tuple[int, ...]]
"""A tree and the rows that its leaves are."""


def measured(model: Backbone, batches: list[list[Members]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs by row, and the gradient of a loss in which each row has a weight of its own."""
    named = model.parameters(Role.POLICY)
    for _, parameter in named:
        parameter.grad = None
    found: dict[int, torch.Tensor] = {}
    for members in batches:
        logps = model.leaf_logps(to_batch([tree for tree, _ in members], model.device))
        rows = [row for _, of_tree in members for row in of_tree]
        torch.stack([logp * (1 + row % 3) for row, logp in zip(rows, logps)]).sum().backward()
        found |= dict(zip(rows, logps.detach()))
    gradient = torch.cat([p.grad.flatten() for _, p in named if p.grad is not None])
    return torch.stack([found[row] for row in sorted(found)]), gradient


@pytest.mark.parametrize("way", ["all_turns", "all_tokens"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_shared_and_packed_is_what_separate_rows_are(model, template, way):
    trees = trees_of(template, way)
    together = forest.shared(trees, 1000)
    assert max(len(rows) for _, rows in together) >= 2
    assert sum(tree.tokens for tree, _ in together) < 0.9 * sum(tree.tokens for tree in trees)
    expected, expected_gradient = measured(model, [[(tree, (tree.key,))] for tree in trees])
    logps, gradient = measured(model, [together])
    torch.testing.assert_close(logps, expected, rtol=1e-6, atol=1e-5)
    assert (gradient - expected_gradient).norm() <= 1e-4 * expected_gradient.norm()
    model.recompute(2)
    try:
        _, again = measured(model, [together])
    finally:
        model.recompute(0)
    assert torch.equal(again, gradient)


def test_an_answer_in_the_wrong_tree_would_be_noticed(model):
    trees = trees_of("chatml")
    wrong = forest.grow(0, [small.whole(trees[0], 0), small.whole(trees[4], 0)])
    broken = Tree(0, wrong.root, wrong.root_trained, (trees[4].leaves[0], trees[0].leaves[0]))
    expected, _ = measured(model, [[(trees[0], (0,))], [(trees[4], (4,))]])
    logps, _ = measured(model, [[(broken, (4, 0))]])
    assert (logps - expected).abs().max() > 1e-2
