"""The shared-prefix attention function: registered with transformers, told what to do by a forward argument.

    register()
    model = AutoModelForCausalLM.from_pretrained(..., attn_implementation=NAME)
    kernel = choose(model.config, device, dtype)
    the_plan = plan(batch, kernel)
    model.model(input_ids=batch.input_ids, position_ids=batch.position_ids, attention_mask=the_plan.mask,
                use_cache=False, plan=the_plan)

`attention_mask=the_plan.mask` may be left out: the result is the same, but transformers then builds a mask of
T * T entries that nobody reads. Without `plan` (generation) the function is torch's ordinary attention.

Never use a built-in implementation with these batches: it reads restarted position ids as the begin of a new
document and hides the root from its leaves.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from lite_align.errors import ModelError
from lite_align.model import varlen
from lite_align.model.kernels import BatchLike, MaskedPlan, masked_attention
from lite_align.model.tiled import ON_A_GPU, TILE, TiledPlan, tile_size
from lite_align.model.varlen import VarlenPlan

__all__ = [
    "NAME",
    "AttentionPlan",
    "Kernel",
    "KernelKind",
    "Sharing",
    "can_share",
    "choose",
    "plan",
    "register",
    "shares_exactly",
]

NAME = "lite_shared"

AttentionPlan = TiledPlan | VarlenPlan | MaskedPlan

_SHARABLE_LAYERS = {"full_attention", "sliding_attention"}

_HARMLESS = {
    "cache_position",
    "is_causal",
    "output_attentions",
    "output_hidden_states",
    "position_ids",
    "return_dict",
    "use_cache",
}
"""Keyword arguments that models pass on to attention and that do not change its result in training."""


class KernelKind(StrEnum):
    """How attention is computed (see `tiled.py`, `varlen.py` and `kernels.py`)."""

    TILED = "tiled"
    VARLEN = "varlen"
    MASKED = "masked"


@dataclass(frozen=True, slots=True)
class Kernel:
    """The kernel of a model, known from its configuration.

    `dtype` and `windows` matter to MASKED only, `tile` (queries in a tile) to TILED.

    `reason` says in words what was chosen and why; it takes no part in comparisons.
    """

    kind: KernelKind
    dtype: torch.dtype = torch.float32
    windows: tuple[int, ...] = ()
    tile: int = TILE
    reason: str = field(default="", compare=False)


class Sharing(NamedTuple):
    """Whether leaves can share their root, and if not, why; it is true where they can."""

    possible: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.possible


def register() -> None:
    """Make `attn_implementation="lite_shared"` known to transformers; calling it again changes nothing."""
    AttentionInterface.register(NAME, shared_prefix_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def choose(config: PreTrainedConfig, device: torch.device | str, dtype: torch.dtype) -> Kernel:
    """Choose the kernel for a model on this device with activations of this dtype; no weights are needed.

    CPU: tiles. CUDA: the varlen flash kernel, where it can run (fp16 or bf16, compute capability 8.0 and up,
    head size a multiple of 8 up to 256); tiles with a softcap, or a head size that no fast kernel takes; else
    the mask.
    """
    options = config.get_text_config().to_dict()
    device = torch.device(device)
    if device.type != "cuda":
        tile = tile_size(options["num_attention_heads"])
        return Kernel(KernelKind.TILED, tile=tile, reason=f"tiles, made for the {device.type.upper()}")
    # Not flex_attention, which caps scores too: it must be compiled, has no backward on the CPU to be tested
    # with (torch 2.13), and the models that cap attention scores (Gemma 2) are few.
    if softcap := options.get("attn_logit_softcapping"):
        reason = f"tiles: attention scores are capped at {softcap:g}"
        return Kernel(KernelKind.TILED, tile=ON_A_GPU, reason=reason)
    if odd := [size for size in _head_sizes(options) if size % 8]:
        reason = f"tiles: head size {odd[0]} is no multiple of 8"
        return Kernel(KernelKind.TILED, tile=ON_A_GPU, reason=reason)
    capability = torch.cuda.get_device_capability(device)
    lack = _flash_lacks(options, capability, dtype)
    if not lack:
        card = f"{_name(dtype)}, {_card(capability)}"
        return Kernel(KernelKind.VARLEN, reason=f"varlen flash attention: {card}")
    slides = "sliding_attention" in (options.get("layer_types") or ["sliding_attention"])
    windows = tuple(_numbers(options, "sliding_window")) if slides else ()
    reason = f"a mask of all pairs of tokens (slower): {lack}"
    return Kernel(KernelKind.MASKED, dtype, tuple(sorted(set(windows))), reason=reason)


def _flash_lacks(options: dict, capability: tuple[int, int], dtype: torch.dtype) -> str:
    """Say why the varlen flash kernel cannot run a model; nothing where it can."""
    sizes = _head_sizes(options)
    if capability < (8, 0):
        return f"{_card(capability)} is below 8.0"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"activations are {_name(dtype)}, not float16 or bfloat16"
    if max(sizes) > 256:
        return f"head size {max(sizes)} is above 256"
    # Their backward needs the shared memory of the large cards, as torch checks for its own attention
    # (check_requires_grad_and_head_dim_gt192_constraints_on_sm86_89_or_120 in sdp_utils.cpp).
    small = (8, 0) < capability < (9, 0) or capability >= (12, 0)
    if small and (large := [size for size in sizes if 192 < size <= 224]):
        return f"head size {large[0]} cannot be trained with {_card(capability)}"
    if options.get("v_head_dim"):
        return "values have a head size of their own"
    return "" if varlen.flash_is_usable() else "this torch was built without flash attention"


def _card(capability: tuple[int, int]) -> str:
    return f"compute capability {capability[0]}.{capability[1]}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _head_sizes(options: dict) -> list[int]:
    sizes = set(_numbers(options, "head_dim"))
    if not options.get("head_dim"):
        sizes.add(options["hidden_size"] // options["num_attention_heads"])
    return sorted(sizes)


def _numbers(options: dict, ending: str) -> Iterator[int]:
    """Yield the numbers under keys with this ending, those of single layers (`per_layer_config`) included."""
    for name, value in options.items():
        if isinstance(value, dict):
            yield from _numbers(value, ending)
        elif str(name).endswith(ending) and isinstance(value, int) and value:
            yield value


def plan(batch: BatchLike, kernel: Kernel | None = None) -> AttentionPlan:
    """Build what attention needs of a batch, once for all layers; without a kernel: tiles."""
    if kernel is None or kernel.kind is KernelKind.TILED:
        return TiledPlan.of(batch, kernel.tile if kernel else TILE)
    if kernel.kind is KernelKind.VARLEN:
        return VarlenPlan.of(batch)
    return MaskedPlan.of(batch, kernel.dtype, kernel.windows)


def can_share(config: PreTrainedConfig) -> Sharing:
    """Tell from a model's configuration whether leaves can share a root (recurrent layers cannot, for example).

    True promises that the model calls attention through transformers' interface with nothing that the kernels
    lack; `shares_exactly` proves it for a loaded model.
    """
    text = config.get_text_config()
    if type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return Sharing(
            False, f"{text.model_type} is not a causal language model of this transformers version"
        )
    found = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(text), None)
    model = found[0] if isinstance(found, tuple) else found
    if model is None:
        return Sharing(
            False, f"{text.model_type} is not a causal language model of this transformers version"
        )
    options = text.to_dict()
    others = set(options.get("layer_types") or ()) - _SHARABLE_LAYERS
    if model._is_stateful or others & {"linear_attention", "conv", "hybrid", "hybrid_sliding"}:
        return Sharing(False, f"{text.model_type} has recurrent layers, whose state cannot branch")
    if others:
        return Sharing(False, f"{text.model_type} has layers of the kind {', '.join(sorted(others))}")
    if not model._supports_attention_backend:
        return Sharing(False, f"{text.model_type} does not let its attention be replaced")
    if not model._supports_sdpa and not options.get("attn_logit_softcapping"):
        return Sharing(False, f"{text.model_type} has a special attention (such as sinks)")
    if options.get("attention_dropout"):
        return Sharing(False, "attention dropout is on; set attention_dropout to 0 in the model's config")
    return Sharing(True)


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    plan: AttentionPlan | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attend along the plan: (1, H, T, D) with fewer key heads -> (1, T, H, D), as transformers calls it.

    Without a plan: ordinary attention with the mask that transformers made.

    Raises:
        ModelError: the layer asks for something that the kernels lack (dropout, sinks, position bias).
    """
    if plan is None:
        return _ordinary(module, query, key, value, attention_mask, dropout, scaling, softcap, kwargs)
    unknown = sorted(name for name, given in kwargs.items() if given is not None and name not in _HARMLESS)
    if dropout:
        unknown.append("dropout")
    if unknown or len(query) != 1:
        what = ", ".join(unknown) or f"{len(query)} rows instead of one"
        raise ModelError(f"shared-prefix attention cannot handle {what}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    out = plan.attend(q, k, v, scale, sliding_window or 0, softcap or 0.0)
    return out[None], None


def _ordinary(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
    kwargs: dict,
) -> tuple[Tensor, None]:
    """Run transformers' own function; it has no softcap, so layers with one are computed here."""
    if not softcap:
        return sdpa_attention_forward(
            module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs
        )
    size, keys = query.shape[2], key.shape[2]
    if mask is None and size > 1:
        mask = torch.ones(size, keys, dtype=torch.bool, device=query.device).tril(keys - size)
    if mask is not None and mask.dtype == torch.bool:
        # A row of the left padding sees nothing: the lowest number instead of -inf keeps it finite.
        lowest = torch.finfo(torch.float32).min
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, lowest)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return masked_attention(query, key, value, mask, scale, softcap).transpose(1, 2).contiguous(), None


class _Segment(NamedTuple):
    start: int
    stop: int
    shared_start: int
    shared_stop: int


class _Probe(NamedTuple):
    """A tree with a root of 5 tokens at 0:5 and leaves at 5:8 and 8:11, as a batch."""

    input_ids: Tensor
    position_ids: Tensor
    kv_index: Tensor
    cu_q: Tensor
    cu_k: Tensor
    max_q: int = 8
    max_k: int = 8
    segments: tuple[_Segment, ...] = (_Segment(0, 8, 0, 0), _Segment(8, 11, 0, 5))


def shares_exactly(base: nn.Module, kernel: Kernel, vocabulary: int, tolerance: float) -> bool:
    """Compare a tiny tree with its two sequences, run one by one, on a loaded model without its head.

    Catches models that pass `can_share` and yet use places in the row instead of position ids, or a mask of
    their own. `tolerance` is relative to the largest hidden state (1e-4 in fp32, 5e-2 in bf16).

    Raises:
        ModelError: a layer asks for something that the kernels lack.
    """
    device = list(base.parameters())[-1].device  # the first may be an embedding on the host
    ids = torch.arange(1, 12, device=device) * 7 % vocabulary
    leaves = [torch.arange(8, device=device), torch.tensor([0, 1, 2, 3, 4, 8, 9, 10], device=device)]
    probe = _Probe(
        input_ids=ids[None],
        position_ids=torch.cat((leaves[0], leaves[0][5:]))[None],
        kv_index=torch.cat(leaves),
        cu_q=torch.tensor([0, 8, 11], dtype=torch.int32, device=device),
        cu_k=torch.tensor([0, 8, 16], dtype=torch.int32, device=device),
    )
    the_plan = plan(probe, kernel)
    with torch.no_grad():
        together = base(
            input_ids=probe.input_ids,
            position_ids=probe.position_ids,
            attention_mask=the_plan.mask,
            use_cache=False,
            plan=the_plan,
        ).last_hidden_state[0]
        for leaf in leaves:
            alone = base(input_ids=ids[None, leaf], use_cache=False).last_hidden_state[0]
            difference = (together[leaf] - alone).abs().max()
            if not bool(difference <= tolerance * alone.abs().max()):
                return False
    return True
