import subprocess
import sys
import time

import pytest

from lite_align.data import template as module
from lite_align.data.template import (
    PLAIN,
    ChatTemplate,
    Point,
    Refused,
    Slot,
    Structure,
    dissect,
    fold_system,
)
from lite_align.data.types import Message
from lite_align.errors import ModelError
from tests.data import families

USER, ASSISTANT = ("user", PLAIN), ("assistant", PLAIN)
PLAIN_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"


def chat_template(source: str, *, trusted: bool = True) -> ChatTemplate:
    return ChatTemplate(families.byte_level(source, ["<|im_start|>"], []), None, trusted=trusted)


@pytest.mark.parametrize(
    ("role", "content", "shape", "texts"),
    [
        ("user", "Hi", (None,), ("Hi",)),
        ("user", " Hi\n", (" ", None, "\n"), ("Hi",)),
        ("user", "", (), ()),
        ("user", " \n", (" \n",), ()),
        ("user", "<think>a</think>b", (None,), ("<think>a</think>b",)),
        ("assistant", "<think>\na\n</think>\n\nb", ("<think>\n", None, "\n</think>\n\n", None), ("a", "b")),
        ("assistant", "<think>\n</think>b ", ("<think>\n</think>", None, " "), ("b",)),
    ],
)
def test_a_content_is_dissected_into_literals_and_slots(role, content, shape, texts):
    assert dissect(Message(role, content)) == (shape, texts)
    rest = iter(texts)
    assert "".join(next(rest) if part is None else part for part in shape) == content


def test_structure_is_what_the_template_writes_around_the_contents():
    structure = chat_template(PLAIN_TEMPLATE).structure((USER, ASSISTANT))
    assert structure.slots == (Slot(0, 0), Slot(1, 0))
    assert structure.literals == ("<|im_start|>user: ", "<|im_end|><|im_start|>assistant: ", "<|im_end|>")


def test_a_prefix_ends_at_a_point_or_is_none():
    whole = Structure(("a", "bc", "d"), (Slot(0, 0), Slot(1, 0)))
    assert whole.after(Structure(("a", "b"), (Slot(0, 0),))) == Point(1, 1)
    assert whole.after(Structure(("a", "x"), (Slot(0, 0),))) is None
    assert whole.after(Structure(("a", "b"), (Slot(1, 0),))) is None


def test_structures_are_remembered_and_so_are_refusals(monkeypatch):
    template = chat_template(families.template("turns"))
    template.structure((USER, ASSISTANT))
    with pytest.raises(Refused, match="take turns"):
        template.structure((USER, USER))
    monkeypatch.setattr(template, "render", None)
    template.structure((USER, ASSISTANT))
    with pytest.raises(Refused, match="take turns"):
        template.structure((USER, USER))


def test_a_system_text_is_folded_into_the_first_user_turn_only():
    system, user, reply = Message("system", "s"), Message("user", "u"), Message("assistant", "a")
    assert fold_system((system, user, reply)) == (Message("user", "s\n\nu"), reply)
    assert fold_system((Message("system", " "), user)) == (user,)
    for odd in ((system, reply), (system,)):
        with pytest.raises(Refused, match="no user turn"):
            fold_system(odd)


def test_the_system_text_may_stand_in_a_later_turn():
    source = (
        "{% for m in messages %}{% if m.role != 'system' %}<|im_start|>"
        "{{ messages[0].content if loop.last and messages[0].role == 'system' }}{{ m.content }}{% endif %}{% endfor %}"
    )
    template = chat_template(source)
    assert not template.folds_system
    order = template.structure((("system", PLAIN), USER, ASSISTANT)).slots
    assert order == (Slot(1, 0), Slot(0, 0), Slot(2, 0))


def test_the_date_is_pinned_in_every_format_and_noted():
    source = "{{ strftime_now('%Y-%m-%d') }} {{ strftime_now(\"%d %b %Y\") }} {{ strftime_now(bos_token) }}"
    template = chat_template(source + PLAIN_TEMPLATE)
    text = template.render([{"role": "user", "content": "x"}])
    assert text.startswith("2025-01-01 01 Jan 2025 01 Jan 2025<")
    assert "pinned" in template.notes[0]


def test_the_hash_is_that_of_the_source_without_our_prelude():
    known = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"  # sha256 of "foo"
    assert module.hashlib.sha256(b"foo").hexdigest() == known
    dated = chat_template("{{ strftime_now('%Y') }}" + PLAIN_TEMPLATE)
    assert dated.sha256 == module.hashlib.sha256(dated.source.encode()).hexdigest()


HOSTILE = {
    "a loop that never ends": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a giant power": "{{ (9 ** (9 ** messages[0].content|length))|string|length }}",
    "a string of 600 MB": "{{ (messages[0].content * 80000000)|length }}",
    "a long output": "{{ messages[0].content * 200000 }}",
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_template_that_takes_too_much_is_stopped_in_the_child(source, monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 1)
    started = time.monotonic()
    with pytest.raises(ModelError, match="S5: the chat template exceeds its limits"):
        chat_template(source + PLAIN_TEMPLATE, trusted=False)
    assert time.monotonic() - started < 15


def test_source_of_a_megabyte_is_not_even_tried():
    with pytest.raises(ModelError, match="S5: the chat template has 1,"):
        chat_template(PLAIN_TEMPLATE + "{# " + "x" * 1_000_000 + " #}", trusted=False)


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{% set _ = messages.append({'role': 'user', 'content': 'x'}) %}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_an_escape_from_the_sandbox_is_refused(attack):
    with pytest.raises(ModelError, match="cannot write a user turn"):
        chat_template(attack + PLAIN_TEMPLATE, trusted=False)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_ordinary_templates_pass_the_child(family):
    assert ChatTemplate(families.tokenizer(family), None, trusted=False).sha256


def test_a_trusted_template_starts_no_child(monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    chat_template(PLAIN_TEMPLATE)


def test_the_child_imports_jinja_alone():
    code = (
        "import sys, jinja2.sandbox, jinja2.ext; print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["False", "False"]
    imports = [line for line in module._CHILD.splitlines() if line.lstrip().startswith("import ")]
    assert imports == ["import json, sys", "import jinja2, jinja2.ext, jinja2.sandbox", "    import resource"]
