"""Windows of answers with a thumb: blocks of a prompt, and whose answer stands in for whose."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from lite_align.data.forest import whole
from lite_align.data.mismatch import Answered, Windows, blocks, mismatched_tree, own_tree, stand_ins
from lite_align.data.types import Rendered


def row(prompt: str, answer: str) -> Answered:
    return Answered(tuple(map(ord, prompt)), Rendered(tuple(map(ord, answer)), (True,) * len(answer)))


def text(rendered: Rendered) -> str:
    return "".join(chr(i).upper() if t else chr(i) for i, t in zip(rendered.ids, rendered.trained))


def test_a_row_is_cut_where_its_first_trained_token_begins():
    """Later turns that are not trained belong to the answer: they follow it."""
    flags = (False, False, True, False, True)
    cut = Answered.of(Rendered((1, 2, 3, 4, 5), flags))
    assert cut == Answered((1, 2), Rendered((3, 4, 5), (True, False, True)))
    assert cut.under((7,)) == Rendered((7, 3, 4, 5), (False, True, False, True))
    assert cut.tokens == 3


def test_an_up_and_a_down_of_one_prompt_share_a_block():
    rows = [row("p", "a"), row("q", "b"), row("p", "c"), row("p", "d"), row("p", "e"), row("p", "f")]
    up = [True, True, True, False, False, False]
    assert blocks(rows, up) == [(0, 3), (1,), (2, 4), (5,)]


def test_answers_of_a_window_move_on_by_one_prompt():
    """As in TRL: the prompt of a row gets the answer of the row before it, the first one that of the last."""
    rows = [row(p, a) for p, a in ("pa", "qb", "rc", "sd")]
    window = [(2,), (0,), (3,)]
    assert stand_ins(rows, window, [(1,), *window], longest=9) == [(3,), (2,), (0,)]


def test_blocks_of_two_exchange_answers_thumb_by_thumb():
    rows = [row("p", "a"), row("p", "b"), row("q", "c"), row("q", "d"), row("r", "e")]
    assert stand_ins(rows, [(0, 1), (2, 3), (4,)], (), longest=9) == [(4, 4), (0, 1), (2,)]


def test_own_prompts_and_answers_that_do_not_fit_are_passed_over():
    rows = [row("p", "a"), row("p", "b"), row("q", "long"), row("rr", "c")]
    # row 1: row 0 has its prompt, then row 3. Row 3 with prompt rr: "long" needs 6, so row 1
    assert stand_ins(rows, [(0,), (1,), (2,), (3,)], (), longest=5) == [(3,), (3,), (1,), (1,)]


def test_a_window_of_one_prompt_looks_into_the_rest_of_the_epoch():
    rows = [row("p", "a"), row("q", "b"), row("p", "c")]
    order = [(1,), (0,), (2,)]
    assert stand_ins(rows, [(2,)], order, longest=9) == [(1,)]
    assert stand_ins(rows, [(2,)], order, longest=1) == [()]  # nothing fits
    assert stand_ins(rows[::2], [(0,), (1,)], [(0,), (1,)], longest=9) == [(), ()]  # one prompt alone


def test_trees_hold_one_prompt_with_own_or_foreign_answers():
    rows = [row("pp", "a"), row("pp", "b"), row("q", "c")]
    own, foreign = own_tree(rows, (0, 1)), mismatched_tree(rows, (0, 1), (2,))
    assert [text(whole(own, leaf)) for leaf in (0, 1)] == ["ppA", "ppB"]
    assert [text(whole(foreign, 0))] == ["ppC"]
    assert (own.key, foreign.key) == (0, 0)
    assert own.root == (ord("p"), ord("p"))
    assert own.tokens == 4


ROWS = st.lists(st.tuples(st.sampled_from("pqrst"), st.booleans()), min_size=1, max_size=30)


@given(ROWS, st.integers(1, 12), st.integers(0, 3))
def test_an_epoch_has_every_row_once_and_a_step_is_a_function_of_its_number(drawn, size, seed):
    rows = [row(prompt, f"a{n}") for n, (prompt, _) in enumerate(drawn)]
    up = [label for _, label in drawn]
    windows = Windows(rows, blocks(rows, up), size=size, seed=seed, longest=99)
    for epoch in range(2):
        steps = range(epoch * windows.steps_per_epoch, (epoch + 1) * windows.steps_per_epoch)
        inside = [[n for block in windows.step(step)[0] for n in block] for step in steps]
        assert sorted(n for part in inside for n in part) == list(range(len(rows)))
        assert all(len(part) == size for part in inside[:-1])
    step = windows.steps_per_epoch + 1
    assert windows.step(step) == Windows(rows, windows.groups, size=size, seed=seed, longest=99).step(step)


@given(ROWS, st.integers(1, 12))
def test_an_answer_never_stands_in_under_its_own_prompt(drawn, size):
    rows = [row(prompt, f"a{n}") for n, (prompt, _) in enumerate(drawn)]
    groups = blocks(rows, [label for _, label in drawn])
    windows = Windows(rows, groups, size=size, seed=0, longest=99)
    several = len({r.prompt for r in rows}) > 1
    for step in range(windows.steps_per_epoch):
        window, others = windows.step(step)
        assert [len(block) for block in others] == [len(block) if several else 0 for block in window]
        for block, stands in zip(window, others, strict=True):
            assert all(rows[other].prompt != rows[block[0]].prompt for other in stands)


@given(st.integers(2, 20))
def test_with_different_prompts_the_answers_are_those_that_are_trained(count):
    rows = [row(chr(65 + n), "a") for n in range(count)]
    window, others = Windows(rows, blocks(rows, [True] * count), size=count, seed=1, longest=9).step(0)
    assert Counter(window) == Counter(others)
