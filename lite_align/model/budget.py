"""Memory of a training step, predicted by part before anything is loaded.

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

UNNESTED_BITS = 4.5
"""Bits a weight whose scales were unpacked: 4 + 32/64."""

CONTEXT = {"cuda": 450 * 2**20, "cpu": 24 * 2**20}
"""Bytes that libraries take when they first compute: CUDA's context and workspaces (calculated); code and buffers of
the CPU libraries (measured)."""

PRODUCTS = 300 * 2**20
"""Bytes of the products in bf16 that oneDNN compiles on a CPU for every shape, and keeps: 0.2 to 0.4 GB in runs of 6
to 36 steps."""

HEAP = {"cuda": 1.0, "cpu": 1.6}
"""Memory that a process takes for each byte of a step's tensors. glibc's heap keeps holes between those that live
until the backward pass: 1.5 to 1.8 in runs of models with 2.6 to 60 M parameters, 1.4 where all batches have one
length, 1.0 with every tensor in a mapping of its own (which costs more time than the memory is worth)."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the prediction needs to know of an architecture.

    Attributes:
        layers: number of decoder blocks, L.
        hidden: H.
        key_value: width of the keys (and of the values) of a layer.
        query: width of the queries of a layer.
        feed_forward: width of the feed-forward part.
        vocabulary: V.
        tied: whether the head is the embedding.
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
    tied: bool
    block_weights: int
    other_weights: int
    adapter_inputs_outputs: int


@dataclass(frozen=True, slots=True)
class Layout:
    """How a training step lies in memory.

    Attributes:
        quantization: none, nf4 or int8.
        rank: of the adapter on all linear layers of the blocks.
        tokens: of a micro-batch, T.
        dtype: of the arithmetic.
        device: cuda or cpu.
        recomputed: how many of the L blocks recompute their activations.
        compiled: whether the blocks are compiled, and so save less.
        unnested: whether the scales of 4-bit weights are unpacked.
        offloaded: whether the input embedding lies in the memory of the host.
        masked: whether attention has a mask of all pairs of tokens.
        dropout: whether the adapter has dropout.
    """

    quantization: str
    rank: int
    tokens: int
    dtype: torch.dtype = torch.bfloat16
    device: str = "cuda"
    recomputed: int = 0
    compiled: bool = False
    unnested: bool = False
    offloaded: bool = False
    masked: bool = False
    dropout: bool = False


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes by part; `total` is their sum.

    Attributes:
        weights: linear layers of the blocks, as quantised.
        embeddings: embedding, head and norms; on a CPU also the fp32 copy of a head in bf16.
        adapter: fp32 weights at the start and now, gradients and both moments.
        activations: what the forward pass saves for the backward pass.
        working: the larger of the logits that are in memory at a time and the gradients inside of one block with a
            weight matrix unpacked; and a mask.
        context: what the device's libraries hold.
    """

    weights: int
    embeddings: int
    adapter: int
    activations: int
    working: int
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
        tied=bool(config.tie_word_embeddings),
        block_weights=block_weights,
        other_weights=load.count_parameters(config) - block_weights,
        adapter_inputs_outputs=sum(outputs + inputs for outputs, inputs in shapes),
    )


def saved_by_block(size: Sizes, layout: Layout) -> float:
    """Bytes that one block saves for each token of a micro-batch.

    Called as it is: gate, its activation, up and their product; what both norms read, in fp32, and what they give;
    queries, keys, values and the attention's output. Compiled: gate and up, the block's input, the sum after the
    attention and its norm, queries, keys, values and the attention's output; the rest is made again inside of fused
    kernels. With dropout every layer also saves its own input with gaps, and the mask, a byte an element.
    """
    element = layout.dtype.itemsize
    inputs = 5 * size.hidden + size.query + size.feed_forward
    dropped = layout.dropout * (element + 1) * inputs
    attention = 2 * size.query + 2 * size.key_value
    if layout.compiled:
        return dropped + element * (2.0 * size.feed_forward + 3 * size.hidden + attention)
    plain = element * (4.0 * size.feed_forward + 2 * size.hidden + attention)
    return dropped + plain + 4 * 2.0 * size.hidden


def saved_per_token(size: Sizes, layout: Layout) -> float:
    """Bytes that a token of a micro-batch keeps until the backward pass, all blocks together.

    A block that recomputes keeps its input; one of them at a time has the rest as well.
    """
    element = layout.dtype.itemsize
    block = saved_by_block(size, layout)
    kept = size.layers - layout.recomputed + (layout.recomputed > 0)
    return kept * block + layout.recomputed * element * size.hidden


def predict_memory(size: Sizes, layout: Layout) -> Memory:
    """Predict the peak memory of a training step in bytes, by part, over what the process held before loading."""
    element, on_cpu = layout.dtype.itemsize, layout.device == "cpu"
    bits = UNNESTED_BITS if layout.unnested else BITS[layout.quantization] or 8 * element
    embedding = size.vocabulary * size.hidden
    embeddings = (size.other_weights - embedding * (layout.offloaded and not size.tied)) * element
    if on_cpu and layout.dtype != torch.float32:
        embeddings += 4 * embedding
    # fp32 logits, and their copy in the dtype of the second product where that is another one.
    head = tokens_at_once(size.vocabulary, layout.device) * size.vocabulary * (4 + element % 4)
    unpacked = size.hidden * size.feed_forward * element if layout.quantization != "none" else 0
    # Gradients of gate, up and their product, of the block's input and of its output.
    inside = layout.tokens * element * (3 * size.feed_forward + 2 * size.hidden) + unpacked
    mask = layout.tokens**2 * element * layout.masked
    heap = HEAP[layout.device]
    products = PRODUCTS if on_cpu and layout.dtype == torch.bfloat16 else 0
    return Memory(
        weights=int(size.block_weights * bits / 8),
        embeddings=embeddings,
        adapter=20 * layout.rank * size.adapter_inputs_outputs,
        activations=int(heap * layout.tokens * saved_per_token(size, layout)),
        working=int(heap * (max(head, inside) + mask)),
        context=CONTEXT[layout.device] + products,
    )
