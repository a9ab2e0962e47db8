"""Compile decoder layers over differently packed rows; called with a device, a backend and kernels.

A process of its own: Dynamo keeps state, and its first use warns about things of its own. Prints for each kernel the
number of graphs and the largest relative error of hidden states and gradients against the layers before they were
compiled.
"""

import sys

import torch
from torch import nn
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM, Qwen2Config

from lite_align.data.forest import Batch, batch, grow
from lite_align.data.types import Rendered
from lite_align.model import attention
from lite_align.model.attention import Kernel, KernelKind

device, backend, *kinds = sys.argv[1:]
torch.set_num_threads(1)
torch.manual_seed(0)
attention.register()
config = Qwen2Config(
    vocab_size=64,
    # No row may have as many tokens as a head has numbers: Dynamo takes equal sizes for one and compiles once more.
    hidden_size=32,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    use_sliding_window=True,
    sliding_window=6,
    layer_types=["full_attention", "sliding_attention", "full_attention"],
)
dtype = torch.bfloat16 if device == "cuda" else torch.float32


def sequence(*ids: int) -> Rendered:
    return Rendered(ids, (False,) * len(ids))


def rows() -> list[Batch]:
    """Six rows of different numbers of trees, leaves and tokens; the fourth shares nothing, the last is long."""
    packed = []
    for n in range(6):
        leaves = [sequence(5, 6, 7, *range(10, 12 + n)), sequence(5, 6, 7, *range(30, 34 + 2 * n))]
        trees = [grow(0, leaves), grow(1, leaves[:1] * (1 + n))]
        if n == 3:
            trees = [grow(0, leaves[:1]), grow(1, leaves[1:])]
        if n == 5:
            long = [sequence(*range(1, 60), *(last,) * 250) for last in (61, 62, 63)]
            trees.append(grow(2, long))
        packed.append(batch(trees, pad_to=8).to(device))
    return packed


def run(model: nn.Module, row: Batch, kernel: Kernel) -> torch.Tensor:
    """Hidden states and gradients of all weights as one vector."""
    plan = attention.plan(row, kernel)
    hidden = model(
        input_ids=row.input_ids,
        position_ids=row.position_ids,
        attention_mask=plan.mask,
        use_cache=False,
        plan=plan,
    ).last_hidden_state
    gradients = torch.autograd.grad(hidden.float().square().mean(), list(model.parameters()))
    return torch.cat([x.detach().float().flatten() / x.float().norm() for x in (hidden, *gradients)])


def graphs_and_error(kernel: Kernel) -> tuple[int, float]:
    """Compile the layers of a new model."""
    torch._dynamo.reset()
    counters.clear()
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention.NAME)
    model = model.to(device, dtype).model
    packed = rows()
    plain = [run(model, row, kernel) for row in packed]
    for layer in model.layers:
        layer.compile(fullgraph=True, dynamic=True, backend=backend)
    errors = [(run(model, row, kernel) - before).abs().max().item() for row, before in zip(packed, plain)]
    return counters["stats"]["unique_graphs"], max(errors)


for kind in kinds:
    print(kind, *graphs_and_error(Kernel(KernelKind(kind), dtype, (6,))))
