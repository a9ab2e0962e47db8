"""Log-probs of chosen tokens from hidden states, without a logit of any other position.

Shape letters: M tokens, H hidden size, V vocabulary.
"""

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MoeModelOutputWithPast

from lite_align.errors import ModelError
from lite_align.model.blocks import Contexts

LOGITS_AT_ONCE = {"cpu": 2**22, "cuda": 2**25}
"""Logits in memory at a time, 16 and 128 MiB: they fit the caches of a CPU, and fill a GPU."""

LEAST_TOKENS_AT_ONCE = 64
"""Fewer tokens than this make slow matrix products."""


def tokens_at_once(vocabulary: int, device: str) -> int:
    """Tokens whose logits are in memory at a time, for a vocabulary and a kind of device."""
    return max(LEAST_TOKENS_AT_ONCE, LOGITS_AT_ONCE.get(device, 2**25) // vocabulary)


@dataclass(frozen=True)
class FrozenHead:
    """A linear head that is not trained: logits = softcap * tanh(scale * (W h + b) / softcap).

    Attributes:
        weight: (V, H).
        bias: (V,) or None.
        scale: factor of the logits.
        softcap: bound of the logits, or None.
        exact: the weight in fp32, kept for CPUs, which have no product of bf16 numbers with an fp32 result.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    exact: Tensor | None = None


@dataclass(frozen=True)
class OwnHead:
    """The model's head with all that its own code does to the logits, over a temperature: slower, always right."""

    model: PreTrainedModel
    temperature: float = 1.0


Head = FrozenHead | OwnHead


def at_temperature(head: Head, temperature: float) -> Head:
    """The head whose logits are divided by a temperature, after its softcap."""
    if isinstance(head, OwnHead):
        return replace(head, temperature=head.temperature * temperature)
    softcap = None if head.softcap is None else head.softcap / temperature
    return replace(head, scale=head.scale / temperature, softcap=softcap)


# How configurations name the factor of the logits: (key, whether it divides, only for this model type).
_SCALES: tuple[tuple[str, bool, str | None], ...] = (
    ("logit_scale", False, None),  # Cohere
    ("output_multiplier", False, None),
    ("lm_head_multiplier", False, None),  # Falcon-H1
    ("logits_scaling", False, "hyperclovax"),
    ("logits_scaling", True, None),  # Granite, MiniCPM3
)


def transform(config: PreTrainedConfig) -> tuple[float, float | None]:
    """Factor and softcap of the logits, read from a configuration."""
    options = config.get_text_config().to_dict()
    factor = 1.0
    for key, divides, kind in _SCALES:
        value = options.get(key)
        if value is not None and kind in (None, options.get("model_type")):
            factor = 1.0 / value if divides else float(value)
            break
    return factor, options.get("final_logit_softcapping") or None


def frozen_head(model: PreTrainedModel) -> FrozenHead | None:
    """Describe a model's head for the fast path; None if it is trained, wrapped by an adapter, or not linear."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or any(parameter.requires_grad for parameter in head.parameters()):
        return None
    scale, softcap = transform(model.config)
    on_cpu = head.weight.device.type == "cpu"
    return FrozenHead(head.weight, head.bias, scale, softcap, head.weight.float() if on_cpu else None)


@torch.no_grad()
def choose_head(model: PreTrainedModel, *, frozen: bool = True, seed: int = 0) -> Head:
    """Choose the fast path where it gives the model's own logits, else the model's own head.

    Two checks on 8 random tokens: the model's logits are a function of `last_hidden_state` alone; and the fast
    path computes that function, with hidden states scaled up until a softcap would show.

    Args:
        model: with its adapters.
        frozen: whether the fast path may be chosen.
        seed: of the tokens.

    Raises:
        ModelError: the model's logits do not come from the last hidden states of its decoder.
    """
    config = model.config.get_text_config()
    device = list(model.parameters())[-1].device  # the first may be an embedding on the host
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, config.vocab_size, (1, 8), generator=generator).to(device)
    hidden: Tensor = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
    expected = model(input_ids=ids, use_cache=False).logits[0]
    if not _close(own_logits(model, hidden), expected):
        raise ModelError(
            f"The logits of {config.model_type} models do not come from their last hidden state.",
            remedy="Use another model; this architecture cannot be trained here.",
        )
    fast = frozen_head(model) if frozen else None
    if fast is None:
        return OwnHead(model)
    largest = _logits(hidden, FrozenHead(fast.weight, fast.bias)).abs().max()
    for factor in (1.0, float(60 / largest.clamp_min(1e-6))):
        scaled = hidden * factor
        if not _close(_logits(scaled, fast), own_logits(model, scaled)):
            return OwnHead(model)
    return fast


def _close(ours: Tensor, theirs: Tensor) -> bool:
    tolerance = 1e-4 if theirs.dtype == torch.float32 else 3e-2
    theirs = theirs.float()
    return bool((ours.float() - theirs).abs().max() <= tolerance * theirs.abs().max())


def _logits(hidden: Tensor, head: FrozenHead) -> Tensor:
    logits = (hidden.float() @ head.weight.float().t()) * head.scale
    if head.bias is not None:
        logits = logits + head.scale * head.bias.float()
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


class _Given(nn.Module):
    """A decoder that returns the hidden states it was given."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, *_: Any, **__: Any) -> MoeModelOutputWithPast:
        return MoeModelOutputWithPast(last_hidden_state=self.hidden)  # pyright: ignore[reportArgumentType]


@contextmanager
def _decoder_returns(model: PreTrainedModel, hidden: Tensor) -> Iterator[None]:
    prefix = model.base_model_prefix
    decoder = model.base_model
    setattr(model, prefix, _Given(hidden))
    try:
        yield
    finally:
        setattr(model, prefix, decoder)


def own_logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits (M, V) that the model's own code makes of hidden states (M, H)."""
    # The ids are not read, as the decoder is replaced; some models ask for their number.
    ids = torch.zeros(1, len(hidden), dtype=torch.int64, device=hidden.device)
    with _decoder_returns(model, hidden[None]):
        return model(input_ids=ids, use_cache=False).logits[0]


def _no_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), nullcontext()


def token_logps(
    hidden: Tensor,
    head: Head,
    target: Tensor,
    *,
    chunk: int | None = None,
    contexts: Contexts = _no_contexts,
) -> Tensor:
    """Log-prob of each target token: hidden (M, H), target (M,) int64 -> (M,) fp32. See `token_scores`."""
    return token_scores(hidden, head, target, chunk=chunk, contexts=contexts)[0]


def token_scores(
    hidden: Tensor,
    head: Head,
    target: Tensor,
    *,
    chunk: int | None = None,
    contexts: Contexts = _no_contexts,
) -> tuple[Tensor, Tensor]:
    """Log-prob of each target token and whether none is likelier: hidden (M, H), target (M,) -> (M,) fp32, (M,) bool.

    A frozen head needs 2 matrix products with the vocabulary where gradients are asked for and 1 where not, and
    holds `chunk` x V logits at a time; the model's own head needs 3, as it is recomputed in the backward pass.

    Args:
        hidden: last hidden states, at the position before each target.
        head: from `choose_head`.
        target: token ids.
        chunk: tokens at a time; None: see `tokens_at_once`.
        contexts: re-enter the role of the forward pass where the model's own head is recomputed.
    """
    if isinstance(head, OwnHead):
        return _own_token_scores(hidden, head, target, chunk or 256, contexts)
    size = chunk or tokens_at_once(len(head.weight), hidden.device.type)
    needs_gradient = torch.is_grad_enabled() and hidden.requires_grad
    return _FrozenTokenScores.apply(hidden, target, head, size, needs_gradient)  # pyright: ignore[reportReturnType]


def _own_token_scores(
    hidden: Tensor, head: OwnHead, target: Tensor, chunk: int, contexts: Contexts
) -> tuple[Tensor, Tensor]:
    def logps(rows: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        logits = own_logits(head.model, rows).float() / head.temperature
        chosen = logits.gather(1, ids[:, None])[:, 0]
        return chosen - logits.logsumexp(1), chosen.detach() >= logits.detach().amax(1)

    parts = [
        checkpoint(logps, rows, ids, use_reentrant=False, context_fn=contexts)
        for rows, ids in zip(hidden.split(chunk), target.split(chunk))
    ]
    if not parts:
        return hidden.new_zeros(0, dtype=torch.float32), hidden.new_zeros(0, dtype=torch.bool)
    return torch.cat([logps for logps, _ in parts]), torch.cat([best for _, best in parts])


@torch.no_grad()
def token_statistics(hidden: Tensor, head: Head, target: Tensor) -> tuple[Tensor, Tensor]:
    """Log-prob of each target token, exactly as `token_scores` has it, and the entropy of its distribution, in nats.

    Hidden (M, H), target (M,) -> (M,) fp32 each, without gradients; one matrix product with the vocabulary.
    """
    logps, entropies = (torch.empty(len(target), device=hidden.device) for _ in range(2))
    size = 256 if isinstance(head, OwnHead) else tokens_at_once(len(head.weight), hidden.device.type)
    size = max(1, min(size, len(target)))
    for start in range(0, len(target), size):
        part = slice(start, start + size)
        y = _all_logits(hidden[part], head)
        if isinstance(head, OwnHead):
            logps[part] = y.gather(1, target[part][:, None])[:, 0] - y.logsumexp(1)
            y = y.sub_(y.amax(1, keepdim=True)).exp_()
            mass = y.sum(1, keepdim=True)
        else:
            logps[part], _, mass = _normalise(y, target[part])
        entropies[part] = mass.log()[:, 0] - torch.special.xlogy(y, y).sum(1) / mass[:, 0]
    return logps, entropies


def _all_logits(rows: Tensor, head: Head) -> Tensor:
    if isinstance(head, OwnHead):
        return own_logits(head.model, rows).float() / head.temperature
    weight, in_bf16 = _factor(rows, head)
    y = torch.empty(len(rows), len(weight), dtype=torch.float32, device=rows.device)
    _product(rows.to(weight.dtype), weight, y, in_bf16)
    _finish(y, head, needs_gradient=False)
    return y


class _FrozenTokenScores(torch.autograd.Function):
    """With W frozen, d logp / d h of a token depends on that token alone, so the forward forms it at once.

    With z = scale * (W h + b), capped to y, and p = softmax(y):
    d logp / d h = scale * ((onehot - p) * dy/dz) W; without a cap this is scale * (W[target] - p W).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, target: Tensor, head: FrozenHead, chunk: int, needs_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        chunk = max(1, min(chunk, len(target)))
        weight, in_bf16 = _factor(hidden, head)
        rows_of = hidden.detach().to(weight.dtype)
        back = head.weight if in_bf16 else weight
        logps = torch.empty(len(target), dtype=torch.float32, device=hidden.device)
        best = torch.empty(len(target), dtype=torch.bool, device=hidden.device)
        jacobian = torch.empty_like(hidden) if needs_gradient else None
        buffer = torch.empty(chunk, len(weight), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(target), chunk):
            part = slice(start, start + chunk)
            rows, ids = rows_of[part], target[part]
            y = buffer[: len(rows)]
            _product(rows, weight, y, in_bf16)
            slope = _finish(y, head, needs_gradient)
            logps[part], best[part], mass = _normalise(y, ids)
            if jacobian is not None:
                jacobian[part] = _rows(y, mass, slope, ids, back, head.scale)
        if jacobian is not None:
            ctx.save_for_backward(jacobian)
        ctx.mark_non_differentiable(best)
        return logps, best

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (jacobian,) = ctx.saved_tensors
        return (jacobian * gradients[0][:, None]).to(jacobian.dtype), None, None, None, None


def _factor(hidden: Tensor, head: FrozenHead) -> tuple[Tensor, bool]:
    """The weight that hidden states are multiplied with, and whether both are bf16 numbers."""
    # The logits are fp32: rounded to bf16 they cost 0.01 nats a token.
    weight = head.exact
    if weight is None:
        weight = head.weight if hidden.device.type == "cuda" else head.weight.float()
    return weight, head.weight.dtype == hidden.dtype == torch.bfloat16 and _cpu_has_bf16()


@functools.cache
def _cpu_has_bf16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _product(rows: Tensor, weight: Tensor, out: Tensor, in_bf16: bool) -> None:
    """Write rows @ weight.T to `out`, in fp32; `in_bf16` says that both were bf16 before."""
    if weight.dtype == torch.bfloat16:
        torch.mm(rows, weight.t(), out_dtype=torch.float32, out=out)
        return
    with _rounding_nothing() if in_bf16 and rows.device.type == "cpu" else nullcontext():
        torch.mm(rows, weight.t(), out=out)


@contextmanager
def _rounding_nothing() -> Iterator[None]:
    """Let CPUs multiply fp32 numbers as bf16 ones, with sums in fp32: nothing is lost where they fit into bf16."""
    matmul: Any = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _finish(y: Tensor, head: FrozenHead, needs_gradient: bool) -> Tensor | None:
    """Turn products into logits in place; returns dy/dz where a softcap makes it differ from 1."""
    if head.scale != 1.0:
        y.mul_(head.scale)
    if head.bias is not None:
        y.add_(head.bias.float(), alpha=head.scale)
    if head.softcap is None:
        return None
    y.div_(head.softcap).tanh_()
    slope = 1 - y.square() if needs_gradient else None
    y.mul_(head.softcap)
    return slope


def _normalise(y: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs (m,) of `ids`, and whether they are the largest; leaves exp(y - largest) in y, with row sums (m, 1)."""
    largest = y.amax(1, keepdim=True)
    chosen = y.gather(1, ids[:, None])
    best = (chosen >= largest)[:, 0]
    mass = y.sub_(largest).exp_().sum(1, keepdim=True)
    return (chosen - largest - mass.log())[:, 0], best, mass


def _rows(y: Tensor, mass: Tensor, slope: Tensor | None, ids: Tensor, weight: Tensor, scale: float) -> Tensor:
    """Rows (m, H) of d logp / d h from exp(y - largest) and its sums."""
    if slope is None:
        # Two bf16 values that nearly cancel are subtracted in fp32.
        gradient = weight[ids].float().sub_((y.to(weight.dtype) @ weight).float().div_(mass))
    else:
        y.div_(mass).neg_()
        y.scatter_add_(1, ids[:, None], y.new_ones(len(ids), 1))
        gradient = (y.mul_(slope).to(weight.dtype) @ weight).float()
    return gradient.mul_(scale) if scale != 1.0 else gradient
