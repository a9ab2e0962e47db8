"""Which layout of a training step is the fastest that fits the memory, and what to change where none does."""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace

from lite_align.model.budget import Layout, Memory, Sizes, predict_memory, saved_by_block

MARGIN = 0.92
"""Share of the free memory that is planned for; fragmentation takes some of the rest."""

LEAST_TOKENS, MOST_TOKENS, STEP = 1024, 16384, 256

CPU_TOKENS = 2048
"""Most tokens in a micro-batch on a CPU, where larger ones only cost memory and cache misses."""

UNPACKING = {False: 208.0, True: 173.0}
"""Tokens whose products take as long as unpacking the 4-bit weights they are multiplied with, without and with unpacked
scales: peak / bandwidth * 2.53 bytes / 2 operations is 208 on a 4090 and on an H200; a fused unpacking of nested scales
was 1.2 times as fast as theirs (bitsandbytes pull request 2051). Calculated, not measured."""

OFFLOADING = 1.005
"""What the copy of a micro-batch's embeddings from the host costs (calculated: 8 kB a token at 25 GB/s)."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user has set; None is for the planner to choose.

    Attributes:
        tokens: of a micro-batch.
        recomputed: how many blocks recompute their activations.
        unnested: whether scales are unpacked.
        offloaded: whether the embedding stays on the host.
    """

    tokens: int | None = None
    recomputed: int | None = None
    unnested: bool | None = None
    offloaded: bool | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A layout with its predicted memory.

    Attributes:
        layout: of a step.
        memory: by part.
        limit: bytes that are planned for.
        fits: whether the memory is within the limit.
    """

    layout: Layout
    memory: Memory
    limit: int

    @property
    def fits(self) -> bool:
        """Whether the predicted memory is within the limit."""
        return self.memory.total <= self.limit


def cost(size: Sizes, layout: Layout) -> float:
    """Time a token needs relative to others of the same model: forward, backward and recomputation, and unpacking."""
    units = 2 + layout.recomputed / size.layers
    unpacking = UNPACKING[layout.unnested] / layout.tokens if layout.quantization == "nf4" else 0.0
    return units * (1 + unpacking) * (OFFLOADING if layout.offloaded else 1.0)


def plan(
    size: Sizes, start: Layout, wishes: Wishes, *, free: int, longest: int, most: int = MOST_TOKENS
) -> Plan:
    """Choose the fastest layout that fits, or the smallest if none does.

    Args:
        size: of the architecture.
        start: what is settled already; tokens, recomputed, unnested and offloaded are chosen here.
        wishes: what the user has settled of those.
        free: bytes of the device before the model is loaded.
        longest: tokens of the longest example.
        most: tokens that a micro-batch can use, those of a whole optimiser step.
    """
    limit = int(free * MARGIN)
    layouts = [
        _fewest_recomputed(size, layout, wishes.recomputed, limit)
        for layout in _candidates(size, start, wishes, longest, most)
    ]
    plans = [Plan(layout, predict_memory(size, layout), limit) for layout in layouts]
    fitting = [plan for plan in plans if plan.fits]
    if fitting:
        return min(fitting, key=lambda plan: (cost(size, plan.layout), plan.memory.total))
    return min(plans, key=lambda plan: plan.memory.total)


def _candidates(size: Sizes, start: Layout, wishes: Wishes, longest: int, most: int) -> Iterator[Layout]:
    """Layouts without recomputation: all numbers of tokens, scales packed or not, the embedding here or there."""
    on_gpu = start.device == "cuda"
    can_unnest, can_offload = start.quantization == "nf4", on_gpu and not size.tied
    # On a CPU unpacked scales gained nothing (see the README's table of shortcuts).
    unnesting = [wishes.unnested] if wishes.unnested is not None else [False, can_unnest and on_gpu]
    offloading = [wishes.offloaded] if wishes.offloaded is not None else [False, can_offload]
    for tokens in _tokens(start.device, wishes.tokens, longest, most):
        for unnested in unnesting:
            for offloaded in offloading:
                yield replace(
                    start,
                    tokens=tokens,
                    unnested=unnested and can_unnest,
                    offloaded=offloaded and can_offload,
                )


def _tokens(device: str, wish: int | None, longest: int, most: int) -> list[int]:
    if wish is not None:
        return [wish]
    if device == "cpu":
        return [max(longest, min(CPU_TOKENS, most))]
    least = max(LEAST_TOKENS, longest)
    top = max(least, min(MOST_TOKENS, most))
    return [least, *range(-(-(least + 1) // STEP) * STEP, top + STEP, STEP)]


def _fewest_recomputed(size: Sizes, layout: Layout, wish: int | None, limit: int) -> Layout:
    """The layout with as few recomputing blocks as fit, or with the user's number."""
    if wish is not None:
        return replace(layout, recomputed=min(wish, size.layers))

    def fits(count: int) -> bool:
        return predict_memory(size, replace(layout, recomputed=count)).total <= limit

    # The first block that recomputes saves nothing, as it is also the one in work; every further one does.
    count = 0 if fits(0) else bisect_left(range(size.layers), True, lo=1, key=fits)
    return replace(layout, recomputed=count)


def blocks_to_recompute(
    size: Sizes, layout: Layout, *, peak: int, limit: int, tokens: int | None = None
) -> int:
    """How many blocks should recompute, after a step with `layout.recomputed` of them was measured.

    Args:
        size: of the architecture.
        layout: of the step that was measured.
        peak: measured bytes.
        limit: bytes that may be held.
        tokens: of the measured micro-batch, if fewer than the layout's.
    """
    element = layout.dtype.itemsize
    saved = saved_by_block(size, layout) - element * size.hidden
    missing = layout.tokens - (tokens or layout.tokens)
    over = peak - limit + missing * (size.layers - layout.recomputed) * saved
    blocks = layout.recomputed - int(-over // (layout.tokens * saved))
    return max(0, min(blocks, size.layers))


@dataclass(frozen=True, slots=True)
class Lever:
    """A change of one setting and the memory that the whole step would need with it."""

    setting: str
    total: int


def levers(size: Sizes, plan: Plan, *, longest: int) -> list[Lever]:
    """Single changes that need less memory, the largest saving first.

    Args:
        size: of the architecture.
        plan: that does not fit.
        longest: tokens of the longest example.
    """
    now = plan.layout
    smaller = (f"train.tokens_per_microbatch={longest}", longest)
    if now.tokens <= longest:
        smaller = ("data.max_length at half", now.tokens // 2)
    changes = {
        "model.gradient_checkpointing=on": replace(now, recomputed=size.layers),
        "model.quantization=nf4": replace(now, quantization="nf4", unnested=False),
        "speed.offload_embeddings=on": replace(now, offloaded=now.device == "cuda"),
        "speed.unnest_scales=off": replace(now, unnested=False),
        smaller[0]: replace(now, tokens=smaller[1]),
        "lora.rank=8": replace(now, rank=min(now.rank, 8)),
    }
    found = [Lever(text, predict_memory(size, layout).total) for text, layout in changes.items()]
    return sorted(
        (lever for lever in found if lever.total < plan.memory.total), key=lambda lever: lever.total
    )
