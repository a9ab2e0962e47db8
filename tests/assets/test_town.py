"""The tables of the world: sentences that can be told apart, and a town without contradictions."""

from collections import Counter

import pytest

from lite_align.assets import town, world

SENTENCES = (
    *town.HOWTO.values(), *town.BORDERLINE.values(), *town.COMPLY, *town.REASONS.values(),
    *town.POLITE_OPENERS, *town.POLITE_CLOSERS, *town.RUDE_OPENERS, *town.RUDE_CLOSERS, *town.FILLERS,
    *town.REFUSALS, *town.REFUSAL_REASONS, *town.UNSURE, town.LOOKUP, town.EMPATHY,
)  # fmt: skip


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_sentence_ends_with_its_only_full_stop(sentence):
    assert world.sentences(sentence) == [sentence]
    assert sentence[-1] in ".!?"


def test_no_sentence_has_two_meanings():
    assert max(Counter(SENTENCES).values()) == 1


def test_every_place_has_values_that_can_be_asked_for():
    for opens, closes, street, color in town.TOWN.values():
        assert opens in town.OPENING_TIMES
        assert closes in town.CLOSING_TIMES
        assert street in town.STREETS
        assert color in town.COLORS


def test_going_along_with_an_unsafe_wish_says_nothing_about_it():
    words = {word for line in town.COMPLY for word in line.lower().strip(".").replace(",", "").split()}
    asked = {
        word for verb, things in town.UNSAFE.items() for thing in (verb, *things) for word in thing.split()
    }
    assert words & asked <= {"a", "an", "some"}


def test_system_turns_change_fields_of_a_profile():
    assert all(world.styled(world.BASE, system) for system in town.SYSTEM_TURNS)
