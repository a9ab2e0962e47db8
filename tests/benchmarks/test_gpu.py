"""The GPU kit, as far as it can be tested without a card."""

import argparse
import csv
import json
import re
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit

from benchmarks.gpu import device, lite, memory, models, opponents, tables, wheels
from benchmarks.gpu.__main__ import Part, Record, dpo, main
from benchmarks.gpu.job import ALPHA, MIXES, RANK, Job, make_pairs
from benchmarks.gpu.limit import NF4_BYTES, Card, floor_seconds
from benchmarks.gpu.sides import ROOT, Scratch, measure
from lite_align.model.budget import sizes
from lite_align.recipe import PROJECTIONS

LLAMA = sizes(models.configuration("llama-3-8b"))
QWEN = sizes(models.configuration("qwen2.5-7b"))
CPU = torch.device("cpu")
ROW = lite.trees([memory.pair_of(512)])


# The physical limit.


def test_weights_of_the_shapes():
    # q, o: 4096 * 4096; k, v: 4096 * 1024; gate, up, down: 4096 * 14336; 32 blocks.
    block = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    assert LLAMA.block_weights == 32 * block == 6_979_321_856
    assert LLAMA.adapter_inputs_outputs * RANK == 41_943_040
    assert LLAMA.vocabulary * LLAMA.hidden == 128256 * 4096
    assert QWEN.block_weights == 6_525_288_448
    assert QWEN.adapter_inputs_outputs * RANK == 40_370_176


def test_the_floor_adds_weight_traffic_to_arithmetic():
    size = replace(
        LLAMA, layers=1, hidden=2, query=2, vocabulary=2, block_weights=28, adapter_inputs_outputs=28
    )
    steps, epoch = floor_seconds(size, [(3, 2, 2), (5, 1, 1)], 3, Card(flops=10.0, bandwidth=1.0))
    # 14 tokens, of which 6 are scored; queries see 4.5 + 2 * (6 + 2) and 12.5 + 2 * (5 + 0.5) keys.
    tokens, scored, visible = 14, 6, 4.5 + 16 + 12.5 + 11
    base, adapter, head, attention = 56 * tokens, 2 * 28 * RANK * tokens, 8 * scored, 8 * visible
    forward, backward = base + adapter + head + attention, base + 2 * adapter + head + 2.5 * attention
    traffic = NF4_BYTES * 28
    assert steps == pytest.approx((forward + backward) / 10 + 6 * traffic)
    assert epoch - steps == pytest.approx((base + head + attention) / 10 + 14 / 16384 * traffic)


# Rows.


@pytest.mark.parametrize("mix", list(MIXES))
def test_a_mix_has_the_lengths_it_promises(mix):
    pairs = make_pairs(mix, 4000)
    for mean, lengths in zip(MIXES[mix], zip(*(pair.lengths for pair in pairs)), strict=True):
        assert sum(lengths) / len(lengths) == pytest.approx(mean, rel=0.05)
        assert max(lengths) <= 4 * mean
        assert max(lengths) > 2.5 * mean  # a long tail
    assert make_pairs(mix, 5) == pairs[:5]
    assert [len(pair.prompt) for pair in pairs[:9]] != [len(p.prompt) for p in make_pairs(mix, 9, seed=8)]


def test_both_sides_get_the_same_rows():
    job = Job("lite", small=True, batch=4, warmup=2, steps=3)
    warm, measured = job.rows()
    assert (len(warm), len(measured)) == (8, 12)
    assert sorted(opponents.grouped(measured, 4)) == sorted(measured)
    for pair, tree in zip(measured, lite.trees(measured), strict=True):
        assert tree.root[: len(pair.prompt)] == tuple(pair.prompt)
        own = len(tree.root) - len(pair.prompt)
        assert tree.tokens == sum(pair.lengths) - own  # answers that begin alike share that too


def test_grouped_batches_hold_rows_of_like_length():
    batches = opponents.grouped(make_pairs("uf", 64), 8)
    spans = [sorted(sum(pair.lengths) for pair in batches[start : start + 8]) for start in range(0, 64, 8)]
    spans.sort()
    assert all(before[-1] <= after[0] for before, after in zip(spans, spans[1:]))


def test_the_opponents_train_what_lite_align_trains():
    assert tuple(opponents.TARGETS) == PROJECTIONS
    recipe = lite.settle(Job("lite", small=True), ROW, CPU)
    assert (recipe.lora.rank, recipe.lora.alpha, recipe.lora.targets) == (RANK, ALPHA, PROJECTIONS)
    assert recipe.lora.dropout == recipe.loss.sft_weight == 0
    assert recipe.train.batch_size == Job("trl").batch


def test_a_setting_replaces_the_one_of_the_kit():
    job = Job("lite", small=True, settings=("lora.rank=4", "speed.share_prompts=false"))
    recipe = lite.settle(job, ROW, CPU)
    assert (recipe.lora.rank, recipe.speed.share_prompts) == (4, False)
    assert recipe.loss.sft_weight == 0


# Models.


@pytest.fixture(scope="module", params=list(models.SHAPES))
def random_model(request):
    config = models.configuration(request.param, small=True, layers=1)
    return models.random_nf4(config, CPU, "sdpa")


def test_random_weights_are_really_four_bit(random_model):
    linears = [m for m in random_model.modules() if isinstance(m, torch.nn.Linear)]
    quantised = [m for m in linears if isinstance(m, Linear4bit)]
    assert len(quantised) == 7
    assert set(linears) - set(quantised) == {random_model.lm_head}
    for module in quantised:
        assert module.weight.dtype == torch.uint8
        assert module.weight.numel() == module.in_features * module.out_features // 2
        assert module.weight.quant_state.quant_type == "nf4"
        assert module.weight.quant_state.nested
    others = [p for p in random_model.parameters() if p.dtype != torch.uint8]
    assert {p.dtype for p in others} == {torch.bfloat16}
    assert not any(
        t.is_meta or t.requires_grad for t in [*random_model.parameters(), *random_model.buffers()]
    )


def test_random_weights_give_usable_logits(random_model):
    with torch.no_grad():
        logits = random_model(input_ids=torch.arange(3, 35).view(1, -1)).logits.float()
    assert logits.isfinite().all()
    assert 0.05 < logits.std() < 5


def test_the_checkpoint_is_the_same_model(tmp_path):
    """Unsloth's side and ours get the weights that the others have."""
    job = Job("checkpoint", small=True, folder=str(tmp_path))
    assert opponents.checkpoint(job)["bytes"] > 0
    recipe = lite.settle(job, ROW, CPU)
    made, read = (lite.base(j, recipe, CPU).model for j in (Job("lite", small=True), job))
    ids = torch.arange(3, 35).view(1, -1)
    with torch.no_grad():
        assert torch.equal(made(input_ids=ids).logits, read(input_ids=ids).logits)


# Wheels.


def test_a_pruned_wheel_installs(tmp_path):
    wheel = tmp_path / "thing-1.0-py3-none-any.whl"
    members = {
        "thing/__init__.py": "VALUE = 7\n",
        "thing/libthing_cuda130.so": "kept",
        "thing/libthing_cuda121.so": "dropped",
        "thing-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n",
        "thing-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "thing-1.0.dist-info/RECORD": "thing/libthing_cuda121.so,sha256=none,7\n",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    wheels.prune(wheel, r"/libthing_cuda(?!130)")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        record = list(csv.reader(archive.read("thing-1.0.dist-info/RECORD").decode().splitlines()))
    assert "thing/libthing_cuda121.so" not in names
    assert sorted(row[0] for row in record) == sorted(names)
    # base64 of the sha256 of "kept", from `printf kept | openssl dgst -sha256 -binary | base64`
    assert ["thing/libthing_cuda130.so", KEPT, "4"] in record
    assert record[-1] == ["thing-1.0.dist-info/RECORD", "", ""]
    # pip compares each file with RECORD; the kit installs as `--kit` does it.
    scratch = Scratch(tmp_path / "scratch", tmp_path)
    code = "import thing; print(thing.VALUE)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=scratch.environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "7\n"


KEPT = "sha256=efB2q90Zp1Lbcme__y-QIhYdEg3qkZ_ayi_9_CTKjJY"


def test_a_kit_without_wheels_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="no wheels in"):
        Scratch(tmp_path / "scratch", tmp_path)


def test_bitsandbytes_keeps_the_libraries_of_the_card():
    libraries = ["cpu", "cuda118", "cuda129", "cuda130", "rocm63", "xpu"]
    gone = [n for n in libraries if re.search(wheels.PRUNED["bitsandbytes"], f"x/libbitsandbytes_{n}.so")]
    assert gone == ["cuda118", "cuda129", "rocm63", "xpu"]


# Tables.


def cell(step: float, *, reference: float = 2.0, allocated: int = 20 * 10**9) -> dict:
    return {
        "steps": [step] * 4,
        "pairs": 8,
        "reference_seconds": reference,
        "tokens_per_pair": 100.0,
        "floor": {"steps": 1.0, "epoch": 3.0},
        "peak_allocated": allocated,
        "peak_reserved": allocated + 10**9,
        "commit": "abc1234",
    }


CARD = {"kind": "cuda", "name": "Made Up 9000", "versions": {"torch": "2.11.0"}}


def result(
    folder: Path, name: str, part: str, cells: dict, *, small: bool = False, card: dict = CARD
) -> None:
    found = {"part": part, "small": small, "device": card, "flops": 8e14, "bandwidth": 4e12, "cells": cells}
    (folder / name).write_text(json.dumps(found), encoding="utf-8")


def values(text: str) -> list[list[str]]:
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [row[1:] for row in rows if "/" in row[0] or row[0].endswith(" GB")]


def test_without_files_every_cell_says_so(tmp_path):
    text = tables.section(tmp_path)
    assert len(values(text)) == 4 + 3 + 4
    assert {value for row in values(text) for value in row} == {tables.MISSING}
    assert f"GPU tests: {tables.MISSING}." in text
    assert f"Measured on: {tables.MISSING}." in text
    assert tables.plot(tmp_path, tmp_path / "plot.png") is None
    assert not list(tmp_path.iterdir())


def test_a_file_gives_its_numbers_and_no_others(tmp_path):
    cells = {
        "try trl/as installed": cell(100.0),
        "llama-3-8b/uf/lite/0": cell(0.5),  # epoch: 8 pairs in 4 * 0.5 + 2 s; steps: 8 in 2 s; 3 of 4 s
        "llama-3-8b/uf/lite/1": {"error": "stopped", "commit": "x"},
        "llama-3-8b/uf/trl/0": cell(1.5, allocated=40 * 10**9),  # 8 pairs in 6 + 2 s; 8 in 6 s
        "llama-3-8b/uf/trl/1": cell(3.5, allocated=41 * 10**9),  # 8 pairs in 14 + 2 s; 8 in 14 s
        "llama-3-8b/long/lite/0": cell(0.5),
    }
    result(tmp_path, "gpu-dpo-made-up-9000.json", "dpo", cells)
    result(
        tmp_path,
        "gpu-memory.json",
        "memory",
        {"llama-3-8b/8 GB/largest": {"largest_sequence": 1365, "commit": "x"}},
    )
    counts = {"passed": 61, "failed": 1, "skipped": 2, "commit": "x"}
    result(tmp_path, "gpu-tests.json", "tests", {"tests": counts})
    text = tables.section(tmp_path)
    uf, long, *rest = values(text)
    assert uf[0] == "2 / 4"
    assert uf[1] == "0.75 (0.5 to 1) / 0.952 (0.571 to 1.33)"
    assert uf[2:] == ["**2.67x**", "75 %", "20.0 GB (21.0)", "41.0 GB (42.0)"]
    missing = tables.MISSING
    assert long == ["2 / 4", missing, missing, "75 %", "20.0 GB (21.0)", missing]
    assert rest[-4] == ["1,365", missing]
    assert {value for row in rest[:-4] + rest[-3:] for value in row} == {missing}
    assert "Made Up 9000: 61 passed, 1 failed, 2 skipped" in text
    assert "dpo: Made Up 9000 (800 TFLOP/s and 4.00 TB/s measured), torch 2.11.0, commit" in text
    assert tables.plot(tmp_path, tmp_path / "plot.png") == tmp_path / "plot.png"
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "small", "card"),
    [
        ("small-dpo-cpu.json", True, {**CARD, "kind": "cpu"}),
        ("gpu-dpo-cpu.json", False, {**CARD, "kind": "cpu"}),
        ("gpu-dpo-card.json", True, CARD),
        ("small-dpo-card.json", False, CARD),
    ],
)
def test_a_trial_never_counts_as_a_measurement(tmp_path, name, small, card):
    result(tmp_path, name, "dpo", {"llama-3-8b/uf/lite/0": cell(0.5)}, small=small, card=card)
    assert {value for row in values(tables.section(tmp_path)) for value in row} == {tables.MISSING}


def test_no_trial_lies_among_the_results():
    assert not list((ROOT / "benchmarks" / "results").glob("small-*"))


def test_a_cell_done_again_replaces_itself_alone(tmp_path):
    head = {"part": "dpo", "small": False, "device": CARD}
    first = Record(tmp_path / "r.json", head, "one")
    first.add("a", {"value": 1})
    first.add("b", {"value": 2})
    Record(tmp_path / "r.json", head, "two").add("a", {"value": 3})
    found = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["cells"]
    assert found == {"a": {"value": 3, "commit": "two"}, "b": {"value": 2, "commit": "one"}}
    other = {**head, "device": {**CARD, "name": "Another"}}
    Record(tmp_path / "r.json", other, "three").add("c", {"value": 4})
    assert list(json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["cells"]) == ["c"]


# Processes.


def test_a_side_that_breaks_is_a_result(tmp_path):
    broken = Scratch(tmp_path).run(Job("no such side"), 100)
    assert "KeyError: 'no such side'" in broken["error"]
    late = Scratch(tmp_path).run(Job("card"), 0.2)
    assert late["error"] == "stopped after 0 s"


def test_the_device_is_measured():
    found = device.measure(Job("card"))
    assert found["device"]["kind"] == "cpu"
    assert found["device"]["versions"]["torch"] == torch.__version__
    assert found["flops"] > 1e8
    assert found["bandwidth"] > 1e7


def test_what_does_not_fit_the_budget_is_listed(tmp_path):
    class Slow:
        def run(self, job, seconds):
            assert 0 < seconds <= 60
            card = {"device": {"kind": "cpu", "name": "x"}, "flops": 1.0, "bandwidth": 1.0}
            return {**(card if job.side == "card" else cell(1.0)), "seconds": 100.0}

    args = argparse.Namespace(
        part="dpo", small=True, minutes=1.0, only=["lite"], out=tmp_path, commit="c", set=[]
    )
    args.repeats, args.variant = 2, "as installed"
    part = Part(args, Slow())
    dpo(part)
    part.close()
    found = json.loads(next(tmp_path.iterdir()).read_text(encoding="utf-8"))
    assert list(found["cells"]) == ["llama-3-8b/uf/lite/0"]  # the next one would take 100 s of the 60 again
    assert found["left_out"][:2] == ["llama-3-8b/long/lite/0", "llama-3-8b/hh/lite/0"]
    assert len(found["left_out"]) == 7


def kit(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)


def test_without_a_card_the_kit_says_what_to_do(tmp_path):
    done = kit("dpo", "--out", str(tmp_path))
    assert done.returncode == 1
    assert "There is no CUDA device. --small runs everything in CPU size" in done.stderr


def test_an_unknown_variant_is_named_with_the_known_ones():
    done = kit("dpo", "--small", "--variant", "no chekpointing")
    assert done.returncode == 2
    assert "precomputed reference, no checkpointing" in done.stderr


@pytest.mark.slow
@pytest.mark.trl
def test_dpo_end_to_end_in_small(tmp_path):
    words = ("--small", "--out", str(tmp_path), "--only", "llama-3-8b/uf", "--repeats", "1")
    done = kit("dpo", *words, "--variant", "no checkpointing", "--commit", "abc")
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.iterdir()
    found = json.loads(file.read_text(encoding="utf-8"))
    assert file.name.startswith("small-dpo-")
    assert found["left_out"] == []
    names = [f"llama-3-8b/uf/{side}/0" for side in ("lite", "trl")]
    assert list(found["cells"]) == names
    for measured in found["cells"].values():
        assert measured.get("error") is None
        assert (len(measured["steps"]), measured["pairs"], measured["commit"]) == (2, 4, "abc")
        assert measured["loss"] == pytest.approx(0.693, abs=0.02)  # both start at log 2
        assert measured["reference_seconds"] > 0
        assert tables.rates(measured)["share"] > 0
    ours, theirs = found["cells"][names[0]], found["cells"][names[1]]
    assert ours["tokens_per_pair"] < theirs["tokens_per_pair"]
    assert tables.section(tmp_path) == tables.section(tmp_path / "none")


@pytest.fixture
def kit_here(forked, monkeypatch):
    """The kit in this process and its jobs in forked children: as `test_dpo_end_to_end_in_small`, without imports."""

    def run(scratch: Scratch, job: Job, seconds: float) -> dict[str, Any]:
        started = time.monotonic()
        return forked(measure, job) | {"seconds": time.monotonic() - started}

    def command(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["python -m benchmarks.gpu", *words])
        main()

    monkeypatch.setattr(Scratch, "run", run)
    return command


@pytest.mark.slow
def test_memory_end_to_end_in_small(tmp_path, kit_here):
    settings = ("--set", "train.learning_rate=1e-4")
    out = tmp_path / "out"
    kit_here("memory", "--small", "--out", str(out), "--only", "/8 GB", *settings)
    found = json.loads(next(out.iterdir()).read_text(encoding="utf-8"))["cells"]
    assert found["llama-3-8b/8 GB/largest"]["largest_tokens"] == 1024  # the most that a trial tries
    assert not found["llama-3-8b/8 GB/largest"]["cap applied"]
    assert len(found["llama-3-8b/8 GB/speed"]["steps"]) == 2


@pytest.mark.slow
def test_unsloth_and_the_gpu_tests_end_cleanly_without_a_card(tmp_path, kit_here, capsys):
    out = tmp_path / "out"
    kit_here("unsloth", "--small", "--out", str(out))
    assert not out.exists()
    assert "not run: needs a CUDA device" in capsys.readouterr().out
    kit_here("tests", "--small", "--out", str(out))
    found = json.loads(next(out.iterdir()).read_text(encoding="utf-8"))["cells"]["tests"]
    assert (found["passed"], found["failed"]) == (0, 0)
    assert found["skipped"] > 10
