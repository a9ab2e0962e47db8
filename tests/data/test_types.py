import pytest

from lite_align.data.types import Leaf, Message, Pair, Source, Tree


def test_a_source_reads_as_file_and_line():
    assert str(Source("data.jsonl", 17)) == "data.jsonl:17"


def test_a_tree_counts_its_root_once():
    tree = Tree(0, (1, 2, 3), (False,) * 3, (Leaf((4, 5), (True, True)), Leaf((6,), (True,))))
    assert tree.tokens == 3 + 2 + 1


def test_rows_cannot_be_changed():
    turn = (Message("user", "Hi"),)
    pair = Pair(Source("d", 1), prompt=turn, chosen=turn, rejected=turn)
    with pytest.raises(AttributeError):
        pair.weight = 2.0  # pyright: ignore[reportAttributeAccessIssue]
