"""The schema as a table of dotted keys (type in words, default, help, drift class), and recipes as YAML text."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from lite_align.recipe.block import Block
from lite_align.recipe.loop import LoopRecipe
from lite_align.recipe.schema import STAGES, Recipe
from lite_align.recipe.yaml import scalar

SCHEMAS: dict[str, type[Recipe | LoopRecipe]] = {**STAGES, "loop": LoopRecipe}
"""What a recipe file can be for."""


@dataclass(frozen=True)
class Key:
    """One setting; `expected` is its type in words, `mapping` says that it takes keys of its own."""

    name: str
    default: object
    expected: str
    help: str
    drift: str
    mapping: bool


@cache
def keys(stage: str) -> dict[str, Key]:
    """List every setting of a stage by its dotted name, in the order of the schema (without `stage`)."""
    found: dict[str, Key] = {}
    for block_name, block_field in SCHEMAS[stage].model_fields.items():
        if block_name == "stage":
            continue
        block = cast(type[Block], block_field.annotation)
        properties = cast(dict[str, dict[str, Any]], block.model_json_schema()["properties"])
        for name, field in block.model_fields.items():
            schema = properties[name]
            dotted = f"{block_name}.{name}"
            found[dotted] = Key(
                name=dotted,
                default=_plain(field.default),
                expected=_words(schema),
                help=cast(str, schema["description"]),
                drift=cast(str, schema["drift"]),
                mapping=schema.get("type") == "object",
            )
    return found


def blocks(stage: str) -> dict[str, str]:
    """Name and one-sentence help of each block of a stage."""
    return {
        name: (cast(type[Block], field.annotation).__doc__ or "").strip()
        for name, field in SCHEMAS[stage].model_fields.items()
        if name != "stage"
    }


def drift_classes(stage: str) -> dict[str, str]:
    """What a resumed run does when a setting changed: `refuse`, `ask` or `free`, by dotted key."""
    return {name: key.drift for name, key in keys(stage).items()}


def to_dict(recipe: Recipe | LoopRecipe) -> dict[str, Any]:
    """The recipe as nested dicts of JSON values."""
    return recipe.model_dump(mode="json")


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested recipe values by dotted key: `{"loss": {"beta": 0.1}}` gives `{"loss.beta": 0.1}`."""
    return {
        f"{block}.{name}": value
        for block, settings in values.items()
        if block != "stage"
        for name, value in settings.items()
    }


def document(stage: str) -> str:
    """A complete recipe with every default, each setting under its help: a YAML text that `load` reads."""
    table = keys(stage)
    defaults = {name: key.default for name, key in table.items()}
    return _yaml(stage, defaults, above=lambda name: comment(table[name]))


def comment(key: Key) -> str:
    """The line that stands above a setting in a commented recipe."""
    return f"# {key.help} ({key.expected})"


def yaml_value(value: object) -> str:
    """One value as YAML that our reader reads back to an equal value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        short = f"{value:g}" if float(f"{value:g}") == value else repr(value)
        return re.sub(r"e([-+])0+(\d)", r"e\1\2", short).replace("e+", "e")
    if isinstance(value, int):
        return str(value)
    if isinstance(value, Mapping):
        pairs = cast(Mapping[str, object], value).items()
        return "{" + ", ".join(f"{yaml_value(name)}: {yaml_value(item)}" for name, item in pairs) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(yaml_value(item) for item in cast(list[object], value)) + "]"
    return _yaml_text(str(value))


def _yaml_text(text: str) -> str:
    if re.fullmatch(r"[A-Za-z_][\w./-]*", text, re.ASCII) and scalar(text) == text:
        return text
    # YAML refuses control characters and folds U+0085, U+2028 and U+2029 even inside quotes.
    unsafe = r"[^\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
    return re.sub(unsafe, lambda found: f"\\u{ord(found[0]):04x}", json.dumps(text, ensure_ascii=False))


def _yaml(
    stage: str,
    values: Mapping[str, object],
    *,
    above: Callable[[str], str] = lambda name: "",
    beside: Callable[[str], str] = lambda name: "",
) -> str:
    lines = [f"stage: {stage}"]
    for block, help_text in blocks(stage).items():
        lines += ["", f"# {help_text}", f"{block}:"]
        for dotted, value in values.items():
            if not dotted.startswith(f"{block}."):
                continue
            if above(dotted):
                lines.append(f"  {above(dotted)}")
            line = f"  {dotted.partition('.')[2]}: {yaml_value(value)}"
            lines.append(f"{line}  # {beside(dotted)}" if beside(dotted) else line)
    return "\n".join(lines) + "\n"


def with_provenance(recipe: Recipe, provenance: Mapping[str, str]) -> str:
    """The recipe as YAML, each value with where it came from as a comment."""
    origin = {name: re.sub(r"[^\x20-\x7e\xa0-\ud7ff]", "?", text) for name, text in provenance.items()}
    return _yaml(recipe.stage, flatten(to_dict(recipe)), beside=lambda name: origin.get(name, ""))


def _plain(value: object) -> object:
    return list(cast(tuple[object, ...], value)) if isinstance(value, tuple) else value


def _words(schema: Mapping[str, Any]) -> str:
    """A JSON schema in words: `{"type": "number", "exclusiveMinimum": 0}` is "a number above 0"."""
    if "anyOf" in schema:
        return _either([_words(part) for part in schema["anyOf"]])
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return _either(list(map(str, schema["enum"])))
    kinds = {"string": "text", "boolean": "true or false", "null": "null"}
    if schema["type"] in kinds:
        return kinds[schema["type"]]
    if schema["type"] == "array":
        return "a list of texts"
    if schema["type"] == "object":
        return "a mapping of names to " + ("numbers" if "number" in str(schema) else "texts")
    bounds = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "up to", "exclusiveMaximum": "below"}
    limits = [f"{word} {yaml_value(schema[name])}" for name, word in bounds.items() if name in schema]
    return " ".join([{"integer": "a whole number", "number": "a number"}[schema["type"]], *limits])


def _either(words: list[str]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))
