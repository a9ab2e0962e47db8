"""Memory of a training step, predicted by part before anything is loaded, and the token budget that fits.

Pure functions of a configuration and a few numbers. The activation figures are bytes that autograd saves, measured
on this program's own forward (see `tests/model/test_budget.py`); one unit is a hidden state in bf16, 2 * H bytes.
"""

from dataclasses import asdict, dataclass

import torch
from transformers import PreTrainedConfig

from lite_align.model import load, lora
from lite_align.model.logps import tokens_at_once

BITS = {"none": None, "int8": 8.02, "nf4": 4.127}
"""Bits a weight with its scales (double quantisation: 4 + 8/64 + 32/(64 * 256))."""

CONTEXT = 450 * 2**20
"""Bytes that CUDA, its libraries and their workspaces hold."""

MARGIN = 0.92
"""Share of the free memory that is planned for; fragmentation takes some of the rest."""

CPU_TOKENS = 2048
"""Tokens in a micro-batch on a CPU, where larger ones only cost memory and cache misses."""

LEAST_TOKENS, MOST_TOKENS = 1024, 16384


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the prediction needs to know of an architecture.

    Attributes:
        layers: number of decoder blocks.
        hidden: H.
        key_value: width of the keys (and of the values) of a layer.
        query: width of the queries of a layer.
        feed_forward: width of the feed-forward part.
        vocabulary: V.
        block_weights: weights of the linear layers in the blocks.
        other_weights: embedding, head and norms; tied ones once.
        adapter_inputs_outputs: sum of inputs + outputs over all linear layers of the blocks.
    """

    layers: int
    hidden: int
    key_value: int
    query: int
    feed_forward: int
    vocabulary: int
    block_weights: int
    other_weights: int
    adapter_inputs_outputs: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes by part; `total` is their sum.

    Attributes:
        weights: linear layers of the blocks, as quantised.
        embeddings: embedding, head and norms in the dtype of the arithmetic.
        adapter: fp32 weights, gradients and both moments of the adapter.
        scratch: one weight matrix unpacked to the dtype of the arithmetic.
        head: the logits that are in memory at a time.
        activations: what the forward pass saves for the backward pass.
        context: what the device's libraries hold.
    """

    weights: int
    embeddings: int
    adapter: int
    scratch: int
    head: int
    activations: int
    context: int

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(asdict(self).values())


def sizes(config: PreTrainedConfig) -> Sizes:
    """Read sizes from a configuration; linear layers are counted on the meta device."""
    model = load.skeleton(config)
    text = config.get_text_config()
    shapes = [model.get_parameter(f"{name}.weight").shape for name in lora.block_linears(model)]
    block_weights = sum(outputs * inputs for outputs, inputs in shapes)
    options = text.to_dict()
    heads = text.num_attention_heads
    head_size = options.get("head_dim") or text.hidden_size // heads
    return Sizes(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        key_value=head_size * (options.get("num_key_value_heads") or heads),
        query=head_size * heads,
        feed_forward=options.get("intermediate_size") or 4 * text.hidden_size,
        vocabulary=text.vocab_size,
        block_weights=block_weights,
        other_weights=load.count_parameters(config) - block_weights,
        adapter_inputs_outputs=sum(outputs + inputs for outputs, inputs in shapes),
    )


def saved_per_token(size: Sizes, *, checkpointing: bool, element: int = 2) -> float:
    """Bytes that a token of a micro-batch keeps until the backward pass, all layers together.

    Without recomputation a layer saves gate, its activation, up and their product; what both norms read, in fp32,
    and what they give; queries, keys, values and the attention's output. With it, every layer keeps its input, and
    one layer at a time the rest.
    """
    layer = element * (4.0 * size.feed_forward + 2 * size.hidden + 2 * size.query + 2 * size.key_value)
    layer += 4 * 2.0 * size.hidden
    if not checkpointing:
        return size.layers * layer
    return size.layers * element * size.hidden + layer


def predict_memory(
    size: Sizes,
    *,
    quantization: str,
    rank: int,
    tokens_per_microbatch: int,
    checkpointing: bool,
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cuda",
) -> Memory:
    """Predict the peak memory of a training step in bytes, by part.

    Args:
        size: of the architecture, from `sizes`.
        quantization: none, nf4 or int8.
        rank: of the adapter on all linear layers of the blocks.
        tokens_per_microbatch: T.
        checkpointing: whether activations are recomputed.
        dtype: of the arithmetic.
        device: only cuda has a context and unpacks whole matrices.
    """
    element = dtype.itemsize
    bits = BITS[quantization] or 8 * element
    largest = size.hidden * size.feed_forward * element if quantization != "none" else 0
    rows = tokens_at_once(size.vocabulary, device)
    per_token = saved_per_token(size, checkpointing=checkpointing, element=element)
    return Memory(
        weights=int(size.block_weights * bits / 8),
        embeddings=size.other_weights * element,
        adapter=16 * rank * size.adapter_inputs_outputs,
        scratch=largest,
        # fp32 logits, and their copy in the dtype of the second product.
        head=rows * size.vocabulary * (4 + element),
        activations=int(tokens_per_microbatch * per_token),
        context=CONTEXT if device == "cuda" else 0,
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """A token budget, whether to recompute, and the predicted memory; `fits` tells whether that is enough."""

    tokens_per_microbatch: int
    checkpointing: bool
    memory: Memory
    fits: bool
    reason: str


def plan(
    size: Sizes,
    *,
    quantization: str,
    rank: int,
    free: int | None,
    longest: int,
    dtype: torch.dtype = torch.bfloat16,
    checkpointing: bool | None = None,
) -> Plan:
    """Choose tokens per micro-batch and whether to recompute, for `free` bytes of a GPU (None: a CPU).

    Without recomputation where at least 4,096 tokens fit (below that, unpacking 4-bit weights costs more than a
    recomputation saves), else with it; a multiple of 256, at least the longest example.

    Args:
        size: of the architecture.
        quantization: none, nf4 or int8.
        rank: of the adapter.
        free: bytes on the GPU before the model is loaded, or None on a CPU.
        longest: tokens of the longest example.
        dtype: of the arithmetic.
        checkpointing: the user's wish, or None to choose.
    """

    def predicted(tokens: int, recompute: bool) -> Memory:
        return predict_memory(
            size,
            quantization=quantization,
            rank=rank,
            tokens_per_microbatch=tokens,
            checkpointing=recompute,
            dtype=dtype,
            device="cpu" if free is None else "cuda",
        )

    if free is None:
        recompute = bool(checkpointing)
        tokens = max(CPU_TOKENS, longest)
        return Plan(tokens, recompute, predicted(tokens, recompute), True, "CPU: fits the caches")
    found: list[tuple[int, bool]] = []
    for recompute in (False, True) if checkpointing is None else (checkpointing,):
        left = free * MARGIN - predicted(0, recompute).total
        room = int(left / saved_per_token(size, checkpointing=recompute, element=dtype.itemsize))
        found.append((min(MOST_TOKENS, room // 256 * 256), recompute))
    wanted = max(4096, longest) if len(found) > 1 else 0
    tokens, recompute = next((item for item in found if item[0] >= wanted), found[-1])
    fits = tokens >= max(LEAST_TOKENS, longest)
    tokens = max(tokens, LEAST_TOKENS, longest)
    how = "with" if recompute else "without"
    reason = f"{free / load.GIB:.0f} GiB free, {how} recomputing activations"
    return Plan(tokens, recompute, predicted(tokens, recompute), fits, reason)
