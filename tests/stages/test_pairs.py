"""Pairs as the rows of a stage: which text and which sequence is which."""

from lite_align.data.render import Renderer
from lite_align.model import load
from lite_align.recipe import DataOptions, ModelOptions
from lite_align.stages import rows
from lite_align.stages.pairs import PAIRS
from tests.stages import small


def test_the_chosen_answer_is_the_first_leaf(tiny_llama):
    tokenizer = load.load_tokenizer(ModelOptions(name=str(tiny_llama)))
    pairs = small.as_pairs(small.rows(3))
    trees = rows.render(PAIRS, pairs, Renderer(tokenizer), DataOptions(max_length=256)).trees
    for pair, tree in zip(pairs, trees, strict=True):
        chosen, rejected = (tokenizer.decode(small.whole(tree, n).ids) for n in (0, 1))
        assert pair.chosen[0].content in str(chosen)
        assert pair.rejected[0].content in str(rejected)
    assert PAIRS.answers == ("chosen", "rejected")


def test_every_text_of_a_pair_is_looked_at():
    pair = small.as_pairs(small.rows(1))[0]
    assert list(PAIRS.texts(pair)) == [
        pair.prompt[0].content,
        pair.chosen[0].content,
        pair.rejected[0].content,
    ]
