"""Ollama's Modelfile: the chat template as a Go template, the stop tokens, and the base's sampling defaults.

A chat template is a program; what it writes between the turns of an ordinary conversation is found by rendering it
(`data.template`). If that text depends on nothing but the kinds of the two turns it stands between, it can be written
as a Go template. Ollama joins turns of the same role and hands over system texts as `.System`.
Source: Ollama's docs/modelfile.md and docs/template.md.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from lite_align.data.template import PLAIN, ChatTemplate, Refused, Shape
from lite_align.errors import UserError

ROUNDS = 3  # of the longest conversation that is tried
_PARAMETERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "repetition_penalty": "repeat_penalty",
}
"""Sampling settings of a generation config and their names in a Modelfile."""


@dataclass(frozen=True)
class Turns:
    """What a template writes around contents: begin U (answer A user U)* generate, and with a system text
    system[0] S system[1] U …

    `notes` says where Ollama will differ from the chat template on unusual contents.
    """

    begin: str
    system: tuple[str, str]
    answer: str
    user: str
    generate: str
    notes: tuple[str, ...] = ()


def turns(template: ChatTemplate) -> Turns:
    """Find the text around contents.

    Raises:
        UserError: it depends on more than the kinds of the turns, so no Go template of this form writes it.
    """
    found: dict[str, set[str]] = {}
    for with_system in (False,) if template.folds_system else (False, True):
        for rounds in range(1, ROUNDS + 1):
            for place, text in _literals(template, with_system, rounds):
                found.setdefault(place, set()).add(text)
    unsteady = sorted(place for place, texts in found.items() if len(texts) > 1)
    if unsteady:
        raise _not_exact(f"what stands {' and '.join(unsteady)} depends on the place in the conversation")
    one = {place: next(iter(texts)) for place, texts in found.items()}
    begin = one["before the first question"]
    # Without a system role, system text goes before the first question, as `data.template.fold_system` puts it.
    system = (
        (begin, "\n\n")
        if template.folds_system
        else (one["before the system text"], one["after the system text"])
    )
    return Turns(
        begin,
        system,
        one.get("between question and answer", ""),
        one.get("between answer and question", ""),
        one["after the last question"],
        tuple(_notes(template, begin)),
    )


def _literals(template: ChatTemplate, with_system: bool, rounds: int) -> list[tuple[str, str]]:
    """Each literal of a plain conversation with the place it stands at."""
    system: Shape = (("system", PLAIN),) if with_system else ()
    pair: Shape = (("user", PLAIN), ("assistant", PLAIN))
    shape: Shape = (*system, *(pair * rounds)[:-1])
    try:
        structure = template.structure(shape, generation=True)
    except Refused as refusal:
        raise _not_exact(refusal.detail) from refusal
    order = [slot.message for slot in structure.slots]
    if order != list(range(len(shape))):
        raise _not_exact("the system text does not stand at the beginning")
    places = (
        ["before the system text", "after the system text"] if with_system else ["before the first question"]
    )
    places += ["between question and answer", "between answer and question"] * (rounds - 1)
    places.append("after the last question")
    return list(zip(places, structure.literals, strict=True))


def _not_exact(reason: str) -> UserError:
    return UserError(
        f"The chat template cannot be written as a Go template for Ollama: {reason}.",
        remedy="Use --to merged or gguf; llama.cpp renders the chat template itself.",
    )


def _notes(template: ChatTemplate, begin: str) -> list[str]:
    """Contents on which Ollama writes something else than the chat template."""
    notes = [note for note in template.notes if "date" in note]
    try:
        spaced = template.structure((("user", (" ", None, " ")),), generation=True)
    except Refused:
        spaced = None
    if spaced is not None and spaced.literals[0] != f"{begin} ":
        notes.append(
            "The chat template trims white space around messages; Ollama hands them over as they are."
        )
    thought: Shape = (
        ("user", PLAIN),
        ("assistant", ("<think>\n", None, "\n</think>\n\n", None)),
        ("user", PLAIN),
    )
    try:
        drops = bool(template.structure(thought, generation=True).dropped)
    except Refused:
        drops = False
    if drops:
        notes.append("The chat template leaves reasoning out of earlier answers; Ollama hands it over.")
    return notes


def go_template(parts: Turns) -> str:
    """The turns as a Go template over `.System` and `.Messages`; an answer at the end is left open."""
    last = "{{ $last := eq (len (slice $.Messages $i)) 1 }}"
    after_user = _choice(parts.generate, parts.answer)
    user = '{{ if eq .Role "user" }}{{ .Content }}' + after_user
    answer = '{{ else if eq .Role "assistant" }}{{ .Content }}' + _unless_last(parts.user)
    start = (
        "{{ if .System }}"
        + _go(parts.system[0])
        + "{{ .System }}"
        + _go(parts.system[1])
        + "{{ else }}"
        + _go(parts.begin)
        + "{{ end }}"
    )
    return start + "{{ range $i, $_ := .Messages }}" + last + user + answer + "{{ end }}{{ end }}"


def _choice(if_last: str, otherwise: str) -> str:
    if if_last == otherwise:
        return _go(if_last)
    return "{{ if $last }}" + _go(if_last) + "{{ else }}" + _go(otherwise) + "{{ end }}"


def _unless_last(text: str) -> str:
    return "{{ if not $last }}" + _go(text) + "{{ end }}"


def _go(text: str) -> str:
    """Text inside a Go template inside three quotes: as it is, or as a constant where it would be read otherwise."""
    plain = all(character.isprintable() or character in "\n\t" for character in text)
    if plain and "{{" not in text and '"""' not in text and not text.endswith("{"):
        return text
    return "{{ " + json.dumps(text, ensure_ascii=False) + " }}"


def write(
    template: ChatTemplate,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Collection[int],
    generation: Mapping[str, Any],
    base: Path,
) -> tuple[str, tuple[str, ...]]:
    """The Modelfile for a merged folder, and notes on where it differs from the chat template.

    Args:
        template: of the run.
        tokenizer: of the run.
        stop_ids: tokens that end an answer.
        generation: the base's generation config.
        base: folder of the base; its tokenizer_config.json decides whether Ollama writes a BOS by itself.

    Raises:
        UserError: the template cannot be written as a Go template.
    """
    parts = turns(template)
    bos = tokenizer.bos_token
    if isinstance(bos, str) and _adds_bos(base):
        begin, system = parts.begin.removeprefix(bos), parts.system[0].removeprefix(bos)
        parts = Turns(begin, (system, parts.system[1]), parts.answer, parts.user, parts.generate, parts.notes)
    stops = [str(tokenizer.convert_ids_to_tokens(token)) for token in sorted(stop_ids)]
    lines = ["FROM .", f'TEMPLATE """{go_template(parts)}"""']
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in stops]
    lines += [
        f"PARAMETER {name} {generation[key]}"
        for key, name in _PARAMETERS.items()
        if isinstance(generation.get(key), int | float)
    ]
    return "\n".join(lines) + "\n", parts.notes


def _quoted(text: str) -> str:
    return f'"""{text}"""' if '"' in text else f'"{text}"'


def _adds_bos(base: Path) -> bool:
    """Whether Ollama puts BOS before every prompt: what its converter reads from tokenizer_config.json."""
    file = base / "tokenizer_config.json"
    return file.is_file() and json.loads(file.read_text(encoding="utf-8")).get("add_bos_token") is True
