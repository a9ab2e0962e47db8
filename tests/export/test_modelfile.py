"""The Go template writes what the chat template writes: nine families, several conversations, and what is refused."""

import json
import re

import pytest

from lite_align.data.template import ChatTemplate
from lite_align.errors import UserError
from lite_align.export import modelfile
from tests.conftest import make_tokenizer
from tests.data import families
from tests.export import go


def turns(*texts: str, system: str = "") -> list[dict[str, str]]:
    roles = ("user", "assistant") * len(texts)
    spoken = [{"role": role, "content": text} for role, text in zip(roles, texts)]
    return [{"role": "system", "content": system}, *spoken] if system else spoken


CONVERSATIONS = [
    turns("Hi"),
    turns("Hi", "Hello.", "And?"),
    turns("a\n\nb", "{{ .System }} }} {{", 'say "x"', '"""', "füße 東京 🙂"),
    turns("Hi", system="Be kind."),
    turns("Hi", "Hello.", "And?", "So.", "Then?", "Ah.", "Why?", system="Two\nlines"),
]


def written(tokenizer, base, generation=None) -> tuple[str, str, tuple[str, ...]]:
    """The whole Modelfile, the template in it, and the notes."""
    text, notes = modelfile.write(
        ChatTemplate(tokenizer, None, trusted=True), tokenizer, {2}, generation or {}, base
    )
    match = re.search(r'^TEMPLATE """(.*?)"""$', text, re.DOTALL | re.MULTILINE)
    assert match is not None
    return text, match[1], notes


def expected(template: ChatTemplate, messages: list[dict[str, str]]) -> str:
    if template.folds_system and messages[0]["role"] == "system":
        system, user, *rest = messages
        messages = [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *rest]
    return template.render(messages, generation=True)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_it_writes_what_the_chat_template_writes(family, tmp_path):
    tokenizer = families.tokenizer(family)
    template = ChatTemplate(tokenizer, None, trusted=True)
    _, source, _ = written(tokenizer, tmp_path)
    for messages in CONVERSATIONS:
        assert go.render(source, messages) == expected(template, messages)


def test_the_built_in_model(tmp_path):
    from lite_align.model.load import load_tokenizer
    from lite_align.recipe import ModelOptions

    tokenizer = load_tokenizer(ModelOptions(name="tiny"))
    _, source, notes = written(tokenizer, tmp_path)
    for messages in CONVERSATIONS:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert go.render(source, messages) == text
    assert notes == ()


def test_an_answer_at_the_end_is_left_open(tmp_path):
    _, source, _ = written(families.tokenizer("chatml"), tmp_path)
    rendered = go.render(source, turns("Hi", "Hel"))
    assert rendered == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHel"


def test_bos_is_left_to_ollama_where_it_writes_one(tmp_path):
    tokenizer = families.tokenizer("turns")
    assert go.render(written(tokenizer, tmp_path)[1], turns("Hi")).startswith("<s><start_of_turn>")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True}))
    source = written(tokenizer, tmp_path)[1]
    assert go.render(source, turns("Hi")).startswith("<start_of_turn>")
    assert go.render(source, turns("Hi", system="Be kind.")).startswith("<start_of_turn>")


def test_where_ollama_differs_is_told(tmp_path):
    assert "trims" in " ".join(written(families.tokenizer("turns"), tmp_path)[2])
    assert "reasoning" in " ".join(written(families.tokenizer("thinking"), tmp_path)[2])
    assert "date" in " ".join(written(families.tokenizer("headers"), tmp_path)[2])
    assert written(families.tokenizer("chatml"), tmp_path)[2] == ()


def test_text_that_go_would_read_as_its_own(tmp_path):
    odd = '{{ \'{{x}} """ {\' }}'
    source = (
        f"{{% for m in messages %}}{odd}{{{{ m['role'] }}}}\x01: {{{{ m['content'] }}}}</s>{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{odd}assistant\x01: {{% endif %}}"
    )
    tokenizer = make_tokenizer(source)
    template = ChatTemplate(tokenizer, None, trusted=True)
    _, found, _ = written(tokenizer, tmp_path)
    assert '"""' not in found
    for messages in CONVERSATIONS:
        assert go.render(found, messages) == expected(template, messages)


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ("{{ loop.index }}{{ m['role'] }}: {{ m['content'] }}</s>", "depends on the place"),
        (
            "{% if m['role'] != 'system' %}{{ m['role'] }}: "
            "{% if loop.last and messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% endif %}"
            "{{ m['content'] }}</s>{% endif %}",
            "does not stand at the beginning",
        ),
    ],
)
def test_a_template_that_looks_at_places_is_refused(turn, reason):
    source = f"{{% for m in messages %}}{turn}{{% endfor %}}{{% if add_generation_prompt %}}assistant: {{% endif %}}"
    template = ChatTemplate(make_tokenizer(source), None, trusted=True)
    with pytest.raises(UserError, match=reason):
        modelfile.turns(template)


def test_stops_and_sampling_defaults(tmp_path):
    text, _, _ = written(
        families.tokenizer("chatml"),
        tmp_path,
        {"temperature": 0.7, "repetition_penalty": 1.05, "do_sample": True},
    )
    assert text.startswith("FROM .\n")
    assert text.splitlines()[-3:] == [
        'PARAMETER stop "</s>"',
        "PARAMETER temperature 0.7",
        "PARAMETER repeat_penalty 1.05",
    ]
