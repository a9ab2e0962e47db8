"""Sampling for rollouts: every prompt computed once, finished rows leave, each step a fixed list of kernels.

A step reads and writes buffers that stay where they are and asks the host nothing, so CUDA replays it as a graph; on
the CPU the same step runs as it is. Rows are left padded; the cache has a slot for every token that may come, and the
mask hides those that have not.

Shape letters: R rows (answers that are sampled together), L slots of the cache, N longest answer, V vocabulary.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from lite_align.errors import ModelError
from lite_align.model.generate import cut, evaluating
from lite_align.model.replay import Runner, runner_of

PREFILL_TOKENS = {"cpu": 2048}
"""Tokens of a pass over prompts, padding included; more of them hold more activations and gain no time."""

MOST_PREFILL_TOKENS = 16384
"""On any other device."""

_KNOWN_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


@dataclass(frozen=True)
class Sampled:
    """An answer: its tokens, the stop id included, and the sampler's own log-probs of them.

    The log-probs are those at the temperature, before top-k and top-p. They were computed one token at a time from a
    cache; compare them with the policy's own, never train on them.
    """

    ids: tuple[int, ...]
    logps: tuple[float, ...]


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    samples: int = 1,
    stop_ids: Collection[int],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    pad_id: int = 0,
    seed: int = 0,
    batch_size: int = 64,
    advance: Callable[[int], None] | None = None,
    runner: Runner | None = None,
) -> list[list[Sampled]]:
    """Sample answers to prompts from softmax(logits / temperature), under the adapters that are active now.

    An answer depends on the seed, the number of its prompt and its own number alone: not on the batch, the order or
    the other prompts, up to the rounding of logits. The model's own generation defaults are not used, its train mode
    comes back, and the global random state is not touched.

    Args:
        model: a causal language model whose layers are all attention.
        prompts: token ids, at least one each.
        samples: answers to each prompt; it is computed once for as many of them as fit a batch.
        stop_ids: an answer ends with the first of these, which is kept.
        max_new_tokens: longest answer.
        temperature: 0 takes the likeliest token; log-probs are those at temperature 1 then.
        top_k: sample from so many of the likeliest tokens; 0: from all.
        top_p: sample from the likeliest tokens that have this probability together (arXiv 1904.09751, section 3.1),
            after top-k.
        pad_id: any token id; it is masked.
        seed: of the sampling.
        batch_size: most answers at a time.
        advance: is told how many more answers are finished, now and then.
        runner: how steps are run; None takes what suits the model and its device.

    Returns the answers to each prompt, in the order given.

    Raises:
        ValueError: a prompt without tokens, or a number that must be positive and is not.
        ModelError: the model has recurrent layers, whose state is no cache of tokens.
    """
    if not all(len(prompt) for prompt in prompts):
        raise ValueError("a prompt needs at least one token")
    if min(samples, max_new_tokens, batch_size) < 1 or temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise ValueError("samples, lengths, temperature, top_k and top_p must lie in their ranges")
    _check(model)
    answers: list[list[Sampled]] = [[] for _ in prompts]
    if not prompts:
        return answers
    parts = list(_parts([len(prompt) for prompt in prompts], samples, batch_size))
    rows = max(len(part.prompts) * len(part.numbers) for part in parts)
    choice = Choice(temperature, top_k, top_p)
    decoder = _Decoder(model, rows, max(map(len, prompts)), max_new_tokens, stop_ids, choice, runner)
    with evaluating(model):
        for part in parts:
            decoder.prefill([prompts[i] for i in part.prompts], len(part.numbers), pad_id)
            pairs = [(i, number) for i in part.prompts for number in part.numbers]
            drawn = [uniforms(seed, i, number, max_new_tokens) for i, number in pairs]
            found = decoder.finish(torch.stack(drawn), advance or (lambda count: None))
            for (i, _), answer in zip(pairs, found):
                answers[i].append(answer)
    return answers


def uniforms(seed: int, prompt: int, number: int, count: int) -> Tensor:
    """Numbers in [0, 1) for one answer, one a token: (count,) fp64; a longer answer only adds to them."""
    generator = numpy.random.default_rng([seed % 2**64, prompt, number])
    return torch.from_numpy(generator.random(count))


@dataclass(frozen=True)
class Choice:
    """How a token is chosen from logits; see `sample`."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __call__(self, logits: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Choose by the inverse of the cumulative distribution: (R, V) logits, (R, 1) fp64 uniforms -> (R,), (R,).

        Returns tokens and their fp32 log-probs at the temperature.
        """
        scores = logits.float() / (self.temperature or 1.0)
        logps = scores.log_softmax(-1)
        tokens = self._sampled(logps, drawn) if self.temperature else scores.argmax(-1, keepdim=True)
        return tokens[:, 0], logps.gather(-1, tokens)[:, 0]

    def _sampled(self, logps: Tensor, drawn: Tensor) -> Tensor:
        probabilities, tokens = logps.exp().double(), None
        if self.top_k or self.top_p < 1:
            probabilities, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
            if self.top_k:
                probabilities[:, self.top_k :] = 0
            before = probabilities.cumsum(-1) - probabilities
            probabilities *= before < self.top_p * probabilities.sum(-1, keepdim=True)
        cumulative = probabilities.cumsum(-1)
        total = cumulative[:, -1:]
        # Below the total even where the product rounds up to it: what is found has a probability above 0.
        place = torch.minimum(drawn * total, total.nextafter(torch.zeros_like(total)))
        found = torch.searchsorted(cumulative, place, right=True)
        return found if tokens is None else tokens.gather(-1, found)


@dataclass(frozen=True)
class _Part:
    """Answers that are sampled together: for each of these prompts the answers of these numbers."""

    prompts: tuple[int, ...]
    numbers: range


def _parts(lengths: Sequence[int], samples: int, batch_size: int) -> Iterator[_Part]:
    """Prompts of like length together, with all of their answers if these fit a batch."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    together = max(1, batch_size // samples)
    for start in range(0, len(order), together):
        for first in range(0, samples, batch_size):
            numbers = range(first, min(samples, first + batch_size))
            yield _Part(tuple(order[start : start + together]), numbers)


def _passes(lengths: Sequence[int], budget: int) -> Iterator[range]:
    """Neighbouring rows that are run together: so many that they fit the budget, padded to their longest."""
    start, longest = 0, 0
    for row, length in enumerate(lengths):
        longest = max(longest, length)
        if row > start and longest * (row + 1 - start) > budget:
            yield range(start, row)
            start, longest = row, length
    yield range(start, len(lengths))


def _check(model: PreTrainedModel) -> None:
    kinds = set(model.config.get_text_config().to_dict().get("layer_types") or ())
    if model._is_stateful or kinds - _KNOWN_LAYERS:
        raise ModelError(
            f"{model.config.model_type} has recurrent layers: answers cannot be sampled from it for training.",
            remedy="Take a model whose layers are all attention.",
        )


class _View:
    """What a pass sees of the cache: its rows, its first slots, and the slots that it fills."""

    def __init__(self, slots: Tensor) -> None:
        self.first = 0
        self.rows = 0
        self.visible = 0
        self.slots = slots


class _Layer(CacheLayerMixin):
    """Keys and values of a layer, (R, heads, L, size), allocated at the first pass and never moved."""

    is_compileable = True  # tells transformers that a step needs a mask whatever it holds

    def __init__(self, view: _View, rows: int, length: int) -> None:
        super().__init__()
        self._view, self._rows, self._length = view, rows, length

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        # Zeros: a masked slot still takes part with the weight 0, which must not meet a NaN.
        self.keys, self.values = (
            new.new_zeros(self._rows, new.shape[1], self._length, new.shape[3])
            for new in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        view, seen = self._view, []
        for kept, new in ((self.keys, key_states), (self.values, value_states)):
            assert kept is not None
            part = kept[view.first : view.first + view.rows, :, : view.visible]
            part.index_copy_(2, view.slots, new)
            seen.append(part)
        return seen[0], seen[1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._view.visible, 0

    def get_seq_length(self) -> Any:
        return self._view.slots[0]

    def get_max_length(self) -> int:
        return self._length

    def select(self, rows: Tensor) -> None:
        """Put these rows first, in this order."""
        for kept in (self.keys, self.values):
            if kept is not None:  # layers that share another one's keys have none
                part = kept[:, :, : self._view.visible]
                part[: len(rows)] = part.index_select(0, rows)


class _Decoder:
    """The buffers of a batch, and the passes that move them on."""

    def __init__(
        self,
        model: PreTrainedModel,
        rows: int,
        longest: int,
        new: int,
        stop_ids: Collection[int],
        choice: Choice,
        runner: Runner | None,
    ) -> None:
        self.model, self.choice = model, choice
        self.runner = runner or runner_of(model)
        self.device = device = model.device
        self.length = -(-(longest + new) // self.runner.slots) * self.runner.slots
        self.most = new
        self.stops = torch.tensor(sorted(stop_ids), dtype=torch.long, device=device)
        self.view = _View(torch.zeros(1, dtype=torch.long, device=device))
        layers = range(model.config.get_text_config().num_hidden_layers)
        self.layers = [_Layer(self.view, rows, self.length) for _ in layers]
        self.cache = Cache(layers=[*self.layers])
        # One row for each answer, in the order of the cache's rows.
        self.ids = torch.zeros(rows, dtype=torch.long, device=device)
        self.positions = torch.zeros(rows, dtype=torch.long, device=device)
        self.seen = torch.ones(rows, self.length, dtype=torch.bool, device=device)
        self.uniforms = torch.zeros(rows, new, dtype=torch.double, device=device)
        self.tokens = torch.zeros(rows, new, dtype=torch.long, device=device)
        self.logps = torch.zeros(rows, new, device=device)
        self.done = torch.zeros(rows, dtype=torch.bool, device=device)
        # Where a step writes: the slot of the cache and the token of the answer.
        self.slot = torch.zeros(1, dtype=torch.long, device=device)
        self.turn = torch.zeros(1, dtype=torch.long, device=device)

    def prefill(self, prompts: Sequence[Sequence[int]], times: int, pad_id: int) -> None:
        """Run prompts once, repeat what is known of them so many times, and keep the logits of their last tokens.

        Prompts of like length, the shortest first, share a pass and its padding.
        """
        longest = max(map(len, prompts))
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        known = torch.arange(longest, device=self.device) >= (longest - lengths)[:, None]
        budget = PREFILL_TOKENS.get(self.device.type, MOST_PREFILL_TOKENS)
        parts = list(_passes([len(prompt) for prompt in prompts], budget))
        logits = torch.cat([self._prefill(prompts, part, known, pad_id) for part in parts])
        rows = torch.arange(len(prompts), device=self.device).repeat_interleave(times)
        for layer in self.layers:
            layer.select(rows)
        view = self.view
        view.first, view.rows, view.slots = 0, len(rows), self.slot
        self.slot.fill_(longest)
        self.seen.fill_(True)
        self.seen[: len(rows), :longest] = known[rows]
        self.positions[: len(rows)] = lengths[rows]
        self._logits = logits[rows]
        self._filled = longest

    def _prefill(self, prompts: Sequence[Sequence[int]], part: range, known: Tensor, pad_id: int) -> Tensor:
        """Run some of the prompts, which end in the same slot as all others, and return their last logits."""
        longest = known.shape[1]
        own = max(len(prompts[row]) for row in part)
        ids = [[pad_id] * (own - len(prompts[row])) + list(prompts[row]) for row in part]
        attended = known[part.start : part.stop]
        view = self.view
        view.first, view.rows, view.visible = part.start, len(part), longest
        view.slots = torch.arange(longest - own, longest, device=self.device)
        output = self.model(
            input_ids=torch.tensor(ids, device=self.device),
            attention_mask=attended,
            # An index, as it copies: of a slice, whose rows do not lie end to end, torch's linear on the CPU multiplies
            # each row with a copy of the head of its own (torch 2.13).
            logits_to_keep=torch.tensor([own - 1], device=self.device),
            position_ids=(attended.cumsum(1) - 1).clamp_min(0)[:, longest - own :],
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.logits[:, -1]

    def finish(self, drawn: Tensor, advance: Callable[[int], None]) -> list[Sampled]:
        """Sample to the end, with (R, N) uniforms; the answers come in the order of the rows."""
        view, runner = self.view, self.runner
        self.uniforms[: view.rows] = drawn.to(self.device)
        self.done.fill_(False)
        self.turn.zero_()
        self._choose(self._logits)
        answers: dict[int, Sampled] = {}
        row_of, made = list(range(view.rows)), 1
        while True:
            done = self.done[: view.rows].tolist()
            alive = [row for row, over in enumerate(done) if not over] if made < self.most else []
            target = runner.rows(view.rows, len(alive))
            if target < view.rows:
                before = len(answers)
                left = [row for row, over in enumerate(done) if over or not alive]
                answers |= self._read(left, [row_of[row] for row in left], made)
                advance(len(answers) - before)
                # Finished rows fill up what a graph has been made for.
                kept = [*alive, *left[: target - len(alive)]]
                if not alive:
                    return [answers[row] for row in range(len(drawn))]
                self._select(kept)
                row_of = [row_of[row] for row in kept]
            steps = min(runner.steps, self.most - made)
            view.visible = -(-(self._filled + steps) // runner.slots) * runner.slots
            for _ in range(steps):
                runner.run((view.rows, view.visible), self._step)
            self._filled += steps
            made += steps

    def _step(self) -> None:
        """Append a token to every row: no value decides here what is run, and nothing goes to the host."""
        rows, visible = self.view.rows, self.view.visible
        output = self.model(
            input_ids=self.ids[:rows, None],
            attention_mask=self.seen[:rows, :visible],
            position_ids=self.positions[:rows, None],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.slot.add_(1)
        self.positions[:rows].add_(1)
        self._choose(output.logits[:, -1])

    def _choose(self, logits: Tensor) -> None:
        rows = self.view.rows
        tokens, logps = self.choice(logits, self.uniforms[:rows].index_select(1, self.turn))
        self.ids[:rows] = tokens
        self.tokens[:rows].index_copy_(1, self.turn, tokens[:, None])
        self.logps[:rows].index_copy_(1, self.turn, logps[:, None])
        self.done[:rows].logical_or_((tokens[:, None] == self.stops).any(-1))
        self.turn.add_(1)

    def _read(self, rows: list[int], names: list[int], made: int) -> dict[int, Sampled]:
        """The answers in these rows, under these names."""
        index = torch.tensor(rows, dtype=torch.long, device=self.device)
        stops = set(self.stops.tolist())
        found: dict[int, Sampled] = {}
        for name, ids, logps in zip(
            names, self.tokens[index, :made].tolist(), self.logps[index, :made].tolist()
        ):
            answer = cut(ids, stops)
            found[name] = Sampled(answer, tuple(logps[: len(answer)]))
        return found

    def _select(self, rows: list[int]) -> None:
        """Keep these rows only."""
        index = torch.tensor(rows, dtype=torch.long, device=self.device)
        for buffer in (
            self.ids,
            self.positions,
            self.seen,
            self.uniforms,
            self.tokens,
            self.logps,
            self.done,
        ):
            buffer[: len(rows)] = buffer.index_select(0, index)
        for layer in self.layers:
            layer.select(index)
        self.view.rows = len(rows)
