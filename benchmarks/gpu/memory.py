"""DPO on smaller cards: the allocator is capped, and the planner is told that the card has no more."""

from dataclasses import replace
from typing import Any

import torch

from benchmarks.gpu import device, lite
from benchmarks.gpu.job import IDS, Job, Pair
from lite_align.errors import TooLittleMemory
from lite_align.train.faults import Shortage, attempt

CONTEXT = 450 * 2**20
"""Bytes of a card that CUDA itself takes; the allocator's cap does not see them."""

STEP = 512  # tokens between two tries
FRUGAL = {
    "model.gradient_checkpointing": "on",
    "speed.offload_embeddings": "on",
    "train.tokens_per_microbatch": 2**20,
}


def stand_in(cap: int) -> None:
    """Make this process see a card of `cap` bytes."""
    total = torch.cuda.get_device_properties(0).total_memory
    room = cap - CONTEXT
    torch.cuda.set_per_process_memory_fraction(min(1.0, room / total))
    torch.cuda.mem_get_info = lambda device=None: (room - torch.cuda.memory_reserved(), cap)


def pair_of(tokens: int) -> Pair:
    """A pair of about so many tokens in all, a third each for prompt, chosen and rejected."""
    third = max(2, tokens // 3)
    return Pair(*([IDS[(part + n) % len(IDS)] for n in range(third)] for part in range(3)))


def largest(session: lite.Session, most: int) -> int:
    """Most tokens of a micro-batch, one pair, whose whole step fits: doubled, then halved in between."""
    engine = session.engine(1000)

    def fits(tokens: int) -> bool:
        def work() -> None:
            lite.train(session.stage(lite.trees([pair_of(tokens)])), engine, 1)

        try:
            return not isinstance(attempt(work), Shortage)
        except TooLittleMemory:  # of the reference pass
            return False

    low, high = 0, STEP
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + STEP)
    while high - low > STEP:
        middle = (low + high) // 2 // STEP * STEP
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def measure(job: Job) -> dict[str, Any]:
    """Largest micro-batch with the most frugal settings, or (variant "speed") the steps of the planner's own.

    A sequence is a prompt with one answer: two thirds of a pair of equal parts.
    """
    applied = job.cap is not None and torch.cuda.is_available()
    if job.cap is not None and applied:
        stand_in(job.cap)
    if job.variant == "speed":
        return lite.measure(job) | {"cap applied": applied}
    session = lite.Session.of(replace(job, recipe=FRUGAL), lite.trees([pair_of(STEP)]))
    device.reset_peak()
    tokens = largest(session, 2 * STEP if job.small else 2**16)
    return {
        "cap applied": applied,
        "largest_tokens": tokens,
        "largest_sequence": 2 * tokens // 3,
        "notes": session.backbone.notes,
        **device.peak(),
    }
