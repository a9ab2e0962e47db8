"""Read the recipe of a loop: its own blocks, and those of the DPO run of each round; every mistake at once."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lite_align.recipe.keys import blocks
from lite_align.recipe.load import (
    Resolved,
    Values,
    as_mapping,
    folder_name,
    raise_problems,
    read_file,
    take_content,
    take_sets,
    validate,
    wrong_settings,
)
from lite_align.recipe.loop import PEOPLE, LoopRecipe
from lite_align.recipe.schema import DPORecipe

_BY_ROUND = ("data.path", "data.held_out_path", "model.adapter")
"""What each round sets itself."""


@dataclass(frozen=True)
class Loop:
    """A loop, and the training of its rounds.

    Attributes:
        name: of its folder.
        own: the blocks of the loop.
        dpo: the recipe of a round, without its data and its start.
    """

    name: str
    own: Resolved[LoopRecipe]
    dpo: Resolved[DPORecipe]


def is_loop(recipe_file: Path) -> bool:
    """Whether a recipe file is that of a loop; RecipeError if it cannot be read."""
    return "loop" in (as_mapping(read_file(recipe_file).value) or {})


def load_loop(recipe_file: Path, sets: Sequence[str] = ()) -> Loop:
    """Read the recipe of a loop.

    Args:
        recipe_file: YAML.
        sets: `key=value` texts.

    Raises:
        RecipeError: with one line for each mistake.
    """
    document = read_file(recipe_file)
    raise_problems(recipe_file, document)
    ours, theirs = Values("loop"), Values("dpo")
    owners = dict.fromkeys(blocks("dpo"), theirs) | dict.fromkeys(blocks("loop"), ours)
    content = as_mapping(document.value) or {}
    for name, value in content.items():
        if name == "stage" and value == "loop":
            continue
        if name in owners:
            take_content(owners[name], {name: value}, recipe_file, document.lines)
            continue
        near = difflib.get_close_matches(name, owners, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"It has {', '.join(owners)}."
        ours.problems.append(
            (f"{recipe_file}:{document.lines[name]}", f"{name} is not a part of a loop. {hint}")
        )
    for values in (ours, theirs):
        own = [text for text in sets if owners.get(text.partition(".")[0].strip(), ours) is values]
        take_sets(values, own, {})
    theirs.problems += [
        (theirs.place[key], f"{key} is set by every round itself") for key in _BY_ROUND if key in theirs.given
    ]
    loop: LoopRecipe | None = validate(ours)
    dpo: DPORecipe | None = validate(theirs)
    if loop is not None:
        ours.problems += [(ours.place.get(key, str(recipe_file)), text) for key, text in _missing(loop)]
    problems = ours.problems + theirs.problems
    if problems or loop is None or dpo is None:
        raise wrong_settings("", problems)
    name = folder_name(loop.loop.name or recipe_file.stem, recipe_file, "loop.name")
    return Loop(name, Resolved(loop, ours.provenance), Resolved(dpo, theirs.provenance))


def _missing(loop: LoopRecipe) -> Iterator[tuple[str, str]]:
    """What a loop cannot do without, as (key, text)."""
    for key, path in (("sample.prompts", loop.sample.prompts), ("final.prompts", loop.final.prompts)):
        if not path:
            yield key, f"{key} names no file of prompts"
    if loop.judge.by == PEOPLE and loop.final.by in (None, PEOPLE):
        yield (
            "final.by",
            "final.by names no judge for the gate, and people, who label, cannot be waited for there",
        )
    if loop.judge.by != PEOPLE and not loop.judge.humans and not loop.judge.force:
        yield (
            "judge.humans",
            "judge.humans names no votes of people, so nobody knows what the labels are worth; `force: true` there "
            "trains on them all the same",
        )
