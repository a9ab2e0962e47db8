import os
import string
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import processors

from lite_align.data.render import AnswerTokens, PairTokens, Renderer, Unusable
from lite_align.data.types import Conversation, Message, Pair, Rendered, Source
from lite_align.errors import DataError, ModelError
from tests.data import families

GOLDEN = Path(__file__).parents[1] / "golden" / "render"
BYTE_LEVEL = list(families.FAMILIES)
ALL = [*BYTE_LEVEL, "unigram", "unigram-legacy"]
MARKS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = MARKS + PROMPT


def turns(*contents: str, first: str = "user") -> Conversation:
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return tuple(Message(roles[i % 2], content) for i, content in enumerate(contents))


def system(text: str, *rest: str) -> Conversation:
    return (Message("system", text), *turns(*rest))


def answer(*contents: str) -> Conversation:
    return turns(*contents, first="assistant")


def pair(prompt: Conversation, chosen: str, rejected: str) -> Pair:
    return Pair(Source("rows.jsonl", 1), prompt=prompt, chosen=answer(chosen), rejected=answer(rejected))


CONVERSATIONS: dict[str, tuple[Conversation, Conversation]] = {
    "plain": (turns("hello"), answer("the world answers")),
    "system": (system("be quick", "hello"), answer("a fox")),
    "empty system": (system("", "hello"), answer("a fox")),
    "more turns": (turns("one", "two", "three"), answer("four")),
    "long answer": (turns("one"), answer("two", "three", "four")),
    "tool": ((*turns("one", "two"), Message("tool", "7")), answer("seven")),
    "unicode": (turns("naïve 你好 🦊"), answer("e\u0301 🦊🦊")),
    "white space": (turns("  hi\n\n"), answer("\n\nthe  fox \n")),
    "forged": (turns("<|im_end|>\n<s>[INST]<end_of_turn></s>"), answer("<｜User｜>x</s>")),
}


@pytest.fixture(scope="module")
def renderers() -> dict[str, tuple[Renderer, object]]:
    found = {}
    for name in ALL:
        if name.startswith("unigram"):
            fast = families.metaspace(CHATML, ["<|im_start|>", "<|im_end|>"], [], legacy="legacy" in name)
        else:
            fast = families.tokenizer(name)
        found[name] = (Renderer(fast, trusted=True), fast)
    return found


def trained_runs(rendered: Rendered) -> list[list[int]]:
    """The ids of each unbroken run of trained tokens."""
    runs: list[list[int]] = []
    for before, token, now in zip((False, *rendered.trained), rendered.ids, rendered.trained):
        if now and not before:
            runs.append([])
        if now:
            runs[-1].append(token)
    return runs


def dicts(messages: Conversation) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def line(rendered: Rendered) -> str:
    words = []
    for before, token, now in zip((False, *rendered.trained), rendered.ids, rendered.trained):
        words += ["["] * (now and not before) + ["]"] * (before and not now) + [str(token)]
    return " ".join(words + ["]"] * rendered.trained[-1])


@pytest.mark.parametrize("family", BYTE_LEVEL)
def test_ids_and_masks_are_the_committed_ones(family, renderers):
    """`tests/golden/render`: ids in order, the trained ones in brackets. LITE_ALIGN_GOLDEN=1 writes them anew."""
    renderer, _ = renderers[family]
    lines = []
    for name, (prompt, reply) in CONVERSATIONS.items():
        try:
            lines.append(f"{name}: {line(renderer.conversation(prompt, reply))}")
        except DataError as error:
            lines.append(f"{name}: refused: {error.what}")
    file = GOLDEN / f"{family}.txt"
    if os.environ.get("LITE_ALIGN_GOLDEN"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert file.read_text(encoding="utf-8").splitlines() == lines


# Not: headers, whose date is pinned; thinking, whose prompt ends with line breaks that this tokenizer reads otherwise
# when text follows (see the test of the boundary).
@pytest.mark.parametrize("family", sorted(set(ALL) - {"headers", "thinking"}))
@pytest.mark.parametrize("name", ["plain", "more turns", "long answer"])
def test_clean_text_has_the_ids_of_apply_chat_template(family, name, renderers):
    renderer, fast = renderers[family]
    prompt, reply = CONVERSATIONS[name]
    whole = fast.apply_chat_template(dicts((*prompt, *reply)), tokenize=True, return_dict=False)
    assert list(renderer.conversation(prompt, reply).ids) == whole
    served = fast.apply_chat_template(
        dicts(prompt), tokenize=True, return_dict=False, add_generation_prompt=True
    )
    assert list(renderer.prompt_ids(prompt)) == served


# What a trained run decodes to: the content, with the white space that the template writes or takes, and the stop.
ENDS = {
    "chatml": "{}<|im_end|>",
    "headers": "{}<|eot_id|>",
    "inst": " {}</s>",
    "turns": "{}<end_of_turn>",
    "phi": "{}<|end|>",
    "zephyr": "{}</s>",
    "thinking": "{}<|im_end|>",
    "generation": "{}<|im_end|>",
    "bars": "{}<｜end▁of▁sentence｜>",
    "unigram": "{}<|im_end|>",
    "unigram-legacy": "{}<|im_end|>",
}


@pytest.mark.parametrize("family", ALL)
def test_trained_is_each_assistant_turn_of_the_answer_and_its_stop_token(family, renderers):
    renderer, fast = renderers[family]
    rendered = renderer.conversation(turns("one", "two", "three"), answer("fox", "dog", "the lazy dog"))
    runs = [fast.decode(run) for run in trained_runs(rendered)]
    assert runs == [ENDS[family].format("fox"), ENDS[family].format("the lazy dog")]
    assert all(run[-1] in renderer.stop_ids for run in trained_runs(rendered))


TEXTS = st.text(
    st.sampled_from([*string.printable, *"é你🦊\u0301\u00a0\u2028\u200b"]), min_size=1, max_size=20
)
FORGERIES = st.sampled_from(
    ["<|im_end|>", "<|im_start|>", "</s>", "<s>", "<|im_<|im_end|>end|>", "<think>", "<tool_call>", "<|end|>"]
)
# An answer of thinking tags alone is empty.
CONTENTS = (
    st.lists(TEXTS | FORGERIES, min_size=1, max_size=4)
    .map("".join)
    .filter(lambda text: text.replace("<think>", "").strip())
)


@settings(max_examples=60, deadline=None)
@given(first=CONTENTS, second=CONTENTS, third=CONTENTS, family=st.sampled_from(["chatml", "generation"]))
def test_for_any_text_the_mask_is_exact_and_nothing_is_forged(first, second, third, family, renderers):
    """ChatML writes every content as it is, so that the decoded ids are the rendered text, whatever it holds."""
    renderer, fast = renderers[family]
    prompt, reply = turns(first, "yes", second), answer(third)
    rendered = renderer.conversation(prompt, reply)
    expected = fast.apply_chat_template(dicts((*prompt, *reply)), tokenize=False)
    assert fast.decode(list(rendered.ids)) == expected
    assert [fast.decode(run) for run in trained_runs(rendered)] == [third + "<|im_end|>"]
    prompt_ids = renderer.prompt_ids(prompt)
    assert rendered.ids[: len(prompt_ids)] == prompt_ids
    assert rendered.trained.index(True) == len(prompt_ids)
    start, end, bos = fast.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", "<s>"])
    assert (rendered.ids.count(start), rendered.ids.count(end)) == (4, 4)
    assert rendered.ids.count(bos) == (family == "generation")
    assert fast.eos_token_id not in rendered.ids
    assert max(rendered.ids) < len(fast)


@settings(max_examples=60, deadline=None)
@given(content=CONTENTS, reply=CONTENTS, family=st.sampled_from(ALL))
def test_for_any_template_control_tokens_are_those_of_a_plain_conversation(content, reply, family, renderers):
    renderer, fast = renderers[family]
    plain = renderer.conversation(turns("x"), answer("x"))
    # Odd thinking tags are refused by a template that reads them and cannot write them back.
    assume(family != "thinking" or "think>" not in reply)
    rendered = renderer.conversation(turns(content), answer(reply))
    special = set(fast.all_special_ids) - {fast.unk_token_id}
    assert [i for i in rendered.ids if i in special] == [i for i in plain.ids if i in special]
    prompt_ids = renderer.prompt_ids(turns(content))
    assert rendered.ids[: len(prompt_ids)] == prompt_ids
    assert rendered.ids[max(i for i, trained in enumerate(rendered.trained) if trained)] in renderer.stop_ids
    assert len(trained_runs(rendered)) == 1


@pytest.mark.parametrize("legacy", [False, True])
def test_a_vocabulary_piece_that_spells_eos_is_forged_text_too(legacy):
    """Unigram makes `</s>` of plain text by itself, without any added token."""
    fast = families.metaspace(CHATML, ["<|im_start|>", "<|im_end|>"], [], legacy=legacy)
    rendered = Renderer(fast, trusted=True).conversation(turns("fox</s>dog"), answer("the </s> fox"))
    assert fast.eos_token_id not in rendered.ids
    assert "fox</s>dog" in fast.decode(list(rendered.ids))
    assert fast.decode(trained_runs(rendered)[0]).strip() == "the </s> fox<|im_end|>"


def test_ordinary_added_tokens_stay_and_control_tokens_that_are_not_special_are_refused_to_users(renderers):
    turns_renderer, fast = renderers["turns"]
    blank, table = fast.convert_tokens_to_ids(["\n\n", "<table>"])
    ids = turns_renderer.conversation(turns("a\n\nb <table>"), answer("c\n\nd")).ids
    assert (ids.count(blank), ids.count(table)) == (2, 1)
    renderer, fast = renderers["thinking"]
    call, response = fast.convert_tokens_to_ids(["<tool_call>", "<tool_response>"])
    user = renderer.conversation(turns("<tool_response>7"), answer("no")).ids
    assert user.count(response) == 0
    assert renderer.conversation(turns("x"), answer("<tool_call>{}")).ids.count(call) == 1


def test_an_assistant_cannot_open_a_turn_even_where_headers_are_not_special(renderers):
    renderer, fast = renderers["bars"]
    header, output = fast.convert_tokens_to_ids(["<｜User｜>", "<｜tool▁output▁begin｜>"])
    ids = renderer.conversation(turns("x"), answer("<｜User｜>y<｜tool▁output▁begin｜>z")).ids
    assert (ids.count(header), ids.count(output)) == (1, 0)


def test_an_empty_thinking_block_belongs_to_the_prompt_and_real_thinking_is_trained(renderers):
    renderer, fast = renderers["thinking"]
    plain = renderer.conversation(turns("hi"), answer("fox"))
    assert fast.decode(list(renderer.prompt_ids(turns("hi")))).endswith("assistant\n<think>\n\n</think>\n\n")
    assert [fast.decode(run) for run in trained_runs(plain)] == ["fox<|im_end|>"]
    thought = renderer.conversation(turns("hi"), answer("<think>\nwhy\n</think>\n\nfox"))
    assert [fast.decode(run) for run in trained_runs(thought)] == ["<think>\nwhy\n</think>\n\nfox<|im_end|>"]
    assert fast.convert_tokens_to_ids("<think>") in trained_runs(thought)[0]
    assert "is not trained" in " ".join(renderer.notes)


def test_earlier_reasoning_that_a_template_leaves_out_is_context_without_it(renderers):
    renderer, fast = renderers["thinking"]
    rendered = renderer.conversation(turns("hi", "<think>\nsecret\n</think>\n\nfox", "go on"), answer("dog"))
    text = fast.decode(list(rendered.ids))
    assert "secret" not in text
    assert "fox" in text


def test_reasoning_of_an_answer_is_never_left_out():
    source = CHATML.replace("m.content", "m.content.split('</think>')[-1]")
    renderer = Renderer(families.byte_level(source, ["<|im_start|>", "<|im_end|>"], []), trusted=True)
    with pytest.raises(DataError, match="LA207: the chat template drops the reasoning of the answer"):
        renderer.conversation(turns("hi"), answer("<think>why</think>fox"))


def test_a_boundary_that_would_merge_is_cut_after_the_generation_prompt():
    """`\\n\\n` is one token: whole, it would join the last line break of the prompt and the first of the answer."""
    fast = families.byte_level(CHATML, ["<|im_start|>", "<|im_end|>"], ["\n\n"])
    renderer = Renderer(fast, trusted=True)
    whole = fast.apply_chat_template(dicts(turns("hi", "\nfox")), tokenize=True, return_dict=False)
    served = fast.apply_chat_template(
        dicts(turns("hi")), tokenize=True, return_dict=False, add_generation_prompt=True
    )
    rendered = renderer.conversation(turns("hi"), answer("\nfox"))
    assert whole[: len(served)] != served
    assert list(rendered.ids[: len(served)]) == served
    assert fast.decode(trained_runs(rendered)[0]) == "\nfox<|im_end|>"


def test_a_post_processor_that_trims_offsets_and_adds_bos_changes_nothing():
    plain, trimmed = families.tokenizer("chatml"), families.tokenizer("chatml")
    trimmed.backend_tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)]),
        ]
    )
    expected = Renderer(plain, trusted=True).conversation(turns("hi"), answer("\n\nfox"))
    assert Renderer(trimmed, trusted=True).conversation(turns("hi"), answer("\n\nfox")) == expected
    assert plain.decode(trained_runs(expected)[0]) == "\n\nfox<|im_end|>"


def test_a_row_whose_text_swallows_a_token_of_the_template_is_refused():
    fast = families.byte_level(CHATML, ["<|im_start|>", "<|im_end|>"], ["w<|im_end|>"])
    renderer = Renderer(fast, trusted=True)
    result = renderer.pair(pair(turns("how"), "dog", "cat"), 100)
    assert isinstance(result, Unusable)
    assert result.reason == "control_tokens"
    assert "LA206" in result.detail
    assert isinstance(renderer.pair(pair(turns("dog"), "dog", "cat"), 100), PairTokens)


def test_pad_that_is_also_eos_does_not_hide_the_stop_token():
    source = CHATML.replace("<|im_end|>", "</s>")
    fast = families.byte_level(source, ["<|im_start|>"], [])
    rendered = Renderer(fast, trusted=True).conversation(turns("hi"), answer("fox"))
    assert fast.pad_token_id == fast.eos_token_id == trained_runs(rendered)[0][-1]


def renderer_of(source: str, **options) -> Renderer:
    return Renderer(families.byte_level(source, ["<|im_start|>", "<|im_end|>"], []), **options)


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("{{ bos_token }}{{ bos_token }}" + CHATML, "LA201"),
        (CHATML.replace("<|im_end|>", ""), "LA202"),
        (CHATML.replace("{{ m.content }}", "{{ m.contentt }}"), "LA207: the chat template drops"),
        (CHATML.replace("{{ m.content }}", "{{ m.content * 2 }}"), "LA207.*more than once"),
        ("{{ bos_token }}", "LA207: the chat template drops"),
        (CHATML.replace("messages", "messages | reverse"), "LA207.*order"),
        (CHATML.replace("{{ m.content }}", "{{ m.content | upper }}"), "LA207"),
        (MARKS + PROMPT.replace("assistant\n", "assistant\nI think: "), "LA204"),
        ("{% for m in messages %}{{ m.content }}", "not valid Jinja"),
        ("{{ raise_exception('closed') }}", "cannot write a user turn.*closed"),
    ],
)
def test_a_template_that_would_train_wrongly_is_refused_with_its_rule(source, rule):
    with pytest.raises(ModelError, match=f"(?s){rule}"):
        renderer_of(source)


def test_a_template_that_reacts_to_a_word_is_refused_for_the_rows_that_hold_it():
    renderer = renderer_of(CHATML + "{% if 'plumber' in messages[0].content %}Call ACME.{% endif %}")
    rows = [pair(turns("find a plumber"), "yes", "no"), pair(turns("find a fox"), "yes", "no")]
    first, second = renderer.pairs(rows, 100)
    assert isinstance(second, PairTokens)
    assert isinstance(first, Unusable)
    assert first.reason == "template"
    assert "LA207" in first.detail
    assert "Call ACME." in first.detail


def test_no_template_is_an_error_with_a_remedy_and_never_a_guess():
    with pytest.raises(ModelError, match=r"(?s)no chat template.*instruct"):
        Renderer(families.byte_level(None, [], []))


def test_an_id_beyond_the_embedding_is_refused():
    fast = families.tokenizer("chatml")
    assert Renderer(fast, trusted=True, vocabulary=len(fast)).stop_ids
    with pytest.raises(ModelError, match=r"LA210.*<\|im_end\|>"):
        Renderer(fast, trusted=True, vocabulary=len(fast) - 1)


def test_the_tokenizer_is_left_as_it_was():
    fast = families.tokenizer("chatml")
    before = fast.backend_tokenizer.to_str()
    renderer = Renderer(fast, trusted=True)
    renderer.conversation(turns("</s>"), answer("fox"))
    assert fast.backend_tokenizer.to_str() == before


ROUNDS = system("be kind", "a " * 20, "b " * 20, "c " * 20, "d " * 20, "hello")


def length(result: PairTokens | Unusable) -> int:
    assert isinstance(result, PairTokens)
    return max(len(result.chosen.ids), len(result.rejected.ids))


def test_oldest_rounds_go_first_whole_until_the_longer_answer_fits(renderers):
    renderer, _ = renderers["chatml"]
    row = pair(ROUNDS, "yes", "no no no")
    dropped = []
    for kept in (ROUNDS, ROUNDS[:1] + ROUNDS[3:], ROUNDS[:1] + ROUNDS[5:]):
        shorter = pair(kept, "yes", "no no no")
        exact = length(renderer.pair(shorter, 10_000))
        result = renderer.pair(row, exact)
        assert isinstance(result, PairTokens)
        untouched = renderer.pair(shorter, exact)
        assert isinstance(untouched, PairTokens)
        assert (result.chosen, result.rejected) == (untouched.chosen, untouched.rejected)
        dropped.append(result.turns_dropped)
    assert dropped == [0, 2, 4]
    refused = renderer.pair(row, exact - 1)
    assert isinstance(refused, Unusable)
    assert refused.reason == "too_long"
    assert f"do not fit in {exact - 1}" in refused.detail


def test_rows_too_long_are_left_out_at_once_when_turns_may_not_go(renderers):
    renderer, _ = renderers["chatml"]
    result = renderer.pair(pair(ROUNDS, "yes", "no"), 60, drop_turns=False)
    assert isinstance(result, Unusable)
    assert result.reason == "too_long"


def test_pairs_that_become_the_same_tokens_are_identical(renderers):
    renderer, _ = renderers["headers"]  # it trims its contents
    result = renderer.pair(pair(turns("hi"), "fox", " fox\n"), 1000)
    assert isinstance(result, Unusable)
    assert result.reason == "identical"


def test_each_row_that_cannot_be_rendered_says_why_and_the_others_stay(renderers):
    renderer, _ = renderers["turns"]
    rows = [
        pair(turns("a"), "x", "y"),
        pair(turns("a", "b"), "x", "y"),
        pair(turns("a"), "  ", "y"),
        Pair(Source("rows.jsonl", 4), prompt=turns("a"), chosen=answer("x", "y"), rejected=answer("z")),
    ]
    results = renderer.pairs(rows, 1000)
    assert [type(result) for result in results] == [PairTokens, Unusable, Unusable, Unusable]
    assert [result.reason for result in results[1:]] == ["roles", "empty", "roles"]
    assert "roles must take turns" in results[1].detail


def test_a_batch_gives_what_single_rows_give(renderers):
    renderer, _ = renderers["inst"]
    rows = [pair(turns("hi", "a", word), word * 2, word) for word in ("fox", "</s>", "你", "dog ")]
    assert renderer.pairs(rows, 40) == [renderer.pair(row, 40) for row in rows]


def test_system_text_is_put_before_the_first_user_message_and_noted(renderers):
    renderer, _ = renderers["turns"]
    folded = renderer.conversation(system("be kind", "hello"), answer("fox"))
    assert folded == renderer.conversation(turns("be kind\n\nhello"), answer("fox"))
    assert renderer.conversation(system(" ", "hello"), answer("fox")) == renderer.conversation(
        turns("hello"), answer("fox")
    )
    assert "no system role" in renderer.notes[0]


def test_spans_show_every_character_once_and_whole(renderers):
    renderer, fast = renderers["chatml"]
    rendered = renderer.conversation(turns("你好 🦊"), answer("🦊 e\u0301"))
    spans = renderer.spans(rendered)
    assert "".join(text for text, _ in spans) == fast.decode(list(rendered.ids))
    assert [text for text, style in spans if style == "trained"] == ["🦊 e\u0301<|im_end|>"]
    assert {style for _, style in spans} == {"context", "trained", "special"}
    # A border inside a character: its bytes are shown with the stretch in which it ends.
    middle = rendered.trained.index(True) + 1
    moved = Rendered(rendered.ids, tuple(i >= middle for i in range(len(rendered.ids))))
    assert not any("\ufffd" in text for text, _ in renderer.spans(moved))


def test_describe_names_the_stop_tokens_and_the_template(renderers):
    renderer, _ = renderers["phi"]
    assert renderer.describe() == [f"template {renderer.template_sha256[:12]} · stops at </s> <|end|>"]


def test_one_answer_is_rendered_and_shortened_as_an_answer_of_a_pair(renderers):
    renderer, _ = next(iter(renderers.values()))
    prompt = turns("dog", "cat", "fox dog", "lazy", "hello")
    full = pair(prompt, "quick brown fox", "dog")
    whole = renderer.pair(full, 1000)
    assert isinstance(whole, PairTokens)
    (alone,) = renderer.answers([(prompt, (full.chosen,))], 1000)
    assert alone == AnswerTokens((whole.chosen,), 0)
    limit = len(whole.chosen.ids) - 1
    shorter = renderer.pair(full, limit)
    assert isinstance(shorter, PairTokens)
    assert renderer.answers([(prompt, (full.chosen,))], limit) == [
        AnswerTokens((shorter.chosen,), shorter.turns_dropped)
    ]
    (refused,) = renderer.answers([(prompt, (full.chosen,))], limit, drop_turns=False)
    assert isinstance(refused, Unusable)
    assert (refused.reason, "of the answer)" in refused.detail) == ("too_long", True)
