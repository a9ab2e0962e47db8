"""The proof of the saved reward model: exact when it is right, an error when head or adapter are not those."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from lite_align.data.comparisons import Scored
from lite_align.errors import TrainingStopped
from lite_align.model.backbone import Backbone, Role
from lite_align.recipe import ModelOptions, RewardRecipe
from lite_align.stages import reload
from tests.stages import small, small_reward


@pytest.fixture
def saved(tiny_llama: Path, tmp_path: Path) -> tuple[Backbone, RewardRecipe, Path, list[Scored]]:
    """A reward model whose adapter and head have moved, its recipe, its run folder, and pairs."""
    backbone = small_reward.backbone(tiny_llama)
    generator = torch.Generator().manual_seed(5)
    for _, parameter in backbone.parameters(Role.REWARD):
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    (tmp_path / "adapters").mkdir()
    backbone.save_adapter(Role.REWARD, tmp_path / "adapters" / "reward")
    options = {"name": str(tiny_llama), "quantization": "none", "dtype": "float32"}
    recipe = small_reward.recipe().model_copy(update={"model": ModelOptions.model_validate(options)})
    pairs = small_reward.scored(small_reward.compared(2, 3), backbone.loaded.tokenizer)
    return backbone, recipe, tmp_path, pairs


def change_head(run: Path, change) -> None:
    file = run / "adapters" / "reward" / "head.safetensors"
    save_file({name: change(value) for name, value in load_file(file).items()}, file)


def test_a_fresh_process_gives_other_scores_if_the_head_was_changed(saved) -> None:
    """That it gives the same ones otherwise is asserted of every reward run (test_train_reward.py)."""
    backbone, recipe, run, pairs = saved
    change_head(run, lambda head: head * (1 + 1e-6))
    with pytest.raises(TrainingStopped, match="LA501: the saved reward model gives other scores"):
        reload.prove(backbone, recipe, run, pairs)


def test_a_process_that_fails_says_why(saved, monkeypatch) -> None:
    backbone, recipe, run, pairs = saved
    failed = SimpleNamespace(returncode=1, stdout="", stderr="a\nb\nc\nModelError: no scalar head\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(TrainingStopped, match="could not be loaded by a fresh process") as told:
        reload.prove(backbone, recipe, run, pairs)
    assert list(told.value.details) == ["b", "c", "ModelError: no scalar head"]


def test_without_memory_for_a_second_base_this_process_loads_again(saved, monkeypatch) -> None:
    """The other process answers null; here the adapter is overwritten, loaded, and in the end as it was."""
    backbone, recipe, run, pairs = saved
    before = backbone.adapter_tensors(Role.REWARD)
    orders: list[dict] = []

    def short(command, *, input: str, **_):
        orders.append(json.loads(input))
        return SimpleNamespace(returncode=0, stdout="a warning\nnull\n", stderr="")

    monkeypatch.setattr(subprocess, "run", short)
    proof = reload.prove(backbone, recipe, run, pairs)
    assert proof["largest_difference"] == 0.0
    reload.show(proof, small.silent())
    assert proof["process"].startswith("this one")
    assert orders[0]["recipe"]["train"]["seed"] == recipe.train.seed
    change_head(run, torch.zeros_like)
    with pytest.raises(TrainingStopped, match="other scores"):
        reload.prove(backbone, recipe, run, pairs)
    change_head(run, lambda head: head[:3].clone())
    with pytest.raises(TrainingStopped, match="could not be loaded"):
        reload.prove(backbone, recipe, run, pairs)
    after = backbone.adapter_tensors(Role.REWARD)
    assert all(torch.equal(after[name], value) for name, value in before.items())
