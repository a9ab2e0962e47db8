"""A real process whose device runs out of memory, or is lost, at each moment of a run."""

from dataclasses import replace

import pytest

from tests.behaviour.conftest import Job, Warm

pytestmark = pytest.mark.slow
SHORT = {
    "call": "lite_align.model.backbone:Backbone.leaf_logps",
    "error": ("OutOfMemoryError", "CUDA out of memory."),
}
LOST = {**SHORT, "error": ("AcceleratorError", "CUDA error: unspecified launch failure")}
# Number of the pass through the model, from 1, and what it belongs to.
MOMENTS = [
    (1, "the reference pass"),
    (14, "the proof of the start"),
    (16, "the forward pass of step 1"),
    (18, "the forward pass of step 2"),
    (21, "the evaluation"),
    (30, "the evaluation"),  # the one after the last step
]


def events(job: Job) -> list[dict[str, object]]:
    return job.record()["events"]


def test_a_run_outlives_memory_that_runs_out(job, warm: Warm) -> None:
    plain = job("plain")
    assert warm.run(plain.arguments()) == 0
    assert events(plain) == []
    for nth, where in MOMENTS:
        struck, other = job(f"struck-{nth}"), replace(warm, cache=warm.cache / str(nth))
        assert other.run(struck.arguments(), **SHORT, nth=nth) == 0, where
        (event,) = events(struck)
        assert (event["kind"], event["where"], event["before"]) == ("out_of_memory", where, 160)
        assert "Memory ran out" in warm.log.read_text()
        assert_close(struck, plain)


def assert_close(struck: Job, plain: Job) -> None:
    """Both runs learned the same, up to the order of sums."""
    for our, their in zip(struck.metrics(), plain.metrics(), strict=True):
        assert our == pytest.approx(their, rel=1e-3, abs=1e-4)
    adapter, expected = struck.tensors(), plain.tensors()
    for name in (name for name in expected if "lora" in name):
        assert (adapter[name] - expected[name]).norm() <= 1e-3 * expected[name].norm(), name


def test_a_lost_device_ends_with_75_and_the_run_goes_on(every_step, warm: Warm) -> None:
    whole, lost = every_step("whole"), every_step("lost")
    assert warm.run(whole.arguments()) == 0
    assert warm.run(lost.arguments(), **LOST, nth=25) == 75
    said = " ".join(warm.log.read_text().split())
    assert "CUDA error: unspecified launch failure" in said
    assert "--resume --out" in said
    assert lost.record()["status"] == "failed"
    saved = sorted((lost.out / "checkpoints").glob("step-*"))
    assert saved, "it was lost after the first checkpoint"
    assert warm.run(lost.arguments("--resume")) == 0
    lost.assert_equals(whole)


def test_a_device_too_small_for_one_pair_ends_with_2(job, warm: Warm) -> None:
    one = job("one")
    assert warm.run(one.arguments(), **SHORT, nth=6) == 2
    said = " ".join(warm.log.read_text().split())
    for part in (
        "the check of the reference",
        "holds 54 tokens",
        "model.gradient_checkpointing=on",
        "data.max_length (now 512)",
        "model.quantization=nf4",
    ):
        assert part in said
