"""JSON values as text for a page: harmless, short, with units."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lite_align.evaluate.folder import Record, is_number
from lite_align.evaluate.statistics import percent
from lite_align.view import safe


@dataclass(frozen=True)
class Setting:
    """One value of the recipe and where it came from.

    Attributes:
        key: dotted.
        value: as JSON.
        origin: "default", "auto: …", or what a person gave.
        changed: a person chose it.
        default: nobody chose it and nothing set it.
    """

    key: str
    value: str
    origin: str
    changed: bool
    default: bool


def clean(value: object) -> str:
    """Any JSON value as text without control, bidi or zero-width characters."""
    if isinstance(value, str):
        return safe(value)
    return safe(json.dumps(value, ensure_ascii=False, sort_keys=True))


def text_of(value: object) -> str:
    """The same; nothing for what is not there."""
    return clean(value) if value is not None else ""


def mapping(value: object) -> Mapping[str, Any]:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def together(text: str) -> str:
    """The same text with its percent signs tied to their numbers."""
    return text.replace(" %", "\u00a0%")


def settings(recipe: Record, provenance: Record) -> list[Setting]:
    """Every value of the recipe by dotted key, with where it came from."""
    rows: list[Setting] = []
    for key, value in flat(recipe):
        origin = clean(provenance.get(key, "default"))
        kind = origin.split(":")[0]
        changed = kind not in ("default", "auto")
        rows.append(Setting(clean(key), clean(value), origin, changed, kind == "default"))
    return rows


def facts(block: Record, without: Sequence[str] = ()) -> list[tuple[str, str]]:
    """A block of run.json as label and value."""
    rows = [(key, value) for key, value in flat(block) if key.split(".")[0] not in without]
    return [(clean(key).replace("_", " "), readable(key, value)) for key, value in rows]


def readable(key: str, value: object) -> str:
    """A value for reading: counts with thousands separated, shares in percent, bytes in GiB."""
    if key.startswith("bytes.") and is_number(value):
        return f"{value / 2**30:.2f} GiB"
    if key == "share" and is_number(value):
        return f"{percent(value)} of rows"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return clean(value)


def flat(block: Mapping[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    """Nested mappings as dotted keys, in their order."""
    rows: list[tuple[str, object]] = []
    for key, value in block.items():
        if isinstance(value, Mapping) and value:
            rows += flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows


def command_line(command: object) -> str:
    """The command as it can be typed again."""
    if isinstance(command, list):
        return clean(shlex.join(str(part) for part in command))
    return clean(command) if command else ""
