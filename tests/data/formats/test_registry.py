import math

import pytest

from lite_align.data.formats import FORMATS
from lite_align.data.formats.conversation import BadRow
from lite_align.data.formats.registry import Fields, data_format, read_flag, read_number, shapes_of
from lite_align.data.types import Source


def test_names_are_unique():
    with pytest.raises(AssertionError, match="twice"):
        data_format("pair.text", "pair", "again", {"prompt": "text"})(lambda row: row.prompt(()))


def test_every_format_says_what_it_is_and_has_a_sample_path():
    for name, entry in FORMATS.items():
        assert entry.name == name
        assert entry.description
        assert entry.sample == f"data_samples/formats/{name}.jsonl"


def test_shapes_leave_out_null():
    row = {
        "a": "x",
        "b": True,
        "c": 1,
        "d": [{"role": "user"}],
        "e": {"from": "gpt"},
        "f": [],
        "g": {},
        "h": None,
    }
    assert shapes_of(row) == {
        "a": "text",
        "b": "bool",
        "c": "number",
        "d": "messages",
        "e": "message",
        "f": "list",
        "g": "object",
    }


@pytest.mark.parametrize("value", ["", "maybe", 2, None, [], {}, 0.5])
def test_what_is_no_thumb(value):
    assert read_flag(value) is None


@pytest.mark.parametrize("value", ["", "x", None, True, [], math.nan, math.inf, "nan", "-inf"])
def test_what_is_no_number(value):
    with pytest.raises(BadRow, match="finite number"):
        read_number(value, "margin")


def test_numbers_may_come_as_their_digits():
    assert (read_number("0.5", "x"), read_number(3, "x")) == (0.5, 3.0)


@pytest.mark.parametrize(
    ("row", "margin"),
    [
        ({}, None),
        ({"margin": 2, "score_chosen": 9, "score_rejected": 1}, 2.0),
        ({"score_chosen": 9, "score_rejected": 1}, 8.0),
        ({"chosen_score": "1", "rejected_score": "4"}, -3.0),
        ({"score_chosen": 9}, None),
        ({"status": "tie"}, 0.0),
        ({"margin": ""}, None),
    ],
)
def test_the_margin(row, margin):
    assert Fields(Source("f", 1), row).margin() == margin
