"""Weights of rows in every stage that learns from preferences: 3 is the row thrice, 0 is the row left out."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lite_align.data.formats.thumbs import take_apart
from lite_align.data.types import Pair
from lite_align.model.backbone import Backbone, Role
from lite_align.stages.reward import RewardModel
from lite_align.stages.stage import Stage
from tests.stages import small, small_reward

MARGINS = (0.5, 2.0, 1.0)
FIRST, SECOND, THIRD = (
    replace(pair, margin=margin) for pair, margin in zip(small.as_pairs(small.rows(3)), MARGINS, strict=True)
)
WEIGHTED = [replace(FIRST, weight=3.0), SECOND, replace(THIRD, weight=0.0)]
REPEATED = [FIRST, FIRST, FIRST, SECOND]


def dpo(folder: Path) -> tuple[Backbone, Callable[[Sequence[Pair]], Stage]]:
    model = small.backbone(folder)
    options = small.recipe({"sft_weight": 0.2})

    def stage(pairs: Sequence[Pair]) -> Stage:
        return small.split(
            model, small.pair_set(model, pairs, small.as_trees(pairs, model.loaded.tokenizer)), options, 0
        )

    return model, stage


def kto(folder: Path) -> tuple[Backbone, Callable[[Sequence[Pair]], Stage]]:
    """Pairs taken as thumbs, measured from 0: a reference point that is estimated from the rows moves with them."""
    model = small.backbone(folder)
    options = small.recipe({"name": "apo_zero_unpaired", "sft_weight": 0.2})
    return model, lambda pairs: small.thumb_stage(model, take_apart(pairs), options, steps=1)


def reward(folder: Path) -> tuple[Backbone, Callable[[Sequence[Pair]], Stage]]:
    model = small_reward.backbone(folder)
    options = small_reward.recipe({"margin": True, "center_rewards_coefficient": 0.1})
    return model, lambda pairs: RewardModel(
        model, options, small_reward.scored(pairs, model.loaded.tokenizer), []
    )


@pytest.mark.parametrize(("build", "role"), [(dpo, Role.POLICY), (kto, Role.POLICY), (reward, Role.REWARD)])
def test_a_weight_of_three_is_the_row_thrice_and_a_weight_of_zero_the_row_left_out(
    build, role, tiny_llama
) -> None:
    model, stage_of = build(tiny_llama)
    generator = torch.Generator().manual_seed(1)
    named = model.parameters(role)
    for _, parameter in named:  # a fresh adapter is zero, and half of its gradients too
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)

    def learned(pairs: Sequence[Pair]) -> tuple[float, list[torch.Tensor]]:
        stage = stage_of(pairs)
        window = stage.window(0)
        total = torch.stack([stage.loss(batch).total for batch in window.batches]).sum() / window.weight
        gradients = torch.autograd.grad(total, [parameter for _, parameter in named], allow_unused=True)
        return total.item(), [gradient for gradient in gradients if gradient is not None]

    (loss, gradients), (expected, separate) = learned(WEIGHTED), learned(REPEATED)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert abs(loss - learned([FIRST, SECOND])[0]) > 1e-4  # or weights of 1 would pass too
    assert gradients
    for mine, other in zip(gradients, separate, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)
