"""A file of votes becomes weighted pairs, thumbs, or rows with the reason why not."""

import pytest

from lite_align.data.formats import FORMATS, convert, detect
from lite_align.data.sources import RawTable
from lite_align.data.types import Message, Pair, Rated, Source, Unused
from lite_align.errors import DataError

PROMPT = [{"role": "user", "content": "Where is the pool?"}]
ROW = {"prompt": PROMPT, "a": "North.", "b": "South.", "choice": "a", "annotator": "ann", "category": "fact"}
BEN = ROW | {"annotator": "ben"}
UNDECIDED = ROW | {"prompt": [{"role": "user", "content": "Where is the bank?"}], "choice": "tie"}


def table(*rows: dict) -> RawTable:
    return RawTable("v.jsonl", [(Source("v.jsonl", n), row) for n, row in enumerate(rows, 1)], [], "0")


def test_votes_on_a_comparison_are_one_pair() -> None:
    votes = table(ROW, UNDECIDED, BEN | {"choice": "b"}, BEN)
    detection = detect(votes, wanted="pair")
    assert (detection.name, detection.share) == ("votes", 1.0)
    pair, rest = convert(votes, detection)
    assert isinstance(pair, Pair)
    assert (pair.chosen, pair.rejected) == (
        (Message("assistant", "North."),),
        (Message("assistant", "South."),),
    )
    assert (pair.source.line, pair.category, pair.weight) == (1, "fact", 0.5)
    assert isinstance(rest, Unused)
    assert (rest.source.line, rest.rule, rest.reason) == (2, "LA310", "a tie, say 1 of 1")
    assert (
        "4 votes of 2 annotators on 2 comparisons; 1 did not count: replaced, taken back or skipped"
        in detection.notes
    )
    assert "2 votes of 2 annotators on 1 comparison" in detect(table(ROW, BEN)).notes


def test_votes_are_taken_as_weighted_thumbs() -> None:
    votes = table(ROW, BEN, UNDECIDED)
    up, down, rest = convert(votes, detect(votes, wanted="rated"))
    assert isinstance(up, Rated)
    assert isinstance(down, Rated)
    assert (up.label, up.weight, down.label, down.weight) == (True, 0.5, False, 0.5)
    assert isinstance(rest, Unused)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"choice": "c"}, '"choice" must be one of a, b'),
        ({"prompt": [{"role": "assistant", "content": "Hi"}]}, "v.jsonl:2"),
        ({"first": "c"}, '"first" must be one of a, b, both'),
    ],
)
def test_rows_that_are_no_votes_are_named(change: dict, what: str) -> None:
    votes = table(ROW, ROW | change)
    with pytest.raises(DataError) as caught:
        convert(votes, detect(votes))
    assert what in str(caught.value)
    assert "v.jsonl:2" in str(caught.value)


def test_no_other_format_puts_rows_together() -> None:
    assert [name for name, entry in FORMATS.items() if entry.together] == ["votes"]
