"""The SFT stage: its loss against the definition, the weight of a step, sharing, dropout."""

from typing import Any

import pytest
import torch

from lite_align.data.render import Renderer
from lite_align.data.types import Tree
from lite_align.model.backbone import Backbone, Role
from lite_align.recipe import DataOptions, LoraOptions, SFTRecipe, SpeedOptions
from lite_align.stages import rows as rows_of
from lite_align.stages.chats import chats
from lite_align.stages.sft import SFT, by_step, trained_tokens
from tests.stages import small

LINES = small.rows(18, prompts=7)  # two steps of 8 and one of 2, with prompts that come again
DROPOUT = LoraOptions(rank=8, alpha=16.0, dropout=0.3)


def trees_of(model: Backbone, lines: list[dict[str, str]]) -> list[Tree]:
    kind = chats("all_turns")
    renderer = Renderer(model.loaded.tokenizer)
    return rows_of.render(kind, small.as_chats(lines), renderer, DataOptions(max_length=512)).trees


def recipe(*, share: bool = True, lora: LoraOptions = small.SHAPE, **train: Any) -> SFTRecipe:
    options = small.recipe(None, **train).train
    return SFTRecipe(lora=lora, train=options, speed=SpeedOptions(share_prompts=share))


def stage(model: Backbone, the_recipe: SFTRecipe, lines: list[dict[str, str]] = LINES) -> SFT:
    trees = trees_of(model, lines)
    return SFT(model, the_recipe, trees, trees)


def move(model: Backbone) -> None:
    """An adapter that is not at B = 0, so that A has gradients too."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in model.parameters(Role.POLICY):
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)


@pytest.fixture(scope="module", params=["none", "nf4"])
def model(request, tiny_llama) -> Backbone:
    made = small.backbone(tiny_llama, quantization=request.param)
    move(made)
    return made


@pytest.fixture
def dropping(tiny_llama) -> Backbone:
    made = small.backbone(tiny_llama, lora=DROPOUT)
    move(made)
    return made


def by_definition(model: Backbone, trees: list[Tree]) -> torch.Tensor:
    """Mean negative log-prob of the trained tokens, one row after the other through the model's own forward."""
    losses = []
    for tree in trees:
        row = small.whole(tree, 0)
        logits = model.model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0].float()
        logps = logits.log_softmax(-1)
        losses += [-logps[n - 1, row.ids[n]] for n, trained in enumerate(row.trained) if trained]
    return torch.stack(losses).mean()


def gradient_of(model: Backbone, loss: torch.Tensor) -> torch.Tensor:
    values = torch.autograd.grad(loss, [parameter for _, parameter in model.parameters(Role.POLICY)])
    return torch.cat([value.flatten() for value in values])


def step(the_stage: SFT, number: int) -> tuple[float, torch.Tensor]:
    """Mean loss and gradient of an optimiser step."""
    window = the_stage.window(number)
    losses = [the_stage.loss(batch) for batch in window.batches]
    total = torch.stack([loss.total for loss in losses]).sum() / window.weight
    mean = sum(float(loss.sums["loss"]) for loss in losses) / sum(loss.count for loss in losses)
    return mean, gradient_of(the_stage.backbone, total)


@pytest.mark.parametrize("number", [0, 2])
def test_a_step_is_the_mean_over_all_its_trained_tokens(model, number):
    """8 x 1, several passes and 1 x 8, shared prompts and separate ones, an incomplete last step: all the same."""
    rows = by_step(len(LINES), recipe(), 0)[number]
    trees = [trees_of(model, LINES)[row] for row in rows]
    expected = by_definition(model, trees)
    wanted, sizes = gradient_of(model, expected), set()
    for share, budget in ((True, 1), (False, 1), (True, 150), (True, 300), (False, 300), (True, 100_000)):
        the_stage = stage(model, recipe(share=share, tokens_per_microbatch=budget))
        window = the_stage.window(number)
        assert sorted(key for batch in window.batches for key in batch.keys) == sorted(rows)
        assert window.weight == sum(map(trained_tokens, trees))
        sizes.add(len(window.batches))
        loss, gradient = step(the_stage, number)
        assert loss == pytest.approx(float(expected.detach()), rel=1e-6)
        assert (gradient - wanted).norm() <= 1e-5 * wanted.norm()
    assert {1, len(rows)} <= sizes


def test_a_mean_of_means_would_be_noticed(model):
    the_stage = stage(model, recipe(tokens_per_microbatch=1))
    window = the_stage.window(0)
    losses = [the_stage.loss(batch) for batch in window.batches]
    wrong = torch.stack([loss.total / loss.count for loss in losses]).mean()
    wanted = gradient_of(
        model, by_definition(model, [the_stage.train[batch.keys[0]] for batch in window.batches])
    )
    assert (gradient_of(model, wrong) - wanted).norm() > 1e-2 * wanted.norm()


def test_every_row_is_seen_once_an_epoch_in_another_order(model):
    the_stage = stage(model, recipe())
    epochs = [
        [
            key
            for n in range(3)
            for batch in the_stage.window(3 * epoch + n).batches
            for key in sorted(batch.keys)
        ]
        for epoch in range(2)
    ]
    assert [sorted(keys) for keys in epochs] == [list(range(18))] * 2
    assert epochs[0] != epochs[1]
    assert (the_stage.steps_per_epoch, the_stage.epoch(6)) == (3, 2.0)


def test_processes_share_a_step_and_its_weight(model):
    whole = stage(model, recipe()).window(0)
    halves = [
        SFT(model, recipe(), trees_of(model, LINES), [], process=(number, 2)).window(0) for number in (0, 1)
    ]
    assert {half.weight for half in halves} == {whole.weight}
    keys = sorted(key for half in halves for batch in half.batches for key in batch.keys)
    assert keys == sorted(key for batch in whole.batches for key in batch.keys)


def test_prompts_that_come_again_are_computed_once(model):
    lines = [dict(row, prompt=LINES[0]["prompt"] + " " + "why " * 20) for row in LINES[:8]]
    shared, apart = (
        sum(batch.tokens for batch in stage(model, recipe(share=share), lines).window(0).batches)
        for share in (True, False)
    )
    assert shared < 0.6 * apart


def test_evaluation_weighs_every_token_the_same(model):
    the_stage = stage(model, recipe(tokens_per_microbatch=200))
    found = the_stage.evaluate()
    with torch.no_grad():
        assert found["loss"] == pytest.approx(float(by_definition(model, the_stage.held_out)), rel=1e-6)
    rows = the_stage.held_out_scores(Role.POLICY)
    assert [row.tokens for row in rows] == list(map(trained_tokens, the_stage.held_out))
    hits = 0
    for tree in the_stage.held_out:
        row = small.whole(tree, 0)
        with torch.no_grad():
            best = model.model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0].argmax(-1)
        hits += sum(int(best[n - 1]) == row.ids[n] for n, trained in enumerate(row.trained) if trained)
    assert found["mean_token_accuracy"] == pytest.approx(hits / sum(row.tokens for row in rows))
    assert SFT(model, recipe(), [], []).evaluate() == {}


# Dropout.


def test_dropout_is_of_training_alone(dropping):
    the_stage = stage(dropping, recipe(lora=DROPOUT))
    losses = {float(the_stage.loss(the_stage.window(0).batches[0]).total.detach()) for _ in range(3)}
    assert len(losses) == 3
    before = torch.get_rng_state()
    assert the_stage.evaluate() == the_stage.evaluate()
    assert the_stage.held_out_scores(Role.POLICY) == the_stage.held_out_scores(Role.POLICY)
    prompts = [[1, 2, 3]]
    answers = [
        dropping.generate(prompts, stop_ids=frozenset(), max_new_tokens=8, temperature=0.0) for _ in range(2)
    ]
    assert answers[0] == answers[1]
    assert torch.equal(torch.get_rng_state(), before)
    # Without dropout it is the model that PEFT's own eval mode gives.
    dropping.model.eval()
    with torch.no_grad():
        expected = float(by_definition(dropping, the_stage.held_out))
    dropping.model.train()
    assert the_stage.evaluate()["loss"] == pytest.approx(expected, rel=1e-6)


def test_what_is_recomputed_drops_the_same(dropping):
    the_stage = stage(dropping, recipe(lora=DROPOUT))
    gradients = []
    for blocks in (0, 1, 2):
        dropping.recompute(blocks)
        torch.manual_seed(3)
        gradients.append(step(the_stage, 0)[1])
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])
    torch.manual_seed(4)
    assert not torch.equal(step(the_stage, 0)[1], gradients[0])
