from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lite_align.data.forest import Segment, apart, batch, grow, order, pack, shared, single, upload, whole
from lite_align.data.types import Leaf, Rendered, Tree

# Few tokens, so that common prefixes are frequent and of every length.
ids = st.lists(st.integers(1, 3), min_size=1, max_size=9)


@st.composite
def sequences(draw) -> list[Rendered]:
    """Answers to one prompt; the first token of a sequence is never trained."""
    prompt = draw(ids)
    answers = draw(st.lists(ids, min_size=1, max_size=4))
    rows = []
    for answer in answers:
        flags = [False] * len(prompt) + draw(
            st.lists(st.booleans(), min_size=len(answer), max_size=len(answer))
        )
        rows.append(Rendered((*prompt, *answer), tuple(flags)))
    return rows


groups = st.lists(sequences(), min_size=1, max_size=5)


def rendered(text: str) -> Rendered:
    """One token a letter; capitals are trained."""
    return Rendered(tuple(ord(letter.lower()) for letter in text), tuple(letter.isupper() for letter in text))


def letters(tensor: torch.Tensor) -> str:
    return "".join(chr(token) for token in tensor.flatten().tolist())


def test_the_worked_example_of_the_docstring():
    trees = [grow(7, [rendered("abcDE"), rendered("abcF")]), grow(9, [rendered("gH")])]
    row = batch(trees)
    assert letters(row.input_ids) == "abcdefgh"
    assert row.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 0, 1]]
    assert row.cu_q.tolist() == [0, 5, 6, 8]
    assert row.kv_index.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7]
    assert row.cu_k.tolist() == [0, 5, 9, 11]
    assert (row.max_q, row.max_k) == (5, 5)
    assert row.predict.tolist() == [2, 3, 2, 6]
    assert letters(row.target) == "defh"
    assert row.term.tolist() == [0, 1, 2, 3]
    assert row.leaf.tolist() == [0, 0, 1, 2]
    assert row.lengths.tolist() == [2, 1, 1]
    assert row.first_leaf == (0, 2, 3)
    assert row.keys == (7, 9)
    assert row.tokens == 8


def test_trained_root_tokens_are_predicted_once_and_count_for_every_leaf():
    # Both answers open with X: predicted from b, once; Y and Z are predicted from x.
    row = batch([grow(0, [rendered("abXY"), rendered("abXZ")])])
    assert row.predict.tolist() == [1, 2, 2]
    assert letters(row.target) == "xyz"
    assert list(zip(row.term.tolist(), row.leaf.tolist())) == [(0, 0), (1, 0), (0, 1), (2, 1)]
    assert row.lengths.tolist() == [2, 2]
    # log-probs -1 for x, -2 for y, -4 for z: leaf sums -3 and -5.
    assert row.leaf_sum(torch.tensor([-1.0, -2.0, -4.0])).tolist() == [-3.0, -5.0]


def test_a_leaf_without_trained_tokens_sums_to_zero():
    row = batch([grow(0, [rendered("abC"), rendered("abd")])])
    assert row.lengths.tolist() == [1, 0]
    assert row.leaf_sum(torch.tensor([-2.0])).tolist() == [-2.0, 0.0]


def test_leaf_sum_passes_gradients_to_shared_tokens_once_per_leaf():
    row = batch([grow(0, [rendered("abXY"), rendered("abXZ")])])
    values = torch.zeros(3, requires_grad=True)
    row.leaf_sum(values).backward(torch.tensor([1.0, 10.0]))
    assert values.grad is not None
    assert values.grad.tolist() == [11.0, 1.0, 10.0]


def test_every_leaf_keeps_a_token_even_when_a_sequence_begins_another_one():
    tree = grow(0, [rendered("aB"), rendered("aBC"), rendered("aB")])
    assert letters(torch.tensor(tree.root)) == "a"
    assert [len(leaf.ids) for leaf in tree.leaves] == [1, 2, 1]


def test_the_root_ends_where_training_flags_differ():
    tree = grow(0, [Rendered((1, 2, 3, 4), (False, False, True, True)), Rendered((1, 2, 3, 5), (False,) * 4)])
    assert tree.root == (1, 2)
    assert tree.leaves == (Leaf((3, 4), (True, True)), Leaf((3, 5), (False, False)))


@pytest.mark.parametrize("rows", [[], [Rendered((), ())], [rendered("aB"), Rendered((), ())]])
def test_a_tree_needs_sequences_with_tokens(rows):
    with pytest.raises(ValueError, match="needs"):
        grow(0, rows)


def test_a_first_token_cannot_be_trained():
    with pytest.raises(ValueError, match="first token"):
        grow(0, [rendered("aB"), rendered("AB")])


def test_padding_is_a_segment_of_its_own():
    row = batch([grow(0, [rendered("abC"), rendered("abD")])], pad_to=8, pad_id=63)
    assert letters(row.input_ids) == "abcd????"
    assert row.position_ids.tolist() == [[0, 1, 2, 2, 0, 1, 2, 3]]
    assert row.segments[-1] == Segment(4, 8, 4, 4)
    assert row.cu_q.tolist() == [0, 3, 4, 8]
    assert row.kv_index.tolist() == [0, 1, 2, 0, 1, 3, 4, 5, 6, 7]
    assert row.tokens == 4
    assert row.lengths.tolist() == [1, 1]
    assert len(row.leaf_positions()) == 2


def test_a_batch_needs_a_tree():
    with pytest.raises(ValueError, match="tree"):
        batch([])


def test_to_moves_every_tensor_and_keeps_the_rest():
    row = batch([grow(0, [rendered("abC"), rendered("abD")])])
    moved = row.to("meta")
    for field in fields(row):
        before, after = getattr(row, field.name), getattr(moved, field.name)
        if field.name == "host_ids":  # for an embedding on the host
            assert after is before
        elif isinstance(before, torch.Tensor):
            assert after.device.type == "meta"
            assert after.shape == before.shape
        else:
            assert after == before


@given(groups, st.integers(1, 8))
def test_every_leaf_can_be_read_back_with_its_positions_and_targets(groups, pad_to):
    row = batch([grow(number, group) for number, group in enumerate(groups)], pad_to=pad_to)
    assert row.input_ids.shape[1] % pad_to == 0
    wanted = [sequence for group in groups for sequence in group]
    places = row.leaf_positions()
    assert len(places) == len(wanted) == row.first_leaf[-1] == len(row.lengths)
    assert [row.first_leaf[n + 1] - row.first_leaf[n] for n in range(len(groups))] == [len(g) for g in groups]
    for number, (sequence, place) in enumerate(zip(wanted, places)):
        assert tuple(row.input_ids[0, place].tolist()) == sequence.ids
        assert row.position_ids[0, place].tolist() == list(range(len(sequence.ids)))
        # What the leaf trains, by the (term, leaf) pairs: the token, and the place before it in the sequence.
        terms = row.term[row.leaf == number]
        trained = [i for i, flag in enumerate(sequence.trained) if flag]
        assert row.target[terms].tolist() == [sequence.ids[i] for i in trained]
        assert row.predict[terms].tolist() == [int(place[i - 1]) for i in trained]
        assert int(row.lengths[number]) == len(trained)


@given(groups, st.integers(1, 8))
def test_every_position_stands_in_one_segment_and_lists_agree(groups, pad_to):
    row = batch([grow(number, group) for number, group in enumerate(groups)], pad_to=pad_to)
    covered = [place for segment in row.segments for place in range(segment.start, segment.stop)]
    assert covered == list(range(row.input_ids.shape[1]))
    assert row.cu_q.tolist() == [0] + [segment.stop for segment in row.segments]
    for number, segment in enumerate(row.segments):
        keys = row.kv_index[row.cu_k[number] : row.cu_k[number + 1]].tolist()
        assert keys == [
            *range(segment.shared_start, segment.shared_stop),
            *range(segment.start, segment.stop),
        ]
        assert segment.keys == len(keys)
    assert row.max_q == max(segment.queries for segment in row.segments)
    assert row.max_k == max(segment.keys for segment in row.segments)
    assert int(row.cu_k[-1]) == len(row.kv_index)
    # Trained tokens stand once each, and shared ones are fewer than their terms.
    assert len(row.predict) == len(row.target) == len(set(row.term.tolist()))
    assert len(row.term) == int(row.lengths.sum())


@given(groups)
def test_a_row_costs_each_root_once(groups):
    trees = [grow(number, group) for number, group in enumerate(groups)]
    row = batch(trees)
    saved = sum(len(tree.root) * (len(tree.leaves) - 1) for tree in trees)
    assert row.tokens == sum(len(sequence.ids) for group in groups for sequence in group) - saved
    for tree, group in zip(trees, groups):
        # The root is maximal: the next tokens differ, or a leaf would be empty.
        after = {(leaf.ids[0], leaf.trained[0]) for leaf in tree.leaves}
        shortest = min(len(sequence.ids) for sequence in group)
        assert len(after) > 1 or len(tree.root) == shortest - 1


def bare(size: int) -> Tree:
    return Tree(0, (), (), (Leaf((1,) * size, (False,) * size),))


sizes = st.lists(st.integers(1, 40), max_size=40)


@given(sizes, st.integers(1, 60))
def test_packs_hold_every_tree_once_and_keep_to_the_budget(sizes, budget):
    packs = pack([bare(size) for size in sizes], budget)
    assert sorted(index for one in packs for index in one) == list(range(len(sizes)))
    for one in packs:
        assert sum(sizes[index] for index in one) <= budget or len(one) == 1
    assert packs == pack([bare(size) for size in sizes], budget)


@given(sizes)
def test_one_pack_when_all_fits(sizes):
    assert len(pack([bare(size) for size in sizes], max(1, sum(sizes)))) == min(1, len(sizes))


@given(sizes, st.integers(40, 90))
def test_first_fit_leaves_no_tree_that_an_earlier_pack_had_room_for(sizes, budget):
    packs = pack([bare(size) for size in sizes], budget)
    used = [sum(sizes[index] for index in one) for one in packs]
    for later, one in enumerate(packs):
        for index in one:
            assert all(used[earlier] + sizes[index] > budget for earlier in range(later))


def test_first_fit_decreasing_by_hand():
    # 6 | 5 and 4 | 3, 3 and 2: 6+3, 5+4, 3+2 with a budget of 9.
    assert pack([bare(size) for size in (3, 6, 3, 2, 5, 4)], 9) == [[1, 0], [4, 5], [2, 3]]


def test_a_tree_over_the_budget_stands_alone():
    assert pack([bare(3), bare(50), bare(4)], 10) == [[1], [2, 0]]


def test_a_budget_is_positive():
    with pytest.raises(ValueError, match="budget"):
        pack([], 0)


@settings(max_examples=30)
@given(st.integers(0, 60), st.integers(0, 2**40), st.integers(0, 5))
def test_order_is_a_permutation_and_a_pure_function(n, seed, epoch):
    first = order(n, seed, epoch)
    torch.manual_seed(0)
    assert sorted(first) == list(range(n))
    assert order(n, seed, epoch) == first


def test_order_is_the_same_in_every_version():
    # Written down once: a resumed run must see the order of the interrupted one.
    written = [3, 5, 1, 6, 2, 0, 7, 4]
    assert order(8, 42, 0) == written
    assert order(8, 42, 1) != written
    assert order(8, 43, 0) != written


@given(groups)
def test_sequences_apart_are_the_same_sequences(groups):
    for number, rows in enumerate(groups):
        tree = apart(grow(number, rows))
        assert tree.key == number
        assert [Rendered(leaf.ids, leaf.trained) for leaf in tree.leaves] == rows
        assert not tree.root
        alone = batch([tree])
        assert alone.tokens == sum(len(row.ids) for row in rows)
        assert alone.lengths.tolist() == [sum(row.trained) for row in rows]
        assert all(segment.shared_start == segment.shared_stop for segment in alone.segments)


class Recorded:
    """Stands for a tensor and notes what is done with it."""

    def __init__(self):
        self.calls = []

    def pin_memory(self):
        self.calls.append("pin")
        return self

    def to(self, device, **options):
        self.calls.append((str(device), options))
        return self


def test_an_upload_goes_through_pinned_memory_on_cuda_alone():
    for device, calls in {
        "cuda:0": ["pin", ("cuda:0", {"non_blocking": True})],
        "cpu": [("cpu", {})],
    }.items():
        tensor = Recorded()
        upload(tensor, torch.device(device))
        assert tensor.calls == calls


def test_a_single_sequence_has_its_prompt_as_root():
    tree = single(3, rendered("abCdE"))
    assert (tree.key, letters(torch.tensor(tree.root)), tree.root_trained) == (3, "ab", (False, False))
    assert [(letters(torch.tensor(leaf.ids)), leaf.trained) for leaf in tree.leaves] == [
        ("cde", (True, False, True))
    ]
    with pytest.raises(ValueError, match="cannot be trained"):
        single(0, rendered("Ab"))
    with pytest.raises(ValueError, match="index"):
        single(0, rendered("ab"))


def test_what_begins_alike_is_put_together_where_it_saves_most():
    rows = ["sysQ1a", "sysQ2b", "other", "sysQ1c", "oX"]
    trees = [single(n, rendered(row[:-1].lower() + row[-1].upper())) for n, row in enumerate(rows)]
    found = shared(trees, 100, shortest=3)
    assert {tuple(sorted(members)) for _, members in found} == {(0, 1, 3), (2,), (4,)}
    (tree,) = [tree for tree, members in found if len(members) == 3]
    assert letters(torch.tensor(tree.root)) == "sysq"
    # Two of the three fit the budget: those that have most in common.
    narrow = shared(trees, 8, shortest=3)
    assert {tuple(sorted(members)) for _, members in narrow} == {(0, 3), (1,), (2,), (4,)}
    assert len(shared(trees, 100, shortest=6)) == 5


@settings(max_examples=200)
@given(
    rows=st.lists(sequences(), min_size=1, max_size=4), budget=st.integers(1, 60), shortest=st.integers(1, 4)
)
def test_sharing_keeps_every_sequence_and_never_costs_tokens(rows, budget, shortest):
    flat = [one for group in rows for one in group if True in one.trained]
    trees = [single(number, one) for number, one in enumerate(flat)]
    found = shared(trees, budget, shortest=shortest)
    members = [row for _, rows_of in found for row in rows_of]
    assert sorted(members) == list(range(len(trees)))
    for tree, rows_of in found:
        assert [whole(tree, leaf) for leaf in range(len(tree.leaves))] == [flat[row] for row in rows_of]
        assert len(tree.leaves) == 1 or (tree.tokens <= budget and len(tree.root) >= shortest)
    assert sum(tree.tokens for tree, _ in found) <= sum(tree.tokens for tree in trees)


@settings(max_examples=100)
@given(rows=st.lists(sequences(), min_size=1, max_size=3), budget=st.integers(5, 40))
def test_no_other_cut_of_the_lexical_order_saves_more(rows, budget):
    """Brute force over all ways to cut up to 8 sequences in order into stretches."""
    flat = [one for group in rows for one in group if True in one.trained][:8]
    flat.sort(key=lambda one: list(zip(one.ids, one.trained)))

    def cuts(start: int):
        if start == len(flat):
            yield []
        for stop in range(start + 1, len(flat) + 1):
            for rest in cuts(stop):
                yield [(start, stop), *rest]

    def cost(start: int, stop: int) -> float:
        tree = grow(0, flat[start:stop])
        allowed = stop - start == 1 or (tree.tokens <= budget and len(tree.root) >= 1)
        return tree.tokens if allowed else float("inf")

    best = min(sum(cost(*stretch) for stretch in parts) for parts in cuts(0))
    trees = [single(number, one) for number, one in enumerate(flat)]
    found = shared(trees, budget, shortest=1)
    assert (
        sum(tree.tokens if len(tree.leaves) > 1 else len(flat[rows[0]].ids) for tree, rows in found) == best
    )
