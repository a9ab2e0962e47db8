"""The built-in model: its tokenizer, its template, its sizes, and what it says."""

import json
import random
from itertools import islice
from pathlib import Path

import jinja2
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from lite_align.assets import town, train_tiny, world
from lite_align.assets.train_tiny import BOS, END, PROMPT_WEIGHT, ROLES, SPECIAL, TINY, Encoder

TOKENIZER = AutoTokenizer.from_pretrained(TINY)
turns = st.lists(st.tuples(st.sampled_from(ROLES), st.text(max_size=30)), min_size=1, max_size=5)


def messages(turns: train_tiny.Turns) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def render(turns: train_tiny.Turns, *, generate: bool = False) -> str:
    return TOKENIZER.apply_chat_template(messages(turns), tokenize=False, add_generation_prompt=generate)


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def test_dimensions_are_multiples_of_64_and_there_are_4096_positions():
    config = json.loads((TINY / "config.json").read_text())
    names = ("vocab_size", "hidden_size", "intermediate_size", "head_dim")
    assert all(config[name] % 64 == 0 for name in names)
    assert config["max_position_embeddings"] == 4096
    assert config["architectures"] == ["LlamaForCausalLM"]
    with safe_open(TINY / "model.safetensors", framework="pt") as weights:
        for name in weights.keys():  # noqa: SIM118 (not a dict)
            assert all(size % 64 == 0 for size in weights.get_slice(name).get_shape()), name
            assert weights.get_slice(name).get_dtype() == "BF16"


def test_the_folder_is_small_and_names_no_path():
    files = [path for path in TINY.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8e6
    for path in files:
        if path.suffix != ".safetensors":
            text = path.read_text(encoding="utf-8")
            assert not any(part in text for part in ("/home", "/root", "/tmp", "/work", "/Users", "http")), (
                path.name
            )


def test_it_stops_at_the_end_token_and_pads_with_its_own_token():
    config = json.loads((TINY / "generation_config.json").read_text())
    ids = dict(zip(SPECIAL, TOKENIZER.convert_tokens_to_ids(list(SPECIAL))))
    assert config["eos_token_id"] == ids[END] == TOKENIZER.eos_token_id
    assert config["pad_token_id"] == TOKENIZER.pad_token_id != ids[END]
    assert config["bos_token_id"] == ids[BOS] == TOKENIZER.bos_token_id
    assert sorted(ids.values()) == list(range(len(SPECIAL)))


def test_every_added_token_is_special():
    stored = json.loads((TINY / "tokenizer.json").read_text(encoding="utf-8"))
    assert {token["content"] for token in stored["added_tokens"]} == set(SPECIAL)
    assert all(token["special"] and not token["normalized"] for token in stored["added_tokens"])


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back_unchanged(text):
    assert TOKENIZER.decode(encode(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  two spaces , a comma and a newline\n\n\tand a tab ",
        "你好，世界！这是一个测试。",
        "Grüße, ça va? Привет مرحبا שלום",
        "👩‍👩‍👧 🏳️‍🌈 🇪🇺",
        "".join(map(chr, range(256))),
        "\ufeff\u200b\u202e\x00\x1b[31m",
        "I 'm n't can not . Do not clean me up !",
    ],
)
def test_awkward_text_comes_back_unchanged(text):
    assert TOKENIZER.decode(encode(text)) == text
    assert TOKENIZER.unk_token_id is None


def test_the_text_of_the_world_is_short_in_tokens():
    rng = random.Random(0)
    texts = [world.respond(rng, world.draw(rng)) for _ in range(200)]
    words = sum(len(text.split()) for text in texts)
    assert sum(len(encode(text)) for text in texts) < 1.6 * words


@given(turns, st.text(max_size=40))
@settings(max_examples=100, deadline=None)
def test_a_prompt_is_a_token_prefix_of_the_conversation(prompt, answer):
    whole = encode(render([*prompt, ("assistant", answer)]))
    before = encode(render(prompt, generate=True))
    assert whole[: len(before)] == before
    assert TOKENIZER.decode(whole[len(before) :]) == answer + END


@given(turns)
@settings(max_examples=100, deadline=None)
def test_every_content_is_rendered_unchanged_and_in_order(conversation):
    expected = BOS + "".join(f"<|{role}|>{content}{END}" for role, content in conversation)
    assert render(conversation) == expected


def test_the_template_holds_under_strict_undefined():
    strict = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(TOKENIZER.chat_template)
    assert strict.render(messages=messages([("user", "Hi")])) == f"{BOS}<|user|>Hi{END}"
    with pytest.raises(jinja2.UndefinedError):
        strict.render(messages=[{"role": "user"}])


def test_an_unknown_role_is_refused():
    with pytest.raises(jinja2.TemplateError, match="not narrator"):
        render([("narrator", "Once upon a time.")])


@given(turns)
@settings(max_examples=50, deadline=None)
def test_training_ids_are_those_of_the_template(conversation):
    assert Encoder(TOKENIZER).example(conversation).ids == encode(render(conversation))


def test_only_answers_and_their_end_tokens_weigh_fully():
    example = Encoder(TOKENIZER).example([("user", "Hi!"), ("assistant", "Sure!")])
    answer = [i for i, weight in zip(example.ids, example.weights) if weight == 1]
    assert TOKENIZER.decode(answer) == f"Sure!{END}"
    assert example.weights[0] == 0
    assert set(example.weights[1 : -len(answer)]) == {PROMPT_WEIGHT}


def test_a_long_example_is_one_conversation_over_most_positions():
    example = Encoder(TOKENIZER).long_example(random.Random(0))
    assert example.ids.count(TOKENIZER.bos_token_id) == 1
    assert len(example.ids) == len(example.weights) == len(example.positions)
    assert all(first < second for first, second in zip(example.positions, example.positions[1:]))
    assert 2048 < example.positions[-1] < train_tiny.POSITIONS


def test_training_conversations_hold_no_held_out_question():
    rng = random.Random(0)
    asked = [text for _ in range(400) for role, text in train_tiny.random_conversation(rng) if role == "user"]
    found = [world.find(text) for text in asked if text != town.REVIEW_REQUEST]
    assert len(found) > 400
    assert not any(ask is None or ask.held_out for ask in found)


def test_batches_are_a_function_of_the_seed_and_keep_to_their_budget():
    encoder = Encoder(TOKENIZER)
    first, second = (list(islice(train_tiny.batches(encoder, random.Random(5)), 13)) for _ in range(2))
    assert first == second
    short = [batch for number, batch in enumerate(first) if number != 12]
    assert all(max(len(e.ids) for e in b) * len(b) <= train_tiny.TOKENS_PER_BATCH for b in short)
    assert all(len(example.ids) >= train_tiny.LONG_TOKENS for example in first[12])


def test_the_second_phase_alternates_short_batches_and_one_long_conversation():
    stream = list(islice(train_tiny.stretched(Encoder(TOKENIZER), random.Random(5)), 8))
    for short, long in zip(stream[::2], stream[1::2]):
        assert max(len(e.ids) for e in short) * len(short) <= train_tiny.TOKENS_PER_BATCH
        assert len(long) == 1
        assert train_tiny.LONG_TOKENS <= len(long[0].ids) <= long[0].positions[-1] + 1 <= train_tiny.POSITIONS


def test_the_loss_weighs_tokens_and_ignores_padding():
    model = train_tiny.new_model(TOKENIZER).eval()
    encoder = Encoder(TOKENIZER)
    short = encoder.example([("user", "Hi!"), ("assistant", "Sure!")])
    long = encoder.example([("user", "Where is the park?"), ("assistant", "The park is on Willow Way.")])

    def alone(example: train_tiny.Example) -> tuple[float, float]:
        """Weighted sum of the losses of one row, and its weight."""
        logits = model(input_ids=torch.tensor([example.ids])).logits[0].log_softmax(-1)
        pairs = list(zip(example.ids[1:], example.weights[1:]))
        return sum(-logits[i, token].item() * w for i, (token, w) in enumerate(pairs)), sum(
            w for _, w in pairs
        )

    with torch.no_grad():
        both = train_tiny.loss_of(model, [short, long]).item()
        (a, weight_a), (b, weight_b) = alone(short), alone(long)
    assert both == pytest.approx((a + b) / (weight_a + weight_b), rel=1e-5)


def test_the_tokenizer_is_made_again_as_it_is_stored():
    made = train_tiny.train_tokenizer(random.Random(0))
    assert made.get_vocab() == TOKENIZER.get_vocab()
    assert made.chat_template == TOKENIZER.chat_template


@pytest.mark.slow
def test_training_learns_and_is_a_function_of_the_seed(capsys):
    weights = []
    for _ in range(2):
        torch.manual_seed(0)
        model = train_tiny.new_model(TOKENIZER)
        stream = train_tiny.batches(Encoder(TOKENIZER), random.Random(0))
        train_tiny.train(model, stream, steps=4, learning_rate=1e-3)
        weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    torch.manual_seed(0)
    fresh = train_tiny.new_model(TOKENIZER).state_dict()
    assert all(
        not torch.equal(tensor, fresh[name]) for name, tensor in weights[0].items() if tensor.ndim == 2
    )


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()


def complete(model, conversation: train_tiny.Turns) -> str:
    ids = encode(render(conversation, generate=True))
    with torch.no_grad():
        made = model.generate(
            input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=64, do_sample=False,
        )  # fmt: skip
    answer = made[0, len(ids) :].tolist()
    assert answer[-1] == TOKENIZER.eos_token_id
    return TOKENIZER.decode(answer[:-1])


@pytest.mark.slow
def test_greedy_answers_are_known_sentences_and_mostly_right(model):
    rng = random.Random(4)
    asks = [world.draw(rng, category, held_out=True) for category in town.CATEGORIES for _ in range(5)]
    answers = train_tiny.answer(model, TOKENIZER, [ask.text for ask in asks], temperature=0)
    assert [world.unknown_sentences(text) for text, _ in answers] == [[]] * len(asks)
    assert all(ended for _, ended in answers)
    right = [world.score(ask, text).correct for ask, (text, _) in zip(asks, answers)]
    assert sum(right) / len(right) > 0.6


@pytest.mark.slow
def test_it_follows_system_turns_second_rounds_and_tool_turns(model):
    polite = complete(
        model, [("system", "You are Pip. Be polite and brief."), ("user", "Where is the park?")]
    )
    assert "The park is on Willow Way." in polite
    first_round = [("user", "Hi! Where is the mill?"), ("assistant", "The mill is on Brook Road.")]
    second = complete(model, [*first_round, ("user", "When does the mill close?")])
    assert world.unknown_sentences(second) == []
    looked_up = [
        ("user", "Where is the mill?"),
        ("assistant", town.LOOKUP),
        ("tool", "The mill is on Brook Road."),
    ]
    assert "The mill is on Brook Road." in complete(model, looked_up)


@pytest.mark.slow
def test_it_is_still_itself_at_the_end_of_its_positions(model):
    rng = random.Random(0)
    conversation = train_tiny.conversation(rng)
    while len(encode(render(conversation))) < 3800:
        conversation += train_tiny.conversation(rng)
    question = world.draw(rng, "feeling")
    assert world.unknown_sentences(complete(model, [*conversation, ("user", question.text)])) == []
    foreign = torch.arange(4096).remainder(train_tiny.VOCABULARY)[None]
    with torch.no_grad():
        assert model(input_ids=foreign).logits.isfinite().all()


def test_the_saved_tokenizer_is_of_a_class_that_needs_no_code():
    assert isinstance(TOKENIZER, PreTrainedTokenizerFast)
    assert not list(Path(TINY).glob("*.py"))
