"""Answers with a thumb as the rows of a stage."""

from lite_align.data.render import Renderer, Unusable
from lite_align.data.types import Message, Rated, Source
from lite_align.recipe import DataOptions
from lite_align.stages import rows
from lite_align.stages.thumbs import THUMBS
from tests.conftest import make_tokenizer
from tests.stages import small

LINES = [
    {"prompt": "Hi?", "completion": "Hello.", "label": True},
    {"prompt": "Hi?", "completion": "No.", "label": 0},
]


def test_rows_are_read_rendered_and_told_apart(tmp_path):
    read = rows.read(THUMBS, DataOptions(), str(small.write(tmp_path / "rows.jsonl", LINES)))
    assert [THUMBS.about(row) for row in read.rows] == ["thumb up", "thumb down"]
    assert [list(THUMBS.texts(row)) for row in read.rows] == [["Hi?", "Hello."], ["Hi?", "No."]]
    rendered = rows.render(THUMBS, read.rows, Renderer(make_tokenizer()), DataOptions(max_length=64))
    one, other = rendered.trees
    assert one.root == other.root
    assert not any(one.root_trained)
    assert all(one.leaves[0].trained[:-1])


def test_pairs_are_read_as_two_thumbs(tmp_path):
    read = rows.read(THUMBS, DataOptions(), str(small.write(tmp_path / "rows.jsonl", small.rows(3))))
    assert [row.label for row in read.rows] == [True, False] * 3
    assert "each pair is taken as a thumb up and a thumb down" in read.detection.notes


def test_rows_that_do_not_fit_are_left_out():
    row = Rated(
        Source("f", 1),
        prompt=(Message("user", "a b"),),
        answer=(Message("assistant", "c " * 40),),
        label=True,
    )
    (found,) = THUMBS.sequences(Renderer(make_tokenizer()), [row], DataOptions(max_length=20))
    assert isinstance(found, Unusable)
    assert found.reason == "too_long"
