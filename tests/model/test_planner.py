"""The fastest layout that fits, the user's wishes kept, and what to change where nothing fits."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

from lite_align.model import planner
from lite_align.model.budget import Layout, Sizes, predict_memory, sizes
from lite_align.model.planner import Wishes
from lite_align.recipe import load as load_recipe
from tests.model.shapes import LLAMA_8B

GIB = 2**30
RECIPES = Path(__file__).parents[2] / "recipes"
NF4 = Layout("nf4", 16, 0)
FREE = st.floats(4.5, 100).map(lambda gib: int(gib * GIB))


@pytest.fixture(scope="module")
def size() -> Sizes:
    return sizes(LLAMA_8B)


def make(
    size: Sizes, gib: float, wishes: Wishes | None = None, *, longest: int = 1024, **start
) -> planner.Plan:
    free = int(gib * GIB)
    return planner.plan(size, replace(NF4, **start), wishes or Wishes(), free=free, longest=longest)


def test_8b_fits_small_cards(size: Sizes):
    """8B at 1,024 tokens a pair on 8 GB, and at 2,048 on 12 GB, with what the driver leaves of them (calculated)."""
    assert make(size, 7.6, longest=1024, compiled=True).fits
    assert make(size, 11.5, longest=2048, compiled=True).fits
    assert not make(size, 5.0, longest=1024, compiled=True).fits


def test_a_large_card_recomputes_nothing_and_a_small_one_everything(size: Sizes):
    large, small = make(size, 79, compiled=True), make(size, 7.6, compiled=True)
    assert large.layout.recomputed == 0
    assert large.layout.unnested
    assert not large.layout.offloaded
    assert large.layout.tokens >= 8192
    assert small.layout.recomputed == 32
    assert small.layout.offloaded


def test_between_them_some_blocks_recompute(size: Sizes):
    plan = make(size, 23.5, Wishes(tokens=6144), compiled=True)
    assert plan.fits
    assert 0 < plan.layout.recomputed < 32
    fewer = replace(plan.layout, recomputed=plan.layout.recomputed - 1)
    assert predict_memory(size, fewer).total > plan.limit


# The models of the sized recipes: width, feed-forward, blocks, heads, key heads, head size, vocabulary, tied.
SHAPES = {
    "Qwen/Qwen2.5-1.5B-Instruct": (1536, 8960, 28, 12, 2, 128, 151936, True),
    "Qwen/Qwen3-4B-Instruct-2507": (2560, 9728, 36, 32, 8, 128, 151936, True),
    "Qwen/Qwen2.5-7B-Instruct": (3584, 18944, 28, 28, 4, 128, 152064, False),
}


@pytest.mark.parametrize("card", [8, 12, 16, 24])
def test_a_sized_recipe_fits_its_card_with_pairs_of_full_length(card: int):
    """A pair is a prompt and two answers: at most twice the longest sequence. A tenth of the card is taken already."""
    recipe = load_recipe("dpo", recipe_file=RECIPES / f"dpo-{card}gb.yaml").recipe
    width, inner, blocks, heads, key_heads, head_size, vocabulary, tied = SHAPES[recipe.model.name]
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=head_size,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
    )
    longest = 2 * recipe.data.max_length
    free = int(0.9 * card * 1e9)
    start = replace(NF4, rank=recipe.lora.rank)
    assert planner.plan(sizes(config), start, Wishes(), free=free, longest=longest).fits


@settings(deadline=None)
@given(
    free=FREE,
    longest=st.integers(100, 4000),
    compiled=st.booleans(),
    recomputed=st.integers(0, 32),
    unnested=st.booleans(),
    offloaded=st.booleans(),
)
def test_what_fits_is_within_the_limit_and_nothing_cheaper_is(
    size, free, longest, compiled, recomputed, unnested, offloaded
):
    start = replace(NF4, compiled=compiled)
    plan = planner.plan(size, start, Wishes(), free=free, longest=longest)
    assert plan.layout.tokens >= longest
    assert plan.fits == (plan.memory.total <= planner.MARGIN * free)
    assert plan.memory == predict_memory(size, plan.layout)
    assume(plan.fits)
    other = replace(plan.layout, recomputed=recomputed, unnested=unnested, offloaded=offloaded)
    if predict_memory(size, other).total <= plan.limit:
        assert planner.cost(size, other) >= planner.cost(size, plan.layout)


@settings(deadline=None)
@given(
    free=FREE,
    tokens=st.none() | st.integers(64, 9000),
    recomputed=st.none() | st.integers(0, 32),
    unnested=st.none() | st.booleans(),
    offloaded=st.none() | st.booleans(),
)
def test_the_users_wishes_are_kept(size, free, tokens, recomputed, unnested, offloaded):
    wishes = Wishes(tokens, recomputed, unnested, offloaded)
    layout = planner.plan(size, NF4, wishes, free=free, longest=500).layout
    for name in ("tokens", "recomputed", "unnested", "offloaded"):
        assert getattr(wishes, name) in (None, getattr(layout, name))


@settings(deadline=None)
@given(a=FREE, b=FREE)
def test_more_memory_is_never_slower(size, a, b):
    small, large = sorted((a, b))
    slow, fast = (planner.plan(size, NF4, Wishes(), free=free, longest=800) for free in (small, large))
    assume(slow.fits)
    assert planner.cost(size, fast.layout) <= planner.cost(size, slow.layout)


def test_a_micro_batch_is_no_larger_than_a_step_can_use(size: Sizes):
    plan = planner.plan(size, NF4, Wishes(), free=79 * GIB, longest=500, most=3000)
    assert 3000 <= plan.layout.tokens < 3000 + planner.STEP


def test_a_cpu_gets_a_constant_or_the_longest_example(size: Sizes):
    cpu = {"device": "cpu", "dtype": torch.float32, "quantization": "none"}
    assert make(size, 200, longest=100, **cpu).layout.tokens == planner.CPU_TOKENS
    few = planner.plan(size, replace(NF4, **cpu), Wishes(), free=200 * GIB, longest=100, most=900)
    assert few.layout.tokens == 900
    found = make(size, 200, longest=3000, **cpu).layout
    assert found.tokens == 3000
    assert (found.recomputed, found.unnested, found.offloaded) == (0, False, False)


def test_blocks_after_a_probe_by_hand(size: Sizes):
    """A compiled block saves 12.5 units of 8 kB a token, 1 of them if it recomputes: 11.5 * 8 kB * 1,000 each."""
    layout = replace(NF4, tokens=1000, recomputed=10, compiled=True)
    block = 11.5 * 8192 * 1000

    def found(peak: float, limit: float, **options: int) -> int:
        return planner.blocks_to_recompute(size, layout, peak=int(peak), limit=int(limit), **options)

    assert found(50 * block, 50 * block) == 10
    assert found(50.5 * block, 50 * block) == 11
    assert found(53 * block, 50 * block) == 13
    assert found(47.5 * block, 50 * block) == 8  # two more blocks would keep all, a third not
    assert found(10 * block, 50 * block) == 0
    assert found(500 * block, 50 * block) == 32
    # Half a batch was measured: the other half saves 22 blocks' worth of 500 tokens more.
    assert found(50 * block, 50 * block, tokens=500) == 21


def test_levers_say_what_would_fit(size: Sizes):
    plan = make(size, 20, Wishes(tokens=8192, recomputed=0, offloaded=False), quantization="none")
    assert not plan.fits
    levers = planner.levers(size, plan, longest=512)
    assert [lever.total for lever in levers] == sorted(lever.total for lever in levers)
    assert all(lever.total < plan.memory.total for lever in levers)
    settings = {lever.setting.partition("=")[0]: lever.total for lever in levers}
    assert (
        settings["model.quantization"] == predict_memory(size, replace(plan.layout, quantization="nf4")).total
    )
    assert "speed.unnest_scales" not in settings  # nothing is nested in a base of 16 bits
    assert "model.gradient_checkpointing" in settings
    fewer = predict_memory(size, replace(plan.layout, tokens=512)).total
    assert settings["train.tokens_per_microbatch"] == fewer
    # Where a single example fills a pass, only shorter examples help.
    told = [lever.setting for lever in planner.levers(size, plan, longest=8192)]
    assert "data.max_length at half" in told
