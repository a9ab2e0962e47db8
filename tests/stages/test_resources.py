"""Memory and time: settled around the user's wishes, shown with what to change, probed without a trace, compared."""

import io
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from lite_align.data.types import Leaf, Tree
from lite_align.model import planner
from lite_align.model.attention import Kernel, KernelKind
from lite_align.model.backbone import Backbone, Role
from lite_align.model.budget import Layout, Sizes, predict_memory, saved_by_block, sizes
from lite_align.model.flops import Work, backward, forward, recomputation, total
from lite_align.recipe import Resolved, load
from lite_align.stages import resources
from lite_align.stages.dpo import DPO, PairSet
from lite_align.stages.resources import Amount, Forecast, Machine
from lite_align.train.meter import Rate
from lite_align.view import View
from tests.model.shapes import LLAMA_8B
from tests.stages import small

GIB = 2**30
SIZE_8B = sizes(LLAMA_8B)
PAIR = Work.of(512, [256, 256], 512)
SHORT, LONG = (
    Amount([PAIR] * n, [PAIR] * 64, n, batch_size=16, steps=n // 16, evaluations=5, has_reference=True)
    for n in (160, 16_000)
)
ROWS = small.rows(12)


def gpu(free: float, size: Sizes = SIZE_8B) -> Machine:
    kernel = Kernel(KernelKind.VARLEN, reason="varlen flash attention: bfloat16")
    return Machine(torch.device("cuda"), int(free * GIB), Rate(150e12, 0.02), size, kernel)


def cpu(size: Sizes = SIZE_8B) -> Machine:
    kernel = Kernel(KernelKind.TILED, reason="tiles")
    return Machine(torch.device("cpu"), 200 * GIB, Rate(1e12, 0.0), size, kernel)


def recipe(*sets: str, quantization: str = "nf4", dtype: str = "bfloat16") -> Resolved:
    chosen = [f"model.quantization={quantization}", f"model.dtype={dtype}", *sets]
    return load("dpo", data="rows.jsonl", flags={"model.name": "some/model"}, sets=chosen)


# Settings.


def test_every_setting_that_memory_decides_is_filled_with_its_reason():
    found, forecast = resources.settle(recipe(), LONG, gpu(23.5))
    speed, layout = found.recipe.speed, forecast.plan.layout
    assert forecast.plan.fits
    assert found.recipe.train.tokens_per_microbatch == layout.tokens
    assert found.recipe.model.gradient_checkpointing in ("off", "on", layout.recomputed)
    assert (speed.compile, speed.unnest_scales) == ("on", "on" if layout.unnested else "off")
    assert speed.offload_embeddings == ("on" if layout.offloaded else "off")
    assert found.provenance["train.tokens_per_microbatch"] == "auto: 23.5 GiB free"
    assert "auto" not in (speed.compile, speed.unnest_scales, speed.offload_embeddings)


def test_some_blocks_recompute_where_only_some_must():
    found, forecast = resources.settle(recipe("train.tokens_per_microbatch=6144"), LONG, gpu(23.5))
    assert 0 < forecast.plan.layout.recomputed < 32
    assert found.recipe.model.gradient_checkpointing == forecast.plan.layout.recomputed
    assert forecast.chosen


def test_wishes_stay_and_the_rest_is_chosen_around_them():
    sets = ["model.gradient_checkpointing=3", "speed.unnest_scales=off", "speed.offload_embeddings=on"]
    found, forecast = resources.settle(recipe(*sets), LONG, gpu(79))
    layout = forecast.plan.layout
    assert (layout.recomputed, layout.unnested, layout.offloaded) == (3, False, True)
    assert found.recipe.model.gradient_checkpointing == 3
    assert not forecast.chosen
    _, all_of_them = resources.settle(recipe("model.gradient_checkpointing=on"), LONG, gpu(79))
    assert all_of_them.plan.layout.recomputed == 32


@pytest.mark.parametrize(
    ("amount", "machine", "wish", "compiled"),
    [
        (LONG, gpu(79), "auto", "on"),
        (SHORT, gpu(79), "auto", "off"),
        (SHORT, gpu(79), "on", "on"),
        (LONG, gpu(79), "off", "off"),
        (LONG, cpu(), "auto", "off"),
    ],
)
def test_blocks_are_compiled_where_that_pays(amount, machine, wish, compiled):
    found, forecast = resources.settle(recipe(f"speed.compile={wish}"), amount, machine)
    assert found.recipe.speed.compile == compiled
    assert forecast.plan.layout.compiled == (compiled == "on")


def test_compiling_pays_from_ten_minutes_on():
    cuda = torch.device("cuda")
    assert not resources.pays(599, cuda)
    assert resources.pays(601, cuda)
    assert not resources.pays(10**6, torch.device("cpu"))


def test_a_base_of_16_bits_on_a_cpu_has_nothing_to_unpack_or_to_move():
    found, _ = resources.settle(recipe(quantization="none", dtype="float32"), SHORT, cpu())
    assert found.recipe.speed.unnest_scales == found.recipe.speed.offload_embeddings == "off"
    assert found.provenance["speed.unnest_scales"] == "auto: none has no such scales"


# Time.


def test_work_of_a_tree():
    leaves = (Leaf((5, 6), (True, True)), Leaf((7,), (True,)))
    tree = Tree(0, (1, 2, 3), (False, False, True), leaves)
    assert resources.work_of(tree) == Work(6, 4, 4.5 + 3 * 2 + 2 + 3 + 0.5)


def test_amounts_by_hand():
    amount = Amount([Work(100)] * 60 + [Work(200)] * 20, [Work(300)], 80, 8, 25, 2, True)
    assert amount.longest == 300
    assert amount.window == 1.25 * 8 * 125
    assert amount.epochs == 2.5


def test_seconds_by_hand():
    """2 epochs of 4 pairs, 3 evaluations of 2 pairs, 1,000 tokens a pass, half of the blocks recomputing."""
    layout = Layout("nf4", 16, 1024, recomputed=16)
    amount = Amount([PAIR] * 4, [PAIR] * 2, 4, batch_size=2, steps=4, evaluations=3, has_reference=True)
    rate = Rate(1e14, 0.5)
    train, held_out = total([PAIR] * 4), total([PAIR] * 2)
    step = forward(SIZE_8B, train, rank=16) + backward(SIZE_8B, train, rank=16)
    step += recomputation(SIZE_8B, train, rank=16, blocks=16)
    reference = forward(SIZE_8B, train + held_out, rank=0)
    evaluation = forward(SIZE_8B, held_out, rank=16)
    products = (2 * step + reference + 3 * evaluation) / 1e14 / resources.SHARE["cuda"]
    # 8 pairs of 1,024 tokens are 8 passes with 2.5 readings of the weights each; 4 + 4 * 2 pairs are read once.
    assert resources.seconds(SIZE_8B, layout, amount, rate) == pytest.approx(products + (20 + 12) * 0.5)
    # Mismatched answers are scored once by policy and reference in every epoch, and in every evaluation.
    foreign = 2 * (forward(SIZE_8B, train, rank=16) + forward(SIZE_8B, train, rank=0)) + 3 * evaluation
    more = products + foreign / 1e14 / resources.SHARE["cuda"]
    mismatched = replace(amount, scores_mismatched=True)
    # 2 * 2 * 4 + 3 * 2 pairs more are read once.
    assert resources.seconds(SIZE_8B, layout, mismatched, rate) == pytest.approx(more + (20 + 12 + 22) * 0.5)
    # Without a reference no pair is read once before.
    alone = products - reference / 1e14 / resources.SHARE["cuda"]
    amount = replace(amount, has_reference=False)
    assert resources.seconds(SIZE_8B, layout, amount, rate) == pytest.approx(alone + (20 + 6) * 0.5)


@pytest.mark.parametrize(
    ("needed", "words"), [(48.4, "48 s"), (61, "61 s"), (720, "12 min"), (12_000, "3 h 20 min")]
)
def test_durations_for_reading(needed, words):
    assert resources.duration(needed) == words


def test_sizes_for_reading():
    assert resources.gib(5.25 * GIB) == "5.2 GiB"
    assert resources.gib(412 * 2**20) == "412 MiB"


# The plan page.


def shown(forecast: Forecast) -> str:
    out, errors = io.StringIO(), io.StringIO()
    resources.show(forecast, View(file=out, errors=errors, width=100))
    return " ".join((out.getvalue() + errors.getvalue()).split())


def test_the_plan_page_names_parts_kernel_and_time():
    _, forecast = resources.settle(recipe(), LONG, gpu(23.5))
    text = shown(forecast)
    for words in ("of 23.5 GiB free", "weights 3.", "of 32 blocks recompute", "compiled blocks"):
        assert words in text
    assert "attention: varlen flash attention: bfloat16" in text
    assert "150 TFLOP/s" in text
    assert "To fit" not in text


def test_a_plan_that_does_not_fit_says_what_to_change():
    _, forecast = resources.settle(recipe(quantization="none"), LONG, gpu(8))
    assert not forecast.plan.fits
    text = shown(forecast)
    assert "more than the 7.4 GiB" in text
    best = planner.levers(SIZE_8B, forecast.plan, longest=PAIR.tokens)[0]
    assert best.setting == "model.quantization=nf4"
    assert f"model.quantization=nf4 needs {resources.gib(best.total)}" in text


# The probe.


class FixedMeter:
    """A meter that always reads the same peak."""

    def __init__(self, peak: int) -> None:
        self._peak, self.resets = peak, 0

    def free(self) -> int:
        return 10**12

    def reset(self) -> None:
        self.resets += 1

    def peak(self) -> int:
        return self._peak


@pytest.fixture(scope="module")
def model(tiny_llama) -> Backbone:
    return small.backbone(tiny_llama)


@pytest.fixture(scope="module")
def both(model) -> PairSet:
    pairs = small.as_pairs(ROWS)
    return small.pair_set(model, pairs, small.as_trees(pairs, model.loaded.tokenizer))


@pytest.fixture
def stage(model, both) -> Iterator[DPO]:
    before = model.adapter_tensors(Role.POLICY)
    yield small.split(model, both, small.recipe(), 4)
    model.set_adapter_tensors(Role.POLICY, before)
    model.recompute(0)


def forecast_of(
    stage: DPO, *, recomputed: int = 1, limit: int | None = None, chosen: bool = True
) -> Forecast:
    """A plan for the small model (two blocks) with a limit of its own; by default exactly what is predicted."""
    size = Sizes(2, 32, 16, 32, 64, 384, True, 10_000, 12_000, 500)
    layout = Layout("none", 8, 512, dtype=torch.float32, device="cpu", recomputed=recomputed)
    memory = predict_memory(size, layout)
    stage.backbone.recompute(recomputed)
    plan = planner.Plan(layout, memory, memory.total if limit is None else limit)
    return Forecast(plan, cpu(size), 10.0, chosen, longest=100)


@pytest.mark.parametrize(("share", "blocks"), [(-1.5, 0), (0.0, 1), (0.5, 2), (90.0, 2)])
def test_the_probe_sets_how_many_blocks_recompute(stage, share, blocks):
    """`share` is how many blocks' worth of activations the measured peak lies above the limit."""
    forecast = forecast_of(stage)
    layout, size = forecast.plan.layout, forecast.machine.size
    batch = max(stage.window(0).batches, key=lambda batch: batch.tokens)
    saved = saved_by_block(size, layout) - 4 * size.hidden
    # The measured batch is smaller than the plan's, which the other block would feel.
    missing = (layout.tokens - batch.tokens) * saved
    peak = forecast.plan.limit - missing + share * layout.tokens * saved
    assert resources.probe(stage, small.engine(stage), forecast, FixedMeter(int(peak))) == int(peak)
    assert stage.backbone.blocks.recomputed == blocks


def test_the_probe_leaves_nothing_behind(stage, monkeypatch):
    forward = Backbone.leaf_logps

    def drawing(self, batch):
        torch.rand(1)  # as dropout would
        return forward(self, batch)

    monkeypatch.setattr(Backbone, "leaf_logps", drawing)
    engine = small.engine(stage)
    before, numbers = stage.adapters()["policy"], torch.get_rng_state()
    meter = FixedMeter(1)
    resources.probe(stage, engine, forecast_of(stage), meter)
    assert meter.resets == 1
    assert engine.step == 0
    assert not engine.parameters.gradient.any()
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(torch.equal(value, before[name]) for name, value in stage.adapters()["policy"].items())


def test_steps_are_the_same_whatever_the_probe_found(model, both):
    def trained(peak: int | None) -> dict[str, torch.Tensor]:
        before = model.adapter_tensors(Role.POLICY)
        stage = small.split(model, both, small.recipe(), 4)
        engine = small.engine(stage)
        if peak is not None:
            resources.probe(stage, engine, forecast_of(stage), FixedMeter(peak))
        engine.update(stage.window(0), stage.loss)
        after = stage.adapters()["policy"]
        model.set_adapter_tensors(Role.POLICY, before)
        model.recompute(0)
        return after

    plain, none, every = trained(None), trained(0), trained(10**12)
    assert all(torch.equal(value, none[name]) for name, value in plain.items())
    assert all(torch.equal(value, every[name]) for name, value in plain.items())


def test_memory_that_runs_out_in_the_probe_lets_every_block_recompute(stage, monkeypatch):
    def full(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Backbone, "leaf_logps", full)
    assert resources.probe(stage, small.engine(stage), forecast_of(stage), FixedMeter(5)) is None
    assert stage.backbone.blocks.recomputed == 2


def test_nothing_is_probed_where_the_user_has_decided_or_memory_is_plenty(stage):
    engine = small.engine(stage)
    decided, plenty = forecast_of(stage, chosen=False), forecast_of(stage, recomputed=0, limit=10**12)
    for forecast in (decided, plenty):
        meter = FixedMeter(10**12)
        assert resources.probe(stage, engine, forecast, meter) is None
        assert meter.resets == 0


# Predicted beside measured.


def test_the_watch_reads_the_larger_peak_and_the_time(stage):
    times = iter([100.0, 142.0])
    watch = resources.Watch(FixedMeter(3 * GIB), clock=lambda: next(times))
    watch.keep(4 * GIB)
    forecast = forecast_of(stage)
    measured = watch.read(forecast, 1)
    predicted = forecast.plan.memory.total
    assert measured == {
        "bytes": {"peak": 4 * GIB, "predicted": predicted},
        "seconds": {"spent": 42.0, "predicted": 10.0},
        "recomputed": 1,
    }
    assert resources.compared(measured) == (
        f"4.0 GiB of memory, predicted {resources.gib(predicted)} · 42 s, predicted 10 s"
    )
