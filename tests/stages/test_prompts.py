"""Prompts on their way to trees: room for the answer, what goes, what is left out."""

import pytest

from lite_align.data.render import Renderer, Unusable
from lite_align.data.types import Message, Prompt, Source
from lite_align.errors import RecipeError
from lite_align.recipe import DataOptions
from lite_align.stages import rows
from lite_align.stages.prompts import prompts
from tests.stages import small

ANSWER = 30


def prompt(*contents: str, number: int = 1) -> Prompt:
    turns = tuple(Message(("user", "assistant")[n % 2], text) for n, text in enumerate(contents))
    return Prompt(Source("prompts.jsonl", number), messages=turns)


def rendered(tokenizer, row: Prompt, length: int, **options: object) -> rows.Sequences | Unusable:
    data = DataOptions.model_validate({"max_length": length, **options})
    (found,) = prompts(ANSWER).sequences(Renderer(tokenizer), [row], data)
    return found


def ids(found: rows.Sequences | Unusable) -> tuple[int, ...]:
    assert isinstance(found, rows.Sequences)
    (answer,) = found.answers
    assert answer.trained == (False,) * (len(answer.ids) - 1) + (True,)
    return answer.ids


@pytest.mark.parametrize("contents", [("hello world",), ("the fox", "a dog", "and the question?")])
def test_a_prompt_ends_where_its_answer_begins(tokenizer, contents):
    renderer, row = Renderer(tokenizer), prompt(*contents)
    found = ids(rendered(tokenizer, row, 200))
    assert found == (*renderer.prompt_ids(row.messages), renderer.turn_end)


def test_there_is_room_for_the_longest_answer_and_not_one_token_less(tokenizer):
    row = prompt("hello world and the quick brown fox")
    size = len(Renderer(tokenizer).prompt_ids(row.messages))
    ids(rendered(tokenizer, row, size + ANSWER))
    refused = rendered(tokenizer, row, size + ANSWER - 1)
    assert isinstance(refused, Unusable)
    assert refused.reason == "too_long"
    assert "answer of 30 tokens" in refused.detail


def test_old_rounds_go_whole_unless_the_recipe_forbids_it(tokenizer):
    row, renderer = prompt(*["hello world " * 8, "the fox"] * 3, "and now?"), Renderer(tokenizer)
    last = renderer.prompt_ids(row.messages[-1:])
    last_two = renderer.prompt_ids(row.messages[-3:])
    for room, expected, gone in ((len(last_two), last_two, 4), (len(last_two) - 1, last, 6)):
        found = rendered(tokenizer, row, room + ANSWER)
        assert isinstance(found, rows.Sequences)
        assert (ids(found)[:-1], found.turns_dropped) == (expected, gone)
    refused = rendered(tokenizer, row, len(last_two) + ANSWER, truncate="never")
    assert isinstance(refused, Unusable)
    assert refused.reason == "too_long"


@pytest.mark.parametrize("length", [ANSWER, ANSWER + 1, ANSWER - 5])
def test_an_answer_that_leaves_no_room_for_any_prompt_is_a_wrong_recipe(tokenizer, length):
    with pytest.raises(RecipeError, match="leaves no room") as told:
        rendered(tokenizer, prompt("hello"), length)
    assert told.value.exit_code == 2


def test_long_and_repeated_prompts_are_left_out_by_rule(tokenizer, tmp_path):
    texts = ["hello world", "Hello world", "the fox " * 40, "a dog", "hello world"]
    data = small.write(tmp_path / "prompts.jsonl", [{"prompt": text} for text in texts])
    kind, options = prompts(ANSWER), DataOptions(max_length=80)
    read = rows.read(kind, options, str(data))
    assert {rule: [str(one.source) for one in left] for rule, left in read.dropped.items()} == {
        "LA302": [f"{data}:5"]
    }
    found = rows.render(kind, read.rows, Renderer(tokenizer), options)
    assert [row.messages[0].content for row in found.rows] == ["hello world", "Hello world", "a dog"]
    assert rows.counts(found.dropped) == {"LA208": 1}
    assert [tree.key for tree in found.trees] == [0, 1, 2]
    assert list(kind.texts(found.rows[2])) == ["a dog"]
    assert kind.prompt(found.rows[2]) == (Message("user", "a dog"),)
