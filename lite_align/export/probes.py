"""Whether an export still is the model of the run: greedy answers to fixed prompts, and the probabilities under them.

The answers of the run are decoded once; every other model is read along them (V vocabulary, n tokens of an answer).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lite_align.data.render import Renderer
from lite_align.data.types import Conversation, Message
from lite_align.errors import DataError
from lite_align.model import generate as generation

PROMPTS = (
    "Name a fruit.",
    "What is the capital of France?",
    "Explain in one sentence why the sky is blue.",
    "Write a short poem about rain.",
    "Translate to German: Good morning, how are you?",
    "What is 17 times 23?",
    "List three uses of a paper clip.",
    "Write a Python function that reverses a string.",
    "Give me a recipe for pancakes.",
    "Who wrote Romeo and Juliet?",
    "I feel sad today. What can I do?",
    "Summarise: The cat sat on the mat, and then it slept all day.",
    "Is it safe to eat raw potatoes?",
    "Correct the grammar: she go to school yesterday.",
    "What comes next: 2, 4, 8, 16?",
    "Tell me a fact about the ocean.",
)
"""Asked of every model, beside the probe prompts of its own run."""

PROBE_TOKENS = 32
MOST_KL = 1e-3
"""Nats a token by which an export may differ from the run, on average over the probe answers.

Measured with adapters on tiny that changed it by 2e-3: merged into the weights that they were trained on, 2e-9 in fp32
and 3e-5 rounded to bf16; trained on NF4, 1.4e-3 merged into the 16-bit base and 1.5e-3 merged and quantised again,
which loses nearly all of what was trained.
"""
LEAST_SAME_TOP = 0.98
"""Share of probe tokens whose likeliest successor must be the same; rounding turns close calls only."""


@dataclass(frozen=True)
class Answers:
    """Greedy answers of the run and the log-probs over the vocabulary at each of their tokens.

    Attributes:
        prompts: token ids.
        ids: token ids of the answers, the stop id included.
        logps: for each answer (n, V) fp32 on the CPU.
    """

    prompts: list[tuple[int, ...]]
    ids: list[tuple[int, ...]]
    logps: list[Tensor]


@dataclass(frozen=True)
class Agreement:
    """How close a model is to the run on the probe answers.

    Attributes:
        kl: mean over tokens of KL(run ‖ model), in nats.
        same_top: share of tokens with the same likeliest successor, along the run's answers.
        same_tokens: share of places at which both greedy answers have the same token; None if it was not decoded.
        tokens: how many tokens were compared.
    """

    kl: float
    same_top: float
    same_tokens: float | None
    tokens: int

    @property
    def acceptable(self) -> bool:
        """Whether the model may be handed over as that of the run."""
        return self.kl <= MOST_KL and self.same_top >= LEAST_SAME_TOP

    def told(self) -> str:
        """The figures in one line."""
        decoded = "" if self.same_tokens is None else f" · same greedy tokens {100 * self.same_tokens:.1f} %"
        return f"KL {self.kl:.1e} nats a token · same top token {100 * self.same_top:.1f} %{decoded}"


def probe_prompts(renderer: Renderer, own: Sequence[str]) -> list[tuple[int, ...]]:
    """Token ids of the fixed prompts and of the run's own; one that the template refuses is left out."""
    found: dict[tuple[int, ...], None] = {}
    for text in (*own, *PROMPTS):
        conversation: Conversation = (Message("user", text),)
        try:
            found[renderer.prompt_ids(conversation)] = None
        except DataError:
            continue
    return list(found)


def answer(
    model: PreTrainedModel, prompts: Sequence[tuple[int, ...]], *, stop_ids: frozenset[int], pad_id: int
) -> list[tuple[int, ...]]:
    """Greedy answers of at most `PROBE_TOKENS` tokens."""
    return generation.generate(model, prompts, stop_ids=stop_ids, max_new_tokens=PROBE_TOKENS, pad_id=pad_id)


@torch.no_grad()
def log_probs(model: Any, prompt: Sequence[int], ids: Sequence[int]) -> Tensor:
    """Log-probs over the vocabulary where each token of an answer is predicted: (n, V) fp32 on the CPU."""
    row = torch.tensor([[*prompt, *ids]], device=model.device)
    logits: Tensor = model(input_ids=row, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.float().log_softmax(-1).cpu()


def listen(
    model: PreTrainedModel, prompts: Sequence[tuple[int, ...]], *, stop_ids: frozenset[int], pad_id: int
) -> Answers:
    """Greedy answers of the run's model, and its log-probs along them."""
    ids = answer(model, prompts, stop_ids=stop_ids, pad_id=pad_id)
    with generation.evaluating(model):
        logps = [log_probs(model, prompt, each) for prompt, each in zip(prompts, ids, strict=True)]
    return Answers(list(prompts), ids, logps)


def compare(
    model: PreTrainedModel,
    answers: Answers,
    *,
    decode: Callable[[], Sequence[tuple[int, ...]]] | None = None,
) -> Agreement:
    """Read a model along the run's answers; `decode` gives its own greedy answers, to compare them too."""
    kl, same, tokens = 0.0, 0, 0
    with generation.evaluating(model):
        for prompt, ids, expected in zip(answers.prompts, answers.ids, answers.logps, strict=True):
            found = log_probs(model, prompt, ids)
            kl += float((expected.double().exp() * (expected.double() - found.double())).sum())
            same += int((expected.argmax(-1) == found.argmax(-1)).sum())
            tokens += len(ids)
    share = None if decode is None else same_tokens(answers.ids, decode())
    return Agreement(max(0.0, kl / tokens), same / tokens, share, tokens)


def same_tokens(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]) -> float:
    """Share of places with the same token, out of the longer answer's places.

    Example: (1, 2, 3) and (1, 9) agree at one of three places.
    """
    places = sum(max(len(a), len(b)) for a, b in zip(first, second, strict=True))
    equal = sum(x == y for a, b in zip(first, second, strict=True) for x, y in zip(a, b))
    return equal / places if places else 1.0
