"""Held-out prompts: the same random numbers every time, figures by hand, rows and samples."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lite_align.assets import world
from lite_align.data.types import Message, Prompt, Source
from lite_align.model.backbone import Backbone, Role
from lite_align.model.sampler import Sampled
from lite_align.stages import held_out, passes
from lite_align.stages.episodes import Episode, NoReward
from lite_align.stages.held_out import HeldOut, asks_of, measures
from lite_align.stages.rollouts import Asked, Collector
from tests import finished
from tests.stages import small, small_ppo

PROMPTS = 6


@pytest.fixture(scope="module")
def model(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tmp_path_factory.mktemp("talkative") / "model"
    return small_ppo.backbone(small_ppo.talkative(tiny_llama, folder), reward=False)


@pytest.fixture
def moved(model: Backbone) -> Iterator[Backbone]:
    """The model with another policy, for one test."""
    before = model.adapter_tensors(Role.POLICY)
    finished.move(model, Role.POLICY, 0.2, seed=9)
    yield model
    model.set_adapter_tensors(Role.POLICY, before)


def held(model: Backbone, **parts) -> HeldOut:
    settings = {"asked": small_ppo.asked(model, PROMPTS), "pairs": [], "asks": None, "seed": 1}
    return HeldOut(**{**settings, **parts})


def collector(model: Backbone, value=small_ppo.letters):
    return small_ppo.collector(model, small_ppo.recipe(), texts=[small_ppo.Text(value)])


def test_the_same_policy_is_measured_with_the_same_answers(model: Backbone):
    """At any step, by any object, with any batch size; another seed asks anew."""
    first, again = held(model), held(model)
    one = first.measure(collector(model), 0)
    small_batches = collector(model)
    small_batches.at_once = 3
    torch.manual_seed(5)
    other = again.measure(small_batches, 8)
    assert first.rollout is not None
    assert again.rollout is not None
    assert [a.ids for a in first.rollout.answers] == [a.ids for a in again.rollout.answers]
    assert (one.step, other.step) == (0, 8)
    assert one.metrics == pytest.approx(other.metrics, abs=1e-6)
    reseeded = held(model, seed=2)
    reseeded.measure(collector(model), 0)
    assert reseeded.rollout is not None
    assert [a.ids for a in reseeded.rollout.answers] != [a.ids for a in first.rollout.answers]


def test_another_policy_is_asked_with_the_same_random_numbers(moved: Backbone):
    found = held(moved)
    measured = found.measure(collector(moved), 4)
    assert measured.metrics["kl"] > 0.05
    assert any(row["kl"] != 0 for row in found.rows())


def test_figures_by_prompt_are_means_over_its_answers(model: Backbone):
    def value(episode: Episode) -> float:
        if episode.row["number"] == 2 or (episode.row["number"] == 3 and episode.tokens > 4):
            raise NoReward("raised")
        return float(episode.tokens)

    found = held(model)
    measured = found.measure(collector(model, value), 0)
    rollout = found.rollout
    assert rollout is not None
    pairs = list(zip(rollout.scores[::2], rollout.scores[1::2]))
    lengths = list(zip(rollout.ragged.lengths[::2], rollout.ragged.lengths[1::2]))
    rewards = measured.by_prompt["reward"]
    for n in range(PROMPTS):
        known = [score for score in pairs[n] if score is not None]
        expected = sum(known) / len(known) if known else math.nan
        assert rewards[n] == pytest.approx(expected, nan_ok=True)
        assert measured.by_prompt["length"][n] == sum(lengths[n]) / 2
    finite = [value for value in rewards if math.isfinite(value)]
    assert math.isnan(rewards[2])
    assert measured.metrics["reward"] == pytest.approx(sum(finite) / len(finite))
    assert measured.metrics["kl"] == 0.0
    assert measured.categories == ["even", "odd"] * 3
    names = {"reward", "kl", "kl_k3", "entropy", "length", "stop_rate", "distinct_2", "repeated_3grams"}
    assert measured.metrics.keys() == names
    assert {f"objective/{name}" for name in names} | {f"text/{name}" for name in names} > measures(
        rollout
    ).keys()

    rows = found.rows()
    assert [set(row) for row in rows] == [{"reward", "kl", "tokens", "stopped"}] * PROMPTS
    assert rows[2]["reward"] is None  # JSON has no NaN
    assert [row["tokens"] for row in rows] == list(measured.by_prompt["length"])


def test_preference_accuracy_counts_pairs_whose_chosen_answer_is_likelier(model: Backbone):
    rows = small.rows(7)
    swapped = {"chosen": rows[2]["rejected"], "rejected": rows[2]["chosen"]}
    pairs = small.as_pairs([*rows[:2], {**rows[2], **swapped}, *rows[3:]])
    trees = small.as_trees(pairs, model.loaded.tokenizer)
    found = held(model, pairs=trees).measure(collector(model), 0)
    with torch.no_grad(), model.role(Role.POLICY):
        logps = [model.leaf_logps(passes.to_batch([tree], model.device)).tolist() for tree in trees]
    expected = [float(chosen > rejected) for chosen, rejected in logps]
    assert found.by_prompt["preference"] == expected
    assert found.metrics["preference_accuracy"] == pytest.approx(sum(expected) / 7)
    assert 0 < sum(expected) < 7


def test_no_more_prompts_are_asked_than_a_limit_allows(model: Backbone, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(held_out, "MOST_PROMPTS", 4)
    assert len(held(model).asked) == 4


def test_samples_show_the_first_answer_to_a_few_prompts(model: Backbone, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(held_out, "SHOWN", 3)
    found = held(model)
    found.measure(collector(model), 6)
    rollout, rows = found.rollout, found.samples(6)
    assert rollout is not None
    assert [row["answer"] for row in rows] == [rollout.texts[n] for n in (0, 2, 4)]
    assert [row["reward"] for row in rows] == [rollout.scores[n] for n in (0, 2, 4)]
    assert [row["prompt"] for row in rows] == [one.row.messages[-1].content for one in found.asked[:3]]
    assert all(row["step"] == 6 and row["kl"] == 0.0 for row in rows)


# Prompts of the built-in world.

BAKERY = "When does the bakery open?"
SIX, NO = "The bakery opens at six.", "Sorry, I cannot help with that."


def prompt(text: str, *before: Message) -> Prompt:
    ask = world.find(text)
    return Prompt(Source("p", 1), ask and ask.category, messages=(*before, Message("user", text)))


def test_questions_are_of_the_world_only_if_all_are():
    both = [prompt(BAKERY), prompt(unsafe().text)]
    found = asks_of(both)
    assert found is not None
    assert [ask.text for ask in found] == [row.messages[0].content for row in both]
    assert asks_of([*both, prompt("Why?")]) is None
    assert asks_of([prompt(BAKERY, Message("system", "Be kind."))]) is None
    assert asks_of([]) == []


def unsafe() -> world.Ask:
    return world.asks("unsafe", held_out=False)[0]


def test_answers_are_scored_by_the_rule(model: Backbone, monkeypatch: pytest.MonkeyPatch):
    """Two answers a prompt: right 0.9 and wrong 0.35; a refusal of an unsafe wish 1 in correctness, plain."""
    renderer, tokenizer = small_ppo.renderer(model), model.loaded.tokenizer
    rows = [prompt(BAKERY), prompt(unsafe().text)]
    asked = [Asked(row, renderer.prompt_ids(row.messages), {}) for row in rows]
    texts = [SIX, "The bakery opens at seven.", NO, SIX]

    def sampled(*_: object, **__: object) -> list[Sampled]:
        ids = [(*tokenizer(text, add_special_tokens=False)["input_ids"], renderer.turn_end) for text in texts]
        return [Sampled(tuple(one), (-1.0,) * len(one)) for one in ids]

    monkeypatch.setattr(Collector, "sample", sampled)
    found = held(model, asked=asked, asks=asks_of(rows))
    measured = found.measure(collector(model), 0)
    first, second = world.score(asks_of(rows)[1], NO).total, world.score(asks_of(rows)[1], SIX).total
    assert measured.by_prompt["rule_score"] == pytest.approx([0.625, (first + second) / 2])
    assert measured.by_prompt["refused"] == [0.0, 0.5]
    assert {name: value for name, value in measured.metrics.items() if "r" in name[:2] and "/" in name} == {
        "rule_score/fact": pytest.approx(0.625),
        "rule_score/unsafe": pytest.approx((first + second) / 2),
        "refusal/unsafe": 0.5,
        "refusal/other": 0.0,
    }
    assert measured.metrics["rule_score"] == pytest.approx((0.625 + (first + second) / 2) / 2)
    assert [row["rule_score"] for row in found.rows()] == measured.by_prompt["rule_score"]
    assert found.samples(0)[0]["rule_score"] == pytest.approx(0.9)


def test_an_answer_that_did_not_end_is_not_clean(model: Backbone, monkeypatch: pytest.MonkeyPatch):
    renderer, tokenizer = small_ppo.renderer(model), model.loaded.tokenizer
    row = prompt(BAKERY)
    ids = tuple(tokenizer(SIX, add_special_tokens=False)["input_ids"])

    def sampled(*_: object, **__: object) -> list[Sampled]:
        both = (ids, (*ids, renderer.turn_end))
        return [Sampled(one, (-1.0,) * len(one)) for one in both]

    monkeypatch.setattr(Collector, "sample", sampled)
    found = held(model, asked=[Asked(row, renderer.prompt_ids(row.messages), {})], asks=asks_of([row]))
    assert found.measure(collector(model), 0).by_prompt["rule_score"] == pytest.approx([(0.8 + 0.9) / 2])
