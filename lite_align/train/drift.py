"""What may differ when a run is resumed: every key of the recipe is refused, asked for, or free.

A resumed run must continue the run that was interrupted. Refused are the keys that make it another run (base,
data, loss, shapes, seed, precision) and every content hash; asked for are those that a person may change on
purpose (learning rate, schedule, steps), which are then really applied; free is the cadence of logging and saving.
"""

import difflib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from lite_align.errors import DriftError
from lite_align.train import files

ABSENT = "(absent)"
_SHOWN = 80


@dataclass(frozen=True)
class Change:
    """One key that differs between the stored run and the resumed one."""

    key: str
    old: object
    new: object
    kind: str  # "refuse" | "ask" | "free"

    def __str__(self) -> str:
        return f"{self.key}: {_short(self.old)} → {_short(self.new)}"


def _short(value: object) -> str:
    text = value if value == ABSENT else files.dump_json(value).decode().rstrip("\n")
    assert isinstance(text, str)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def as_stored(value: object) -> object:
    """The value as it reads back from `run.json`: JSON types, secrets redacted."""
    return json.loads(files.dump_json(value))


def leaves(
    values: Mapping[str, object], classes: Mapping[str, str], prefix: str = ""
) -> Iterator[tuple[str, object]]:
    """Yield (dotted key, value); a key named in `classes` is a leaf even if it holds a mapping."""
    for name, value in values.items():
        key = prefix + name
        if isinstance(value, Mapping) and key not in classes:
            yield from leaves(value, classes, f"{key}.")
        else:
            yield key, value


def changes(old: Mapping[str, object], new: Mapping[str, object], classes: Mapping[str, str]) -> list[Change]:
    """The keys whose values differ, sorted; a key without a class is refused.

    Args:
        old: the nested mapping as stored.
        new: the nested mapping of now, with every "auto" resolved; it is compared as it would be stored.
        classes: dotted key -> "refuse" | "ask" | "free".
    """
    before = dict(leaves(old, classes))
    after = {key: as_stored(value) for key, value in leaves(new, classes)}
    return [
        Change(key, before.get(key, ABSENT), after.get(key, ABSENT), classes.get(key, "refuse"))
        for key in sorted(before.keys() | after.keys())
        if before.get(key, ABSENT) != after.get(key, ABSENT)
    ]


def accepted(
    found: Collection[Change], classes: Mapping[str, str], accept: Collection[str] = ()
) -> list[Change]:
    """The changes that the resumed run takes on: free ones, and asked-for ones named in `accept`.

    Raises:
        DriftError: names every change that is refused or not accepted, with old and new value, and every name
            in `accept` that is no key or cannot be accepted.
    """
    refused = [change for change in found if change.kind == "refuse"]
    asked = [change for change in found if change.kind == "ask" and change.key not in accept]
    wrong = [_wrong_name(name, classes) for name in accept if classes.get(name) not in ("ask", "free")]
    if not refused and not asked and not wrong:
        return list(found)
    remedy = []
    if refused:
        remedy.append("Resume with the stored values, or start a new run with another --out.")
    if asked:
        names = " ".join(f"--accept-drift {change.key}" for change in asked)
        remedy.append(f"To continue with the new values on purpose: {names}")
    raise DriftError(
        "The resumed run would not continue the one that was interrupted.",
        details=[*(f"{c} (cannot change)" for c in refused), *(f"{c} (not accepted)" for c in asked), *wrong],
        remedy="\n".join(remedy) or "Leave those names out.",
    )


def _wrong_name(name: str, classes: Mapping[str, str]) -> str:
    if name in classes:
        return f"--accept-drift {name}: this key cannot change in a resumed run"
    near = difflib.get_close_matches(name, [key for key, kind in classes.items() if kind == "ask"], n=1)
    return f"--accept-drift {name}: no such key" + (f"; did you mean {near[0]}?" if near else "")


def version_warnings(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """One line for each library whose version differs from the one the run was started with."""
    return [
        f"{name} {old.get(name, ABSENT)} → {new.get(name, ABSENT)}: the run continues, but it may no longer "
        "equal the uninterrupted one bit by bit"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
