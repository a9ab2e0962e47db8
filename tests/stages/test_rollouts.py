"""Collecting and scoring: numbers of packed answers are those of separate ones, and memory may run out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lite_align.data import forest
from lite_align.data.types import Message, Rendered
from lite_align.errors import TooLittleMemory
from lite_align.losses import ppo
from lite_align.model.backbone import Backbone, Role
from lite_align.model.sampler import Sampled
from lite_align.model.value_head import Kind, ValueHead
from lite_align.stages import scoring
from lite_align.stages.episodes import Episode, NoReward
from lite_align.stages.reward_model import suffix_ids
from lite_align.stages.rollouts import MODEL, Collector, ModelReward, Ragged, Rollout, seed_of
from lite_align.train.faults import Lowered, TokenBudget
from tests import finished
from tests.stages import small_ppo

TEMPERATURE = 0.7
IM_END, EOS = 4, 2  # the template's stop token, and the other one
WRITTEN = [
    # Two that begin alike, one that begins another, the same twice; with and without a stop token, of either kind.
    [(20, 21, 22, IM_END), (20, 21, 30), (20, 21), (20, 21, 22, IM_END)],
    [(40, EOS), (IM_END,), (41, 42, 43, 44, 45), (40, 46, EOS)],
]


@pytest.fixture(scope="module")
def model(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tmp_path_factory.mktemp("talkative") / "model"
    return small_ppo.backbone(small_ppo.talkative(tiny_llama, folder))


def written() -> list[Sampled]:
    return [Sampled(ids, (-1.0,) * len(ids)) for group in WRITTEN for ids in group]


def scored(model: Backbone, *, head: ValueHead | None = None, **changes: Any) -> Rollout:
    """The written answers measured; `texts`, `reward`, `budget`, `share_prompts` and options of ppo may be set."""
    names = ("texts", "reward", "budget", "share_prompts")
    parts = {name: changes.pop(name) for name in names if name in changes}
    recipe = small_ppo.recipe({"temperature": TEMPERATURE, **changes})
    parts = {"reward": small_ppo.model_reward(model), **parts}
    collector = small_ppo.collector(model, recipe, **parts)
    return collector.score(small_ppo.asked(model, 2), written(), 4, value_head=head)


def close(one: torch.Tensor, other: torch.Tensor, within: float = 1e-5) -> bool:
    return bool((one - other).abs().max() <= within)


# Ragged.


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.data())
def test_padded_and_flat_are_inverse_and_places_find_the_tokens(lengths: list[int], data: st.DataObject):
    ragged = Ragged(tuple(lengths))
    values = torch.arange(1.0, ragged.tokens + 1)
    padded = ragged.padded(values)
    assert padded.shape == (len(lengths), max(lengths))
    assert torch.equal(ragged.flat(padded), values)
    assert int((padded == 0).sum()) == padded.numel() - sum(lengths)
    chosen = data.draw(st.lists(st.integers(0, len(lengths) - 1), unique=True))
    expected = [float(v) for n in chosen for v in padded[n, : lengths[n]]]
    assert values[ragged.places(chosen)].tolist() == expected
    assert [float(values[end]) for end in ragged.ends] == [float(row[row > 0][-1]) for row in padded]


# Collecting.


def sample(collector: Collector, model: Backbone, samples: int = 4) -> list[Sampled]:
    return collector.sample(small_ppo.asked(model, 4), samples, seed=5)


def test_answers_are_the_policys_and_end_at_stop_tokens(model: Backbone):
    recipe = small_ppo.recipe({"temperature": TEMPERATURE})
    collector = small_ppo.collector(model, recipe, texts=[small_ppo.Text(small_ppo.letters)])
    found = sample(collector, model)
    again = sample(collector, model)
    assert found == again
    assert len(found) == 16
    ends = {one.ids[-1] for one in found if len(one.ids) < 12}
    assert ends <= collector.renderer.stop_ids == {IM_END, EOS}
    assert not any(set(one.ids[:-1]) & collector.renderer.stop_ids for one in found)
    rollout = collector.score(small_ppo.asked(model, 4), found, 4)
    gaps = torch.tensor([logp for one in found for logp in one.logps]) - rollout.logps
    assert gaps.abs().max() < 1e-4  # the sampler's own, at the same temperature
    assert any(rollout.stopped)
    assert not all(rollout.stopped)
    assert rollout.of(7).columns == {"number": 1}


def test_sampling_goes_on_in_smaller_batches(model: Backbone, monkeypatch: pytest.MonkeyPatch):
    """With the same answers; the passes that learn and score are no smaller, and no larger, for it."""
    recipe = small_ppo.recipe()
    told: list[Lowered] = []
    budget = TokenBudget(512, tell=told.append)
    collector = small_ppo.collector(model, recipe, budget=budget)
    whole = sample(collector, model)
    sizes: list[int] = []
    plain: Callable[..., Any] = Backbone.sample

    def short(self: Backbone, *args: Any, **keywords: Any) -> Any:
        sizes.append(keywords["batch_size"])
        if keywords["batch_size"] > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(self, *args, **keywords)

    monkeypatch.setattr(Backbone, "sample", short)
    found = sample(collector, model)
    assert [one.ids for one in found] == [one.ids for one in whole]
    assert sizes == [16, 8, 4]
    assert collector.at_once == 4
    assert budget.tokens == 512
    assert [lowered.where for lowered in told] == ["the sampling of answers"] * 2
    assert all(lowered.after == lowered.before // 2 for lowered in told)


def test_sampling_ends_where_one_answer_does_not_fit(model: Backbone, monkeypatch: pytest.MonkeyPatch):
    def short(self: Backbone, *args: Any, **keywords: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Backbone, "sample", short)
    with pytest.raises(TooLittleMemory, match="the sampling of answers"):
        sample(small_ppo.collector(model, small_ppo.recipe({"rollouts": 4})), model)


# Scoring: against one plain row for each answer.


def alone(model: Backbone, role: Role, number: int, suffix: tuple[int, ...] = ()) -> forest.Batch:
    prompt = small_ppo.asked(model, 2)[number // 4].ids
    answer = written()[number].ids
    trained = (False,) * len(prompt) + (True,) * len(answer) + (False,) * len(suffix)
    with model.role(role):
        return forest.batch([forest.single(0, Rendered((*prompt, *answer, *suffix), trained))])


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("tokens", [16, 512])
def test_answers_of_a_prompt_in_one_tree_have_the_numbers_of_separate_rows(
    model: Backbone, shared: bool, tokens: int
):
    found = scored(model, share_prompts=shared, budget=TokenBudget(tokens))
    for role, values in ((Role.POLICY, found.logps), (Role.REFERENCE, found.reference_logps)):
        for number, own in enumerate(values.split(found.ragged.lengths)):
            batch = alone(model, role, number)
            with torch.no_grad(), model.role(role):
                logits = model.model.get_output_embeddings()(model.states(batch)).float() / TEMPERATURE
            logps = logits.log_softmax(-1)
            assert close(own, logps.gather(-1, batch.target[:, None])[:, 0])
            if role is Role.POLICY:
                entropies = found.entropies.split(found.ragged.lengths)[number]
                assert close(entropies, -(logps.exp() * logps).sum(-1))


def test_a_policy_that_is_its_reference_has_a_kl_of_exactly_zero(model: Backbone):
    found = scored(model)
    assert float(ppo.k1(found.logps, found.reference_logps).abs().max()) == 0.0


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("judge", [None, "hello world?"])
def test_scores_are_those_of_the_reward_run(model: Backbone, judge: str | None, shared: bool):
    """Read at the stop token of the template, also where the answer ended with another, or at the judge's turn."""
    renderer = small_ppo.collector(model, small_ppo.recipe()).renderer
    suffix = () if judge is None else suffix_ids(renderer, judge)
    reward = small_ppo.model_reward(model, suffix)
    found = scored(model, reward=reward, share_prompts=shared)
    sequences = []
    for number, answer in enumerate(written()):
        prompt = small_ppo.asked(model, 2)[number // 4].ids
        ids = (*answer.ids[:-1], IM_END) if answer.ids[-1] in (IM_END, EOS) else answer.ids
        sequences.append((len(prompt), [(*prompt, *ids, *suffix)]))
    expected = [score for (score,) in scoring.score(model, sequences, TokenBudget(4096))]
    assert found.sources[MODEL] == pytest.approx(expected, abs=1e-5)
    assert len({round(score, 4) for score in expected}) == 7  # the same answer twice
    for number, (score, stopped) in enumerate(zip(found.scores, found.stopped, strict=True)):
        assert score == (found.sources[MODEL][number] if stopped else -1.0)


def test_the_judges_turn_is_written_as_in_training(model: Backbone):
    """`scoring.sequences`, which training uses, on the text of the answer."""
    renderer = small_ppo.collector(model, small_ppo.recipe()).renderer
    prompt, answer = (Message("user", "the fox?"),), (Message("assistant", "a dog answers"),)
    for judge in (None, "hello world?"):
        (rendered,) = scoring.sequences(renderer, [(prompt, answer)], judge)
        assert isinstance(rendered, Rendered)
        own = renderer.conversation(prompt, answer)
        begin = own.trained.index(True)
        sampled = own.ids[begin : begin + sum(own.trained)]
        suffix = () if judge is None else suffix_ids(renderer, judge)
        read = small_ppo.model_reward(model, suffix).read(sampled, stopped=True)
        assert (*renderer.prompt_ids(prompt), *read) == rendered.ids


def test_a_score_counts_in_standard_deviations_and_is_clipped():
    reward = ModelReward(mean=1.0, deviation=0.5, weight=2.0, clip=5.0, suffix=(), stop=IM_END)
    assert [reward.value(score) for score in (1.0, 2.0, 100.0, -100.0)] == [0.0, 2.0, 5.0, -5.0]


def test_several_sources_are_added_and_kept_apart(model: Backbone):
    """Raw in `sources`; the sum has the model's in standard deviations, and everything times its weight."""
    texts = [
        small_ppo.Text(lambda episode: len(episode.answer), "rule/length", weight=0.5),
        small_ppo.Text(lambda episode: float(episode.stopped), "function", weight=-2.0),
    ]
    reward = small_ppo.model_reward(model, mean=0.25, deviation=2.0, weight=3.0, clip=0.4)
    found = scored(model, texts=texts, reward=reward, missing_stop=-7.0)
    raw = found.sources
    assert list(raw) == [MODEL, "rule/length", "function"]
    for n, score in enumerate(found.scores):
        value = max(-0.4, min(0.4, (raw[MODEL][n] - 0.25) / 2))
        expected = 3 * value + 0.5 * len(found.texts[n]) - 2 if found.stopped[n] else -7.0
        assert score == pytest.approx(expected)
    assert found.stopped == (True, False, False, True, True, True, False, True)


def test_a_reward_of_text_sees_the_answer_as_people_read_it(model: Backbone):
    text = small_ppo.Text(lambda episode: 0.0)
    found = scored(model, texts=[text])
    assert [episode.answer for episode in text.seen] == list(found.texts)
    assert [episode.tokens for episode in text.seen] == list(found.ragged.lengths) == [4, 3, 2, 4, 2, 1, 5, 3]
    assert tuple(episode.stopped for episode in text.seen) == found.stopped
    assert [episode.row["number"] for episode in text.seen] == [0] * 4 + [1] * 4
    assert not any("<|" in text or "</s>" in text for text in found.texts)
    assert text.seen[0].prompt == found.asked[0].row.messages


def test_a_reward_that_cannot_be_had_takes_the_answer_out(model: Backbone):
    """Also where the answer has no stop token; the others keep theirs, and the failures are counted once."""

    def value(episode: Episode) -> float:
        if episode.tokens in (2, 3):
            raise NoReward("raised", "ValueError: no")
        return 1.0

    text = small_ppo.Text(value)
    recipe = small_ppo.recipe()
    collector = small_ppo.collector(model, recipe, texts=[text])
    asked = small_ppo.asked(model, 2)
    found = collector.score(asked, written(), 4)
    assert found.scores == (1.0, None, None, 1.0, None, 1.0, -1.0, None)
    assert found.errors == 4
    assert collector.score(asked, written(), 4).errors == 4
    assert text.errors.count == 8


# VALUE.


def test_a_probe_reads_the_states_of_reward_and_a_linear_head_the_policys(model: Backbone):
    for kind, role in ((Kind.PROBE, Role.REWARD), (Kind.LINEAR, Role.POLICY)):
        head = ValueHead(kind, 64, seed=1, device=model.device)
        found = scored(model, head=head)
        assert found.values is not None
        assert (found.states is None) == (kind is Kind.LINEAR)
        # Where the template's stop token stands in for another, only the last state sees it.
        for number, own in enumerate(found.values.split(found.ragged.lengths)):
            with torch.no_grad(), model.role(role):
                states = model.states(alone(model, role, number))
            assert close(own, head(states))
            if found.states is not None:
                assert close(found.states.split(found.ragged.lengths)[number], states, 1e-4)
    assert scored(model).values is None


# Memory.


def test_scoring_goes_on_in_smaller_passes(model: Backbone, monkeypatch: pytest.MonkeyPatch):
    whole = scored(model, share_prompts=False)
    plain: Callable[..., Any] = Backbone.hidden
    told: list[Lowered] = []
    calls: list[Role] = []

    def short(self: Backbone, batch: Any) -> Any:
        calls.append(self.current_role)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(self, batch)

    monkeypatch.setattr(Backbone, "hidden", short)
    found = scored(model, budget=TokenBudget(512, tell=told.append))
    assert [lowered.where for lowered in told] == ["the scoring under policy"]
    assert [calls.count(role) for role in (Role.POLICY, Role.REFERENCE, Role.REWARD)] == [3, 2, 2]
    for name in ("logps", "reference_logps", "entropies"):
        assert close(getattr(found, name), getattr(whole, name))
    assert found.sources[MODEL] == pytest.approx(whole.sources[MODEL], abs=1e-5)


def test_seeds_depend_on_every_part():
    seeds = {seed_of(*parts) for parts in ((1, "round", 0), (1, "round", 1), (2, "round", 0), (1, "held", 0))}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(1, "round", 0) == seed_of(1, "round", 0)


def test_answers_without_any_reward_are_measured_all_the_same(model: Backbone):
    """An evaluation has no reward: this stopped with an error once."""
    collector = small_ppo.collector(model, small_ppo.recipe())
    collector.model_reward, collector.text_rewards = None, []
    asked = small_ppo.asked(model, 2)
    kept = model.adapter_tensors(Role.POLICY)
    finished.move(model, Role.POLICY, 0.2, seed=7)
    try:
        drawn = collector.sample(asked, 2, seed=5, role=Role.REFERENCE)
        rollout = collector.score(asked, drawn, 2)
    finally:
        model.set_adapter_tensors(Role.POLICY, kept)
    assert rollout.scores == (None,) * 4
    assert (rollout.sources, rollout.errors) == ({}, 0)
    own = torch.tensor([logp for one in drawn for logp in one.logps])
    assert close(own, rollout.reference_logps, 1e-4)  # they are the reference's answers
    assert not close(own, rollout.logps, 0.1)
