"""Where a run comes from: its parents and theirs, as far as their folders are still there."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lite_align.evaluate.folder import Record, RunFolder
from lite_align.evaluate.pages.texts import clean, mapping, text_of

MOST_GENERATIONS = 20  # a record that was edited could go round in a circle


@dataclass(frozen=True)
class Ancestor:
    """A run, adapter or base in the tree.

    Attributes:
        name: of the run, or of the base.
        what: "sft", "base", "adapter".
        note: what identifies it, and what became of it.
        parents: what it started from.
    """

    name: str
    what: str
    note: str
    parents: list["Ancestor"] = field(default_factory=list["Ancestor"])


def tree(folder: RunFolder) -> Ancestor:
    """The run itself, with everything that it came from."""
    return _of_record(clean(folder.path.resolve().name), folder.path, folder.run, "this run", 0)


def _of_record(name: str, path: Path, record: Record, note: str, generation: int) -> Ancestor:
    what = clean(record.get("stage") or "run")
    parents = record.get("parents")
    given = parents if isinstance(parents, list) and generation < MOST_GENERATIONS else []
    found = [_parent(path, facts, generation + 1) for facts in [*given, *_reward(record)]]
    return Ancestor(name, what, note, found or [_base(record)])


def _base(record: Record) -> Ancestor:
    model, hashes = mapping(record.get("model")), mapping(record.get("hashes"))
    identity = text_of(hashes.get("base"))[:12]
    return Ancestor(clean(model.get("name") or "the base"), "base", f"sha {identity}" if identity else "")


def _reward(record: Record) -> list[Record]:
    """The reward run of a policy, in the form of a parent; none where rules or functions score."""
    run = mapping(mapping(record.get("recipe")).get("ppo")).get("reward")
    adapter = mapping(record.get("hashes")).get("reward")
    return [{"run": run, "stage": "reward", "adapter": adapter}] if run and adapter else []


def _parent(child: Path, facts: object, generation: int) -> Ancestor:
    block = mapping(facts)
    if not block:
        return Ancestor(clean(facts), "", "")
    name, adapter = str(block.get("run") or ""), str(block.get("adapter") or "")
    note = f"adapter {clean(adapter[:12])}"
    if not block.get("stage"):
        return Ancestor(clean(name), "adapter", note)
    for path in _places(child, name):
        record = _record(path)
        if adapter in mapping(record.get("adapters")).values():
            word = text_of(mapping(record.get("verdict")).get("word"))
            told = f"{note} · {word}" if word else note
            return _of_record(clean(name), path, record, told, generation)
    return Ancestor(clean(name), clean(block.get("stage")), f"{note} · its folder is not here any more")


def _places(child: Path, name: str) -> Iterator[Path]:
    """Where the folder of a parent may be: where it was, beside its child, or beside the child's pipeline."""
    given = Path(name)
    yield given
    beside = child.resolve().parent
    yield beside / given.name
    yield beside.parent / given.name
    yield beside.parent / given.parent.name / given.name


def _record(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return mapping(found)
