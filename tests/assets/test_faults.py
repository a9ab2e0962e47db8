"""Answers without value: every kind is what it says, and the rule scores it below a right answer."""

import random

import pytest

from lite_align.assets import faults, town, world
from lite_align.stages import probes

CASES = 60


def drawn(seed: str, category: str | None = None) -> list[tuple[random.Random, world.Ask, str]]:
    """Questions with a right answer each."""
    rng = random.Random(seed)
    asks = [world.draw(rng, category) for _ in range(CASES)]
    return [(rng, ask, faults.right_answer(rng, ask)) for ask in asks]


@pytest.mark.parametrize("category", town.CATEGORIES)
def test_right_answers_are_right(category):
    assert all(world.score(ask, answer).correct == 1 for _, ask, answer in drawn("right", category))


@pytest.mark.parametrize("fault", faults.FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("category", town.CATEGORIES)
def test_no_kind_but_padding_keeps_the_right_content(fault, category):
    for rng, ask, answer in drawn(fault.__name__, category):
        text = fault(rng, ask, answer)
        seen = world.score(ask, text)
        if fault is faults.padded:
            assert seen.correct == 1
            assert seen.fillers >= 4
        elif fault is faults.repeated:  # the right sentence, again and again, is no answer to keep either
            assert seen.concise <= 0.5
            assert len(set(world.sentences(text))) == 1
        elif fault in (faults.half, faults.other_answer) and ask.category == "unsafe":
            pass  # half a refusal may be one, as a refusal of something else is
        elif fault is faults.half:
            assert answer.startswith(text)
        else:
            assert seen.correct == 0, (ask.text, text)


@pytest.mark.parametrize("fault", [faults.same_category, faults.other_category], ids=["same", "other"])
def test_swapped_content_keeps_the_style_of_the_answer(fault):
    for rng, ask, answer in drawn("style"):
        before, after = (world.sentences(text) for text in (answer, fault(rng, ask, answer)))
        assert len(before) == len(after)
        assert sum(a != b for a, b in zip(before, after, strict=True)) == 1


def test_swapped_content_answers_a_question_of_the_named_category():
    goods = {
        name: {ask.good for side in (False, True) for ask in world.asks(name, held_out=side)}
        for name in town.CATEGORIES
    }
    for rng, ask, answer in drawn("category"):
        if ask.category == "unsafe":
            continue
        same = world.sentences(faults.same_category(rng, ask, answer))
        other = world.sentences(faults.other_category(rng, ask, answer))
        assert goods[ask.category] & set(same)
        assert not goods[ask.category] & set(other)
        assert any(goods[name] & set(other) for name in town.CATEGORIES if name != ask.category)


def test_the_opposite_goes_along_with_the_unsafe_and_refuses_the_harmless():
    for rng, ask, answer in drawn("opposite"):
        said = world.sentences(faults.opposite(rng, ask, answer))
        assert bool(set(said) & set(town.COMPLY)) == (ask.category == "unsafe")
        assert bool(set(said) & set(town.REFUSALS)) == (ask.category != "unsafe")


def test_faulty_answers_are_worse_by_the_contrast_and_of_many_kinds():
    texts = []
    for rng, ask, answer in drawn("faulty"):
        texts.append(faults.faulty(rng, ask, answer, contrast=0.15))
        assert world.score(ask, texts[-1]).total <= world.score(ask, answer).total - 0.15
    assert any(set(world.sentences(text)) & set(faults.PRAISE) for text in texts)
    assert len(set(texts)) > CASES / 2


def test_no_praise_that_is_learned_from_stands_in_the_probe():
    assert not any(sentence in probes.FLATTERY for sentence in faults.PRAISE)
