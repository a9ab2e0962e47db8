"""Sampling: the right distribution, whatever the batch; shared prefill; steps that a graph could replay."""

import math
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers import MambaConfig, MambaForCausalLM, PreTrainedModel

from lite_align.errors import ModelError
from lite_align.model import sampler
from lite_align.model.generate import generate
from lite_align.model.replay import Eager, Replayed, Runner, Step
from lite_align.model.sampler import Choice, Sampled, sample, uniforms
from tests.model.small_models import CONFIGS, from_config, loaded

PROMPTS = [(1, 20, 30, 40, 50, 60, 70), (1, 9), (1, 33, 44, 55), (200,), tuple(range(5, 25)), (7, 8, 9)]

KINDS = ["nf4", *CONFIGS]

STOPS = set(range(0, 384, 12))
"""At a high temperature answers end with one of these early and late: about one token in twelve does."""


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tiny_llama: Path) -> PreTrainedModel:
    return loaded(tiny_llama, "nf4") if request.param == "nf4" else from_config(request.param)


@pytest.fixture(scope="module")
def plain() -> PreTrainedModel:
    return from_config("full")


def ids(answers: list[list[Sampled]]) -> list[list[tuple[int, ...]]]:
    return [[answer.ids for answer in group] for group in answers]


# What is sampled.


def test_greedy_answers_are_those_of_transformers(model: PreTrainedModel):
    free = generate(model, PROMPTS, stop_ids=set(), max_new_tokens=24)
    stops = {free[0][5], free[1][9]}
    expected = generate(model, PROMPTS, stop_ids=stops, max_new_tokens=24)
    assert len({len(answer) for answer in expected}) > 1
    for size in (1, 5):
        found = sample(
            model, PROMPTS, stop_ids=stops, max_new_tokens=24, temperature=0, batch_size=size, samples=2
        )
        assert ids(found) == [[answer, answer] for answer in expected]


def test_greedy_answers_of_tiny_are_those_of_transformers():
    model = loaded("tiny", "none")
    found = sample(model, PROMPTS, stop_ids={2}, max_new_tokens=24, temperature=0)
    assert ids(found) == [[a] for a in generate(model, PROMPTS, stop_ids={2}, max_new_tokens=24)]


def test_answers_depend_on_seed_prompt_and_number_alone(model: PreTrainedModel):
    def drawn(prompts: Sequence[tuple[int, ...]], samples: int = 3, seed: int = 5, **kwargs):
        return ids(
            sample(
                model,
                prompts,
                samples=samples,
                stop_ids=STOPS,
                max_new_tokens=16,
                temperature=2,
                seed=seed,
                **kwargs,
            )
        )

    whole = drawn(PROMPTS)
    assert len({len(answer) for group in whole for answer in group}) > 4
    assert all(len(set(group)) == 3 for group in whole)
    for size in (2, 7):
        assert drawn(PROMPTS, batch_size=size) == whole
    assert drawn(PROMPTS[:3]) == whole[:3]
    assert drawn(PROMPTS, samples=1) == [group[:1] for group in whole]
    changed = drawn([(11, 12, 13, 14, 15), *PROMPTS[1:]])
    assert changed[1:] == whole[1:]
    assert changed[0] != whole[0]
    assert drawn(PROMPTS, seed=6) != whole


def test_a_longer_limit_only_adds_to_answers(plain: PreTrainedModel):
    short, long = (
        ids(sample(plain, PROMPTS, stop_ids={3}, max_new_tokens=n, temperature=2.0)) for n in (5, 16)
    )
    assert [[a[:5] for a in group] for group in long] == short


def test_uniforms_are_reproducible_and_their_own():
    assert torch.equal(uniforms(1, 2, 3, 100)[:10], uniforms(1, 2, 3, 10))
    keys = [(1, 2, 3), (2, 1, 3), (1, 3, 2), (3, 2, 1), (-1, 2, 3)]
    assert len({float(uniforms(*key, 1)) for key in keys}) == len(keys)
    many = torch.cat([uniforms(0, i, 0, 50) for i in range(200)])
    assert many.dtype == torch.float64
    assert stats.kstest(many.numpy(), "uniform").pvalue > 0.01


def filtered(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """The distribution that is meant, token by token in order of probability."""
    scores = [float(x) / temperature for x in logits.double()]
    order = sorted(range(len(scores)), key=lambda i: -scores[i])[: top_k or None]
    weights = torch.tensor([scores[i] for i in order], dtype=torch.double).softmax(0).tolist()
    kept, reached = [], 0.0
    for token, weight in zip(order, weights):
        if reached < top_p:
            kept.append((token, weight))
        reached += weight
    expected = torch.zeros(len(scores), dtype=torch.double)
    for token, weight in kept:
        expected[token] = weight / sum(w for _, w in kept)
    return expected


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.5, 0, 1.0), (2.0, 9, 1.0), (1.0, 0, 0.7), (2.0, 20, 0.6)],
)
def test_tokens_come_as_often_as_the_softmax_says(plain: PreTrainedModel, temperature, top_k, top_p):
    with torch.no_grad():
        logits = plain(input_ids=torch.tensor([PROMPTS[0]]), use_cache=False).logits[0, -1]
    expected = filtered(logits, temperature, top_k, top_p)
    count = 4000
    groups = sample(
        plain,
        [PROMPTS[0], PROMPTS[1]],  # padding beside it
        samples=count,
        stop_ids=set(),
        max_new_tokens=1,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        batch_size=2 * count,
    )
    found = torch.bincount(torch.tensor([a.ids[0] for a in groups[0]]), minlength=len(expected)).double()
    assert not found[expected == 0].any()
    common = expected * count >= 5
    pairs = [[*counts[common].tolist(), float(counts[~common].sum())] for counts in (found, expected * count)]
    if pairs[1][-1] < 5:
        pairs = [[*row[:-2], row[-2] + row[-1]] for row in pairs]
    assert len(pairs[0]) > 3
    assert stats.chisquare(*pairs).pvalue > 0.01


def test_later_tokens_follow_the_softmax_too(plain: PreTrainedModel):
    """Every token through its own distribution's cumulative gives back the uniform number it was drawn with."""
    groups = sample(plain, PROMPTS, samples=2, stop_ids=set(), max_new_tokens=12, temperature=1.5, seed=9)
    for number, (prompt, group) in enumerate(zip(PROMPTS, groups)):
        for i, answer in enumerate(group):
            row = torch.tensor([[*prompt, *answer.ids]])
            with torch.no_grad():
                logits = plain(input_ids=row, use_cache=False).logits[0, len(prompt) - 1 : -1]
            cumulative = (logits / 1.5).double().softmax(-1).cumsum(-1)
            upper = cumulative.gather(1, torch.tensor(answer.ids)[:, None])[:, 0]
            lower = (
                upper - (logits / 1.5).double().softmax(-1).gather(1, torch.tensor(answer.ids)[:, None])[:, 0]
            )
            drawn = uniforms(9, number, i, 12)
            assert bool(((lower - 1e-5 <= drawn) & (drawn <= upper + 1e-5)).all())


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (2.0, 0.5), (0.0, 1.0)])
def test_log_probs_are_those_of_a_full_pass(model: PreTrainedModel, temperature: float, top_p: float):
    answers = sample(
        model, PROMPTS, stop_ids=set(), max_new_tokens=9, temperature=temperature, top_p=top_p, batch_size=4
    )
    for prompt, [answer] in zip(PROMPTS, answers):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *answer.ids]]), use_cache=False).logits[0]
        logps = (logits[len(prompt) - 1 : -1].float() / (temperature or 1.0)).log_softmax(-1)
        expected = logps.gather(1, torch.tensor(answer.ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(answer.logps), expected, atol=2e-4, rtol=1e-4)


def test_log_probs_of_16_bit_logits_are_taken_in_32_bits():
    logits = torch.tensor([[3.0, 1.0, -2.0, 0.5]]).bfloat16()
    tokens, logps = Choice(2.0)(logits, torch.tensor([[0.0]], dtype=torch.double))
    assert tokens.tolist() == [0]
    assert logps.dtype == torch.float32
    weights = [math.exp(x / 2) for x in (3.0, 1.0, -2.0, 0.5)]
    assert float(logps) == pytest.approx(math.log(weights[0] / sum(weights)), abs=1e-6)


def test_the_edges_of_the_unit_interval_find_tokens_with_a_probability():
    logits = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]] * 2)
    drawn = torch.tensor([[0.0], [1.0]], dtype=torch.double)  # 1 stands for a product that rounds up
    tokens, logps = Choice()(logits, drawn)
    assert tokens.tolist() == [1, 2]
    assert logps.isfinite().all()


# How it is computed.


class Recording(Eager):
    """Eager, in buckets of other sizes, with a list of what was run."""

    def __init__(
        self, steps: int = 4, slots: int = 32, leave: Callable[[int, int], int] | None = None
    ) -> None:
        self.steps, self.slots, self._leave = steps, slots, leave
        self.buckets: list[tuple[int, int]] = []

    def rows(self, now: int, alive: int) -> int:
        return (self._leave or super().rows)(now, alive)

    def run(self, bucket: Hashable, step: Step) -> None:
        assert isinstance(bucket, tuple)
        self.buckets.append(bucket)
        step()


def never(now: int, alive: int) -> int:
    return now if alive else 0


def test_rows_that_leave_change_no_token(model: PreTrainedModel):
    def drawn(runner: Eager):
        return ids(
            sample(
                model,
                PROMPTS,
                samples=5,
                stop_ids=STOPS,
                max_new_tokens=24,
                temperature=2.0,
                runner=runner,
                seed=2,
            )
        )

    all_stay = Recording(leave=never)
    expected = drawn(all_stay)
    assert {rows for rows, _ in all_stay.buckets} == {30}
    early = Recording()
    for runner in (
        early,
        Recording(1, 8),
        Recording(7, 64),
        Recording(8, 128, lambda n, a: Graphs().rows(n, a)),
    ):
        assert drawn(runner) == expected
        sizes = [rows for rows, _ in runner.buckets]
        assert sizes == sorted(sizes, reverse=True)
        assert len(set(sizes)) > 1
    assert sum(rows for rows, _ in early.buckets) < 0.75 * sum(rows for rows, _ in all_stay.buckets)


def test_a_prompt_is_computed_once_for_all_its_answers(plain: PreTrainedModel):
    shapes: list[tuple[int, ...]] = []
    hook = plain.get_input_embeddings().register_forward_hook(
        lambda module, given, out: shapes.append(given[0].shape)
    )
    sample(plain, PROMPTS, samples=3, stop_ids=set(), max_new_tokens=3)
    assert shapes == [(6, 20), (18, 1), (18, 1)]
    shapes.clear()
    groups = sample(plain, PROMPTS[:1], samples=5, stop_ids=set(), max_new_tokens=2, batch_size=3)
    hook.remove()
    assert shapes == [(1, 7), (3, 1), (1, 7), (2, 1)]
    assert len(groups[0]) == 5


@pytest.mark.parametrize(
    ("lengths", "budget", "expected"),
    [
        ([2, 3, 3, 8], 100, [range(0, 4)]),
        ([2, 3, 3, 8], 9, [range(0, 3), range(3, 4)]),
        ([2, 3, 3, 8], 8, [range(0, 2), range(2, 3), range(3, 4)]),
        ([5, 2, 2], 10, [range(0, 2), range(2, 3)]),
        ([4], 1, [range(0, 1)]),
    ],
)
def test_prompts_of_like_length_share_a_pass(lengths: list[int], budget: int, expected: list[range]):
    assert list(sampler._passes(lengths, budget)) == expected


def test_passes_over_prompts_change_no_answer(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch):
    def drawn() -> list[list[Sampled]]:
        return sample(model, PROMPTS, samples=2, stop_ids=STOPS, max_new_tokens=12, temperature=2, seed=3)

    whole = drawn()
    for budget in (1, 12):
        monkeypatch.setitem(sampler.PREFILL_TOKENS, "cpu", budget)
        found = drawn()
        assert ids(found) == ids(whole)
        for group, before in zip(found, whole, strict=True):
            for one, other in zip(group, before, strict=True):
                assert one.logps == pytest.approx(other.logps, abs=1e-4)


def test_only_the_last_logits_of_a_prompt_are_computed(plain: PreTrainedModel):
    shapes: list[tuple[int, ...]] = []
    hook = plain.get_output_embeddings().register_forward_hook(
        lambda module, given, out: shapes.append(out.shape)
    )
    sample(plain, PROMPTS, stop_ids=set(), max_new_tokens=2)
    hook.remove()
    assert shapes == [(6, 1, 384), (6, 1, 384)]


WAITS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2"}


class Tape(TorchDispatchMode):
    """Writes down every operation with the tensors it was given; `play` runs the same list on the same tensors.

    All else is fixed, as in a CUDA graph: numbers, shapes, and which operations there are. Fails at operations whose
    result the host would have to wait for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in WAITS, func
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def play(self) -> None:
        made: dict[int, object] = {}

        def now(value: object) -> object:
            return made.get(id(value), value)

        for func, args, kwargs, out in self.calls:
            args, kwargs = tree_map(now, (args, kwargs))
            results = tree_leaves(func(*args, **kwargs))
            made |= {id(old): new for old, new in zip(tree_leaves(out), results) if isinstance(old, Tensor)}


class Graphs(Replayed):
    """What CUDA graphs do, on the CPU: a list of operations is recorded once and run again and again."""

    slots = 16
    steps = 3

    def __init__(self) -> None:
        super().__init__()
        self.recorded = 0
        self.played = 0

    def warm_up(self, step: Step) -> None:
        step()

    def capture(self, step: Step) -> Step:
        self.recorded += 1
        tape = Tape()
        with tape:
            step()
        fresh = [True]  # recording has run the step, capturing on CUDA does not

        def replay() -> None:
            if not fresh:
                self.played += 1
                tape.play()
            fresh.clear()

        return replay


@pytest.mark.parametrize("choice", [(2.0, 0, 1.0), (2.0, 30, 0.9), (0.0, 0, 1.0)], ids=str)
def test_replayed_steps_equal_eager_ones(model: PreTrainedModel, choice: tuple[float, int, float]):
    def drawn(runner: Runner) -> list[list[Sampled]]:
        return sample(
            model,
            PROMPTS,
            samples=4,
            stop_ids=STOPS,
            max_new_tokens=24,
            temperature=choice[0],
            top_k=choice[1],
            top_p=choice[2],
            batch_size=12,
            runner=runner,
        )

    graphs = Graphs()
    assert ids(drawn(graphs)) == ids(drawn(Eager()))
    assert not graphs.note
    assert graphs.recorded > 2
    assert graphs.played > graphs.recorded


def test_a_step_that_waits_cannot_be_recorded():
    with Tape(), pytest.raises(AssertionError, match="local_scalar"):
        torch.ones(1).item()


# What is left behind, and what is refused.


def test_modes_defaults_and_random_state_come_back(plain: PreTrainedModel):
    plain.train()
    plain.get_submodule("model.norm").eval()
    modes = [module.training for module in plain.modules()]
    own, state = plain.generation_config, torch.get_rng_state()
    sample(plain, PROMPTS, stop_ids=set(), max_new_tokens=3)
    assert [module.training for module in plain.modules()] == modes
    assert plain.generation_config is own
    assert torch.equal(torch.get_rng_state(), state)
    plain.eval()


def test_progress_adds_up_to_all_answers(plain: PreTrainedModel):
    told: list[int] = []
    sample(
        plain,
        PROMPTS,
        samples=3,
        stop_ids=STOPS,
        max_new_tokens=24,
        temperature=2.0,
        batch_size=9,
        advance=told.append,
    )
    assert sum(told) == 18
    assert len(told) > 3


def test_no_prompts_no_answers(plain: PreTrainedModel):
    assert sample(plain, [], stop_ids=set(), max_new_tokens=3) == []


@pytest.mark.parametrize(
    "given",
    [
        {"samples": 0},
        {"max_new_tokens": 0},
        {"batch_size": 0},
        {"temperature": -1.0},
        {"top_k": -1},
        {"top_p": 0.0},
    ],
)
def test_numbers_out_of_range_are_refused(plain: PreTrainedModel, given: dict):
    with pytest.raises(ValueError, match="range"):
        sample(plain, PROMPTS, **{"stop_ids": set(), "max_new_tokens": 3, **given})


def test_a_prompt_without_tokens_is_refused(plain: PreTrainedModel):
    with pytest.raises(ValueError, match="at least one token"):
        sample(plain, [(1,), ()], stop_ids=set(), max_new_tokens=3)


def test_recurrent_models_are_refused():
    config = MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(ModelError, match="recurrent"):
        sample(MambaForCausalLM(config), [(1,)], stop_ids=set(), max_new_tokens=3)
