"""All losses by name: what a recipe may say, and the table for people."""

import math

import pytest

from lite_align.errors import RecipeError
from lite_align.losses import preference, unpaired
from lite_align.losses.catalogue import LOSSES, describe, find, markdown_table, options_for


def test_both_kinds_of_losses_are_found_by_name() -> None:
    assert set(LOSSES) == {*preference.LOSSES, *unpaired.LOSSES}
    assert (find("sigmoid").rows, find("kto").rows) == ("pairs", "thumbs")


@pytest.mark.parametrize(
    ("name", "given_options", "parts"),
    [
        ("sigmiod", {}, ["Did you mean sigmoid?", "hinge"]),
        ("exo_pair", {}, ["Did you mean exo?"]),
        ("hinge", {"margn": 1.0}, ["hinge has no option margn. Did you mean margin?", "margin (default 1)"]),
        ("hinge", {"label_smoothing": 0.1}, ["hinge has no option label_smoothing"]),
        ("sigmoid", {"label_smoothing": 0.5}, ["label_smoothing", "less than 0.5", "not 0.5"]),
        ("sigmoid", {"beta": "big"}, ["beta", "valid number", "'big'"]),
        ("sigmoid", {"beta": True}, ["beta", "True"]),
        ("sigmoid", {"beta": math.inf}, ["beta", "inf"]),
        ("ipo", {"beta": 0.0, "tau": 1.0}, ["greater than 0", "ipo has no option tau"]),
        ("ktoo", {}, ["Did you mean kto?"]),
        ("kto", {"label_smoothing": 0.1}, ["kto has no option label_smoothing"]),
        ("kto", {"desirable_wieght": 2.0}, ["Did you mean desirable_weight?"]),
        ("kto", {"undesirable_weight": 0.0}, ["undesirable_weight", "greater than 0"]),
    ],
)
def test_wrong_options_are_named_all_at_once(name: str, given_options: dict, parts: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        options_for(name, given_options)
    assert all(part in str(caught.value) for part in parts)


def test_options_are_checked_and_filled_in() -> None:
    assert options_for("hinge", {"beta": 1, "label_smoothing": 0.0}) == {"beta": 1, "margin": 1}
    with pytest.raises(RecipeError, match="means per token already"):
        options_for("simpo", {}, length_normalized=True)


def test_rows_for_people_cover_the_table() -> None:
    described = {row.name: row for row in describe()}
    assert set(described) == set(LOSSES)
    assert all(
        row.formula and row.source and row.summary and "\n" not in row.formula for row in described.values()
    )
    assert described["simpo"].reference == "no"
    assert (described["ipo"].rows, described["kto"].rows) == ("pairs", "thumbs")
    assert "margin 1" in described["hinge"].options
    assert len(markdown_table().splitlines()) == len(LOSSES) + 2
    assert r"log π(w)/\|w\|" in markdown_table()
