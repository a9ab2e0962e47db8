"""Answers of a prompt in one tree: where scores are read, what is shared, which comparisons are kept."""

from hypothesis import given
from hypothesis import strategies as st

from lite_align.data.comparisons import Scored, bundle, by_prompt, group, judged, up_to_score
from lite_align.data.forest import grow
from lite_align.data.types import Message, Pair, Rendered, Source, Tree

STOP, TAIL = 90, 91


def row(number: int) -> Pair:
    turns = (Message("user", "?"),), (Message("assistant", "a"),), (Message("assistant", "b"),)
    return Pair(Source("rows.jsonl", number), prompt=turns[0], chosen=turns[1], rejected=turns[2])


def rendered(prompt: tuple[int, ...], answer: tuple[int, ...]) -> Rendered:
    """Prompt, answer, its stop token and text of the template after it."""
    ids = (*prompt, *answer, STOP, TAIL)
    return Rendered(ids, (False,) * len(prompt) + (True,) * (len(answer) + 1) + (False,))


def example(
    number: int, prompt: tuple[int, ...], chosen: tuple[int, ...], rejected: tuple[int, ...]
) -> Scored:
    sides = [up_to_score(rendered(prompt, answer)) for answer in (chosen, rejected)]
    return Scored.of(row(number), grow(number, sides))


def sequences(tree: Tree) -> list[tuple[int, ...]]:
    return [tree.root + leaf.ids for leaf in tree.leaves]


def test_the_score_is_read_at_the_stop_token():
    found = up_to_score(rendered((1, 2), (5, 6)))
    assert found == Rendered((1, 2, 5, 6, STOP), (False, False, True, True, True))


def test_the_score_of_a_judged_answer_is_read_before_the_judge_speaks():
    """The example of the docstring, a to j being 1 to 10: two trained turns, of which the last is the judge's."""
    turns = Rendered(tuple(range(1, 11)), tuple(letter.isupper() for letter in "abCDEfghIJ"))
    assert up_to_score(turns).ids == tuple(range(1, 11))
    found = up_to_score(turns, judged=True)
    assert found.ids == (1, 2, 3, 4, 5, 6, 7, 8)
    assert found.trained == (False, False, True, True, True, False, False, False)


def test_a_judge_is_asked_by_a_user_turn():
    answer = (Message("assistant", "a"),)
    assert judged(answer, None) == answer
    turns = judged(answer, "Review it.")
    assert [(turn.role, turn.content) for turn in turns[:2]] == [("assistant", "a"), ("user", "Review it.")]
    assert turns[2].role == "assistant"


def test_a_pair_knows_its_prompt_and_the_lengths_of_its_answers():
    """Answers that begin alike share these tokens in the tree; they belong to the answers all the same."""
    found = example(1, (1, 2, 3), (7, 8), (7, 9, 9))
    assert (found.prompt, found.tokens) == (3, (3, 4))
    assert (found.chosen, found.rejected) == ((1, 2, 3, 7, 8, STOP), (1, 2, 3, 7, 9, 9, STOP))


def test_answers_of_a_prompt_stand_once_in_one_tree():
    """A over B, B over C, A over C: three rows of two answers each become one tree of three."""
    prompt, a, b, c = (1, 2, 3), (10,), (20, 21), (30,)
    first, second, third = example(1, prompt, a, b), example(2, prompt, b, c), example(3, prompt, a, c)
    other = example(4, (1, 2, 4), a, b)
    found = group([first, other, second, third], most_tokens=100)
    assert [sequences(each.tree) for each in found] == [
        [(1, 2, 3, 10, STOP), (1, 2, 3, 20, 21, STOP), (1, 2, 3, 30, STOP)],
        [(1, 2, 4, 10, STOP), (1, 2, 4, 20, 21, STOP)],
    ]
    assert found[0].comparisons == ((0, 1, first), (1, 2, second), (0, 2, third))
    assert [each.tree.key for each in found] == [0, 1]
    assert found[0].tree.root == prompt
    assert not any(any(leaf.trained) for each in found for leaf in each.tree.leaves)
    assert by_prompt([first, other, second]) == [[first, second], [other]]


def test_a_prompt_with_too_many_tokens_is_split_between_pairs():
    """3 tokens of prompt and 2 of each answer: two answers are 7 tokens, four are 11."""
    prompt = (1, 2, 3)
    examples = [example(n, prompt, (10 + n,), (20 + n,)) for n in range(3)]
    assert [each.tree.tokens for each in group(examples, most_tokens=11)] == [11, 7]
    assert [each.tree.tokens for each in group(examples, most_tokens=10)] == [7, 7, 7]
    alone = group(examples, most_tokens=1)
    assert [len(each.comparisons) for each in alone] == [1, 1, 1], "a single pair always fits"


@given(
    st.lists(st.tuples(*[st.integers(0, 2)] * 2, *[st.integers(5, 8)] * 2), max_size=12), st.integers(1, 40)
)
def test_every_pair_is_kept_with_its_own_answers(drawn, most_tokens):
    drawn = [(p, q, a, b) for p, q, a, b in drawn if a != b]
    examples = [example(n, (1, p, q), (a,) * (a - 4), (b,) * (b - 4)) for n, (p, q, a, b) in enumerate(drawn)]
    found = group(examples, most_tokens=most_tokens)
    kept = {
        c.scored.pair.source.line: (sequences(each.tree)[c.chosen], sequences(each.tree)[c.rejected])
        for each in found
        for c in each.comparisons
    }
    assert kept == {n: (one.chosen, one.rejected) for n, one in enumerate(examples)}
    assert all(each.tree.tokens <= most_tokens or len(each.comparisons) == 1 for each in found)


def test_sequences_of_one_prompt_become_the_leaves_of_few_trees():
    """2 tokens of prompt; answers of 1, 2, 2 and 1 tokens in trees of at most 6."""
    given = [(1, 2, 5), (1, 2, 6, 7), (1, 2, 6, 7), (1, 2, 8)]
    trees = bundle(2, given, most_tokens=6)
    assert [sequences(tree) for tree in trees] == [given[:2], given[2:]]
    assert [len(sequences(tree)) for tree in bundle(2, given, most_tokens=1)] == [1, 1, 1, 1]
    assert bundle(2, [], most_tokens=6) == []
