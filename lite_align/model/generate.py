"""Answers of the model in memory: batched, left padded; only temperature and top-p stand between logits and choice."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put all modules into eval mode and every single one back into its own afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Collection[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    pad_id: int = 0,
    seed: int = 0,
    batch_size: int = 16,
    tell: Callable[[int], None] | None = None,
) -> list[tuple[int, ...]]:
    """Continue prompts under the adapters that are active now.

    Greedy answers do not depend on the batch a prompt is in. The model's own generation defaults (top-k,
    penalties and so on) are not used, its train mode comes back, and the global random state is not touched.

    Args:
        model: a causal language model.
        prompts: token ids, at least one each.
        stop_ids: the answer ends with the first of these, which is kept.
        max_new_tokens: longest answer.
        temperature: 0 takes the likeliest token, else logits are divided by it and sampled from.
        top_p: sample from the likeliest tokens that have this probability together (arXiv 1904.09751, section 3.1).
        pad_id: any token id; it is masked.
        seed: of the sampling.
        batch_size: prompts at a time.
        tell: gets every new token of a single prompt as it is chosen, the stop id included; what it raises ends the
            generation.

    Returns the new token ids of each prompt, in the order given.

    Raises:
        ValueError: a prompt without tokens, or several that are to be told token by token.
    """
    if tell is not None and len(prompts) != 1:
        raise ValueError("one prompt at a time can be told token by token")
    if not all(len(prompt) for prompt in prompts):
        raise ValueError("a prompt needs at least one token")
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(stop_ids) or None,
        pad_token_id=pad_id,
        do_sample=temperature > 0,
        **({"temperature": temperature, "top_k": 0, "top_p": top_p} if temperature > 0 else {}),
    )
    # Prompts of like length together: less padding.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: dict[int, tuple[int, ...]] = {}
    devices = [model.device] if model.device.type == "cuda" else []
    with evaluating(model), _settings(model, settings), torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            rows = _continue(model, [prompts[i] for i in part], settings, pad_id, tell)
            answers |= {i: cut(row, stop_ids) for i, row in zip(part, rows)}
    return [answers[i] for i in range(len(prompts))]


class _Teller(BaseStreamer):
    """Passes the tokens of one row on, one by one, without those of the prompt."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self._tell = tell
        self._prompt_seen = False

    def put(self, value: Tensor) -> None:
        if self._prompt_seen:
            self._tell(int(value))
        self._prompt_seen = True

    def end(self) -> None:
        pass


def _continue(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    settings: GenerationConfig,
    pad_id: int,
    tell: Callable[[int], None] | None,
) -> list[list[int]]:
    """New tokens of a batch; rows that stopped early go on with padding."""
    longest = max(len(prompt) for prompt in prompts)
    ids = [[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    output: Any = model.generate(  # pyright: ignore[reportCallIssue]
        input_ids=torch.tensor(ids, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        generation_config=settings,
        streamer=None if tell is None else _Teller(tell),
    )
    return output[:, longest:].tolist()


def cut(row: Sequence[int], stop_ids: Collection[int]) -> tuple[int, ...]:
    """The row up to its first stop id, which is kept."""
    for place, token in enumerate(row):
        if token in stop_ids:
            return tuple(row[: place + 1])
    return tuple(row)


@contextmanager
def _settings(model: PreTrainedModel, settings: GenerationConfig) -> Iterator[None]:
    """Take the model's own generation defaults away: transformers mixes them into what is unset."""
    own = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own
