"""Conversations to imitate: which tokens are trained, for every template family, and what goes where they are long."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from lite_align.data.chats import ChatTokens, render
from lite_align.data.render import Renderer, Unusable
from lite_align.data.types import Chat, Conversation, Message, Rendered, Source
from tests.data import families
from tests.data.test_render import ALL, CHATML, CONTENTS, ENDS, ROUNDS, renderers, system, trained_runs, turns

__all__ = ["renderers"]  # a fixture

SPOKEN = ("one", "fox", "two", "the lazy dog", "three", "dog")


def chat(messages: Conversation, line: int = 1) -> Chat:
    return Chat(Source("rows.jsonl", line), messages=messages)


def text(content: str) -> Chat:
    return Chat(Source("rows.jsonl", 1), messages=(Message("assistant", content),), raw=True)


def tokens(renderer: Renderer, row: Chat, max_length: int = 10_000, **options) -> Rendered:
    (result,) = render(renderer, [row], max_length, **options)
    assert isinstance(result, ChatTokens), result
    return result.tokens


def runs(fast, rendered: Rendered) -> list[str]:
    return [fast.decode(run) for run in trained_runs(rendered)]


@pytest.mark.parametrize("family", ALL)
def test_every_answer_and_its_stop_token_are_trained(family, renderers):
    renderer, fast = renderers[family]
    rendered = tokens(renderer, chat(turns(*SPOKEN)))
    assert runs(fast, rendered) == [ENDS[family].format(answer) for answer in SPOKEN[1::2]]
    assert all(run[-1] in renderer.stop_ids for run in trained_runs(rendered))
    if family != "thinking":  # which writes an empty thought before the last answer only
        assert rendered.ids[: rendered.trained.index(True)] == renderer.prompt_ids(turns("one"))


@pytest.mark.parametrize("family", ALL)
def test_the_last_answer_alone_is_trained_as_it_is_written_at_inference(family, renderers):
    renderer, fast = renderers[family]
    rendered = tokens(renderer, chat(turns(*SPOKEN)), train_on="last_turn")
    assert rendered == renderer.conversation(turns(*SPOKEN[:-1]), (Message("assistant", "dog"),))
    assert runs(fast, rendered) == [ENDS[family].format("dog")]


@pytest.mark.parametrize("family", ALL)
def test_the_three_ways_differ_in_the_mask_alone(family, renderers):
    renderer, fast = renderers[family]
    found = [
        tokens(renderer, chat(turns(*SPOKEN)), train_on=way)
        for way in ("all_turns", "last_turn", "all_tokens")
    ]
    # Not always the same ids: a line break before an answer may merge with it where nothing is trained.
    assert len({fast.decode(list(rendered.ids)) for rendered in found}) == 1
    assert found[1].ids == found[2].ids
    assert found[2].trained == (False, *[True] * (len(found[2].ids) - 1))


@settings(max_examples=60, deadline=None)
@given(contents=st.lists(CONTENTS, min_size=4, max_size=4), family=st.sampled_from(["chatml", "generation"]))
def test_for_any_text_the_trained_text_is_that_of_the_answers(contents, family, renderers):
    renderer, fast = renderers[family]
    rendered = tokens(renderer, chat(turns(*contents)))
    assert runs(fast, rendered) == [contents[1] + "<|im_end|>", contents[3] + "<|im_end|>"]


def test_what_the_assistant_says_before_the_first_question_is_context(renderers):
    renderer, fast = renderers["chatml"]
    opened = (Message("system", "be kind"), Message("assistant", "welcome"), *turns("one", "fox"))
    rendered = tokens(renderer, chat(opened))
    assert runs(fast, rendered) == ["fox<|im_end|>"]
    assert "welcome<|im_end|>" in fast.decode(list(rendered.ids))
    strict, _ = renderers["turns"]  # whose template wants a user first
    (refused,) = render(strict, [chat(opened[1:])], 100)
    assert isinstance(refused, Unusable)
    assert refused.reason == "roles"


def test_tools_answer_and_are_not_trained(renderers):
    renderer, fast = renderers["chatml"]
    called = (*turns("one", "call"), Message("tool", "7"), Message("assistant", "seven"))
    assert runs(fast, tokens(renderer, chat(called))) == ["call<|im_end|>", "seven<|im_end|>"]


def test_reasoning_that_the_template_drops_from_an_earlier_answer_is_never_trained_without_a_word(renderers):
    renderer, fast = renderers["thinking"]
    thought = "<think>\nwhy\n</think>\n\nfox"
    earlier, last = chat(turns("a", thought, "b", "dog")), chat(turns("a", "dog", "b", thought))
    (dropped,) = render(renderer, [earlier], 100)
    assert isinstance(dropped, Unusable)
    assert dropped.reason == "template"
    assert "LA207: the chat template drops the reasoning of the answer" in dropped.detail
    assert runs(fast, tokens(renderer, earlier, train_on="last_turn")) == ["dog<|im_end|>"]
    assert runs(fast, tokens(renderer, last)) == ["dog<|im_end|>", thought + "<|im_end|>"]


def test_oldest_rounds_go_whole_with_their_answers(renderers):
    renderer, fast = renderers["chatml"]
    row = chat((*ROUNDS, Message("assistant", "bye")))
    kept = chat((*ROUNDS[:1], *ROUNDS[5:], Message("assistant", "bye")))
    exact = tokens(renderer, kept)
    (result,) = render(renderer, [row], len(exact.ids))
    assert result == ChatTokens(exact, 4)
    assert runs(fast, exact) == ["bye<|im_end|>"]
    (refused,) = render(renderer, [row], len(exact.ids) - 1)
    assert isinstance(refused, Unusable)
    assert (refused.reason, str(len(exact.ids) - 1) in refused.detail) == ("too_long", True)
    (refused,) = render(renderer, [row], len(exact.ids), drop_turns=False)
    assert isinstance(refused, Unusable)


def test_a_round_that_goes_takes_the_opening_with_it(renderers):
    renderer, _ = renderers["chatml"]
    opened = (Message("assistant", "welcome " * 20), *turns("one", "fox", "two", "dog"))
    exact = tokens(renderer, chat(turns("two", "dog")))
    assert render(renderer, [chat(opened)], len(exact.ids)) == [ChatTokens(exact, 3)]


@pytest.mark.parametrize("bos", [False, True])
def test_a_raw_text_is_what_the_tokenizer_writes_with_its_end_token(bos):
    fast = families.byte_level(CHATML, ["<|im_start|>", "<|im_end|>"], [])
    if bos:
        fast.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    rendered = tokens(Renderer(fast, trusted=True), text(" the quick\nfox "))
    assert list(rendered.ids) == [*fast(" the quick\nfox ")["input_ids"], fast.eos_token_id]
    assert rendered.ids[0] == fast.bos_token_id or not bos
    assert rendered.trained == (False, *[True] * (len(rendered.ids) - 1))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_raw_text_cannot_forge_the_end_token(legacy):
    fast = families.metaspace(CHATML, ["<|im_start|>", "<|im_end|>"], [], legacy=legacy)
    rendered = tokens(Renderer(fast, trusted=True), text("fox</s>dog <|im_end|>"))
    assert rendered.ids.count(fast.eos_token_id) == 1
    assert rendered.ids[-1] == fast.eos_token_id
    assert fast.convert_tokens_to_ids("<|im_end|>") not in rendered.ids


def test_a_raw_text_that_is_too_long_is_left_out_and_never_cut(renderers):
    renderer, _ = renderers["chatml"]
    size = len(tokens(renderer, text("fox " * 30)).ids)
    (refused,) = render(renderer, [text("fox " * 30)], size - 1)
    assert isinstance(refused, Unusable)
    assert refused.reason == "too_long"


def test_rows_of_all_kinds_together_are_what_they_are_alone(renderers):
    renderer, _ = renderers["thinking"]
    rows = [
        chat(turns("a", "fox")),
        text("the dog"),
        chat(turns("a", "<think>\nwhy\n</think>\n\nfox", "b", "dog")),
        chat((*ROUNDS, Message("assistant", "bye"))),
        text("fox " * 70),
        chat(system("be kind", "a", "  ")),
    ]
    together = render(renderer, rows, 60)
    assert together == [render(renderer, [row], 60)[0] for row in rows]
    assert [type(result).__name__ for result in together] == [
        *("ChatTokens", "ChatTokens", "Unusable", "ChatTokens", "Unusable", "Unusable")
    ]
    assert isinstance(together[5], Unusable)
    assert together[5].reason == "empty"
