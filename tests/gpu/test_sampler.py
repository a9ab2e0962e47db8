"""Sampling on CUDA: graphs give the tokens of separate steps, and without a GPU the same tests run eagerly."""

import pytest
import torch

from lite_align.model.generate import generate
from lite_align.model.replay import CudaGraphs, Eager, Replayed, runner_of
from lite_align.model.sampler import sample
from tests.model.small_models import CONFIGS, from_config

CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")],
)
PROMPTS = [(1, 20, 30, 40, 50, 60, 70), (1, 9), (1, 33, 44, 55), (200,), tuple(range(5, 25))]
STOPS = set(range(0, 384, 24))


@pytest.mark.parametrize(
    ("device", "kind"),
    [("cpu", "sliding"), *(pytest.param("cuda", kind, marks=CUDA.marks) for kind in CONFIGS)],
)
def test_captured_steps_equal_eager_ones(device: str, kind: str):
    model = from_config(kind).to(device)
    runner = runner_of(model)
    arguments = {"samples": 4, "stop_ids": STOPS, "max_new_tokens": 48, "temperature": 2.0, "batch_size": 12}
    found = sample(model, PROMPTS, runner=runner, **arguments)
    expected = sample(model, PROMPTS, runner=Eager(), **arguments)
    assert [[a.ids for a in group] for group in found] == [[a.ids for a in group] for group in expected]
    assert not runner.note
    assert isinstance(runner, CudaGraphs) == (device == "cuda")
    greedy = {"stop_ids": STOPS, "max_new_tokens": 24, "temperature": 0.0}
    alone = [[answer] for answer in generate(model, PROMPTS, **greedy)]
    assert [[a.ids for a in group] for group in sample(model, PROMPTS, **greedy)] == alone


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_4_bit_layers_with_an_adapter_are_captured(tiny_llama):
    from lite_align.model.backbone import Backbone
    from lite_align.model.load import load_model
    from lite_align.recipe import LoraOptions, ModelOptions

    options = ModelOptions.model_validate({"name": str(tiny_llama), "quantization": "nf4"})
    it = Backbone(load_model(options, device="cuda"), LoraOptions(rank=4, alpha=8.0), seed=0)
    runner = runner_of(it.model)
    assert isinstance(runner, Replayed)
    arguments = {"samples": 4, "stop_ids": STOPS, "max_new_tokens": 48, "batch_size": 12, "seed": 1}
    found = sample(it.model, PROMPTS, runner=runner, **arguments)
    assert not runner.note
    # 16-bit logits: rounding depends on the batch, so log-probs are compared, not tokens.
    again = sample(it.model, PROMPTS, runner=runner_of(it.model), **arguments)
    assert [[a.ids for a in group] for group in again] == [[a.ids for a in group] for group in found]
    eager = sample(it.model, PROMPTS, runner=Eager(), **arguments)
    first = [torch.tensor([a.logps[0] for group in answers for a in group]) for answers in (found, eager)]
    torch.testing.assert_close(*first, atol=5e-2, rtol=5e-2)
