"""Several stages in one recipe file: which come first, what each continues, and every mistake before anything runs.

pipeline: town
model: {name: tiny}            # blocks up here hold for every stage that has them
stages:
sft: {data: {path: sft.jsonl}}
reward: {from: sft, data: {path: preferences.jsonl}}
dpo: {from: sft, data: {path: preferences.jsonl}}
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pydantic import Field, ValidationError

from lite_align.recipe.keys import blocks, keys
from lite_align.recipe.load import (
    FLAGS,
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
from lite_align.recipe.schema import STAGES, Block
from lite_align.recipe.yaml import Document, scalar

TRAINS = {"sft": "policy", "reward": "reward", "dpo": "policy", "ppo": "policy"}
"""The role whose adapter each stage leaves behind."""

CONTINUES = {"sft": ("policy",), "reward": ("reward", "policy"), "dpo": ("policy",), "ppo": ("policy",)}
"""The roles whose adapter each stage can start from; the first that is there."""

_OWN = ("pipeline", "seeds", "score", "stages")


class ScoreOptions(Block):
    """What a pipeline is scored on at its end, by the rule of the built-in world."""

    prompts: str = Field(default="", min_length=1, description="File of held-out prompts of that world.")
    samples: int = Field(default=4, gt=0, description="Answers sampled for each prompt.")
    temperature: float = Field(default=1.0, gt=0, description="Of the sampling.")
    max_new_tokens: int = Field(default=96, gt=0, description="Longest answer.")


@dataclass(frozen=True)
class Step:
    """One stage of a pipeline.

    Attributes:
        name: unique in the pipeline, and the name of its run folder.
        start: the earlier step that it continues, a run folder or an adapter folder, or None.
        reward: the earlier step, or the run folder, whose reward model it learns from, or None.
        resolved: its recipe; `model.adapter` is filled when the start is known.
    """

    name: str
    start: str | None
    resolved: Resolved[Any]
    reward: str | None = None

    @property
    def stage(self) -> str:
        """Which stage it is."""
        return str(self.resolved.recipe.stage)


@dataclass(frozen=True)
class Pipeline:
    """Steps in the order in which they run, the seeds that its figures are made with, and what it is scored on."""

    name: str
    steps: tuple[Step, ...]
    seeds: tuple[int, ...] = ()
    score: ScoreOptions | None = None

    def step(self, name: str) -> Step:
        """The step of a name."""
        return next(step for step in self.steps if step.name == name)


@dataclass
class _Draft:
    """A pipeline file while it is read: where it stands, and every mistake as (place, text)."""

    path: Path
    document: Document
    problems: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    def wrong(self, dotted: str, text: str) -> None:
        """Note a mistake at a key."""
        line = self.document.lines.get(dotted)
        self.problems.append((f"{self.path}:{line}" if line else str(self.path), text))


def is_pipeline(recipe_file: Path) -> bool:
    """Whether a recipe file holds several stages; RecipeError if it cannot be read."""
    return "stages" in (as_mapping(read_file(recipe_file).value) or {})


def load_pipeline(
    recipe_file: Path, *, flags: Mapping[str, object] | None = None, sets: Sequence[str] = ()
) -> Pipeline:
    """Read a pipeline and check every stage and every connection; all mistakes are told at once.

    Args:
        recipe_file: YAML.
        flags: values by dotted key for every stage that has the key; None means that the flag was not given.
        sets: `key=value` for every stage that has the key, `step.key=value` for one.

    Raises:
        RecipeError: with one line for each mistake.
    """
    document = read_file(recipe_file)
    raise_problems(recipe_file, document)
    draft = _Draft(recipe_file, document)
    content = as_mapping(document.value) or {}
    entries = as_mapping(content.get("stages")) or {}
    if not entries:
        draft.wrong("stages", "stages names no stage; `sft:` and others with their settings expected")
    shared = {name: value for name, value in content.items() if name not in _OWN}
    known = {block for stage in STAGES for block in blocks(stage)}
    for name in sorted(shared.keys() - known):
        near = difflib.get_close_matches(name, [*_OWN, *known], n=1)
        draft.wrong(
            name, f"{name} is not a part of a pipeline." + (f" Did you mean {near[0]}?" if near else "")
        )
    given = {dotted: value for dotted, value in (flags or {}).items() if value is not None}
    steps: list[Step] = []
    ours = _by_step(draft, entries, sets)
    for name, value in entries.items():
        step = _step(draft, name, value, shared, given, ours.get(name, []), steps)
        if step is not None:
            steps.append(step)
    seeds, score = _seeds(draft, content.get("seeds")), _score(draft, content.get("score"), sets)
    if draft.problems:
        raise wrong_settings("", draft.problems)
    named = content.get("pipeline")
    name = named if isinstance(named, str) and named else recipe_file.stem
    return Pipeline(folder_name(name, recipe_file, "pipeline"), tuple(steps), seeds, score)


def _step(
    draft: _Draft,
    name: str,
    value: object,
    shared: Mapping[str, object],
    flags: Mapping[str, object],
    sets: Sequence[str],
    earlier: Sequence[Step],
) -> Step | None:
    own = dict(as_mapping(value) or {})
    stage = own.pop("stage", name)
    if not isinstance(stage, str) or stage not in STAGES:
        draft.wrong(f"stages.{name}", f"{stage} is not a stage; stage: one of {', '.join(STAGES)} expected")
        return None
    start = own.pop("from", None)
    reward = own.pop("reward", None) if stage == "ppo" else None
    values = Values(stage)
    lines = draft.document.lines
    parts = {block: part for block, part in shared.items() if block in blocks(stage)}
    take_content(values, _with_keys_of(stage, parts), draft.path, lines)
    take_content(values, own, draft.path, lines, below=f"stages.{name}.")
    for dotted, item in flags.items():
        if dotted in keys(stage):
            values.add(dotted, item, origin=FLAGS.get(dotted, "DATA"))
    take_sets(values, sets, {dotted: FLAGS.get(dotted, "DATA") for dotted in flags})
    recipe = validate(values)
    draft.problems += values.problems
    if recipe is None or values.problems:
        return None
    named = [value if isinstance(value, str) else None for value in (start, reward)]
    step = Step(name, named[0], Resolved(recipe, values.provenance), named[1])
    if start is not None:
        _connect(draft, step, start, earlier)
    if reward is not None:
        _connect_reward(draft, step, reward, earlier)
    if not recipe.data.path:
        draft.wrong(f"stages.{name}", f"{name} names no data; set its data.path")
    return step


def _with_keys_of(stage: str, parts: Mapping[str, object]) -> dict[str, object]:
    """Shared blocks without the settings that this stage does not have but another one has."""
    elsewhere = {dotted for other in STAGES for dotted in keys(other)} - keys(stage).keys()
    found: dict[str, object] = {}
    for block, part in parts.items():
        nested = as_mapping(part)
        found[block] = (
            part if nested is None else {k: v for k, v in nested.items() if f"{block}.{k}" not in elsewhere}
        )
    return found


def _earlier(draft: _Draft, place: str, text: str, named: object, earlier: Sequence[Step]) -> Step | None:
    """The earlier step of a name; None, with a mistake noted where it is no folder either."""
    found = next((other for other in earlier if other.name == named), None)
    if found is None and (not isinstance(named, str) or not Path(named).is_dir()):
        names = ", ".join(other.name for other in earlier)
        known = f"; earlier stages: {names}" if names else "; no stage comes before it"
        draft.wrong(place, f"{text} {named}, which is neither an earlier stage nor a folder{known}")
    return found


def _connect_reward(draft: _Draft, step: Step, reward: object, earlier: Sequence[Step]) -> None:
    """Note where a step cannot learn from what its `reward` names."""
    place = f"stages.{step.name}.reward"
    if step.resolved.recipe.ppo.reward is not None:
        draft.wrong(place, f"{step.name} has both reward and ppo.reward; give one of them")
    found = _earlier(draft, place, f"{step.name} learns from", reward, earlier)
    if found is not None and TRAINS[found.stage] != "reward":
        draft.wrong(
            place, f"{step.name} cannot learn from {found.name}: a {found.stage} run scores no answers"
        )


def _connect(draft: _Draft, step: Step, start: object, earlier: Sequence[Step]) -> None:
    """Note where a step cannot continue what its `from` names."""
    place = f"stages.{step.name}.from"
    if step.resolved.recipe.model.adapter is not None:
        draft.wrong(place, f"{step.name} has both from and model.adapter; give one of them")
    parent = _earlier(draft, place, f"{step.name} continues", start, earlier)
    if parent is None:
        return
    role = TRAINS[parent.stage]
    if role not in CONTINUES[step.stage]:
        draft.wrong(
            place,
            f"{step.name} cannot continue {parent.name}: a {parent.stage} run leaves a {role} adapter, and "
            f"{step.stage} starts from a {' or '.join(CONTINUES[step.stage])} adapter",
        )
    ours, theirs = (s.resolved.recipe.model.name for s in (step, parent))
    if "auto" not in (ours, theirs) and ours != theirs:
        draft.wrong(
            place, f"{step.name} has the base {ours}, and {parent.name}, which it continues, {theirs}"
        )


def _by_step(draft: _Draft, entries: Mapping[str, object], sets: Sequence[str]) -> dict[str, list[str]]:
    """`--set` texts by step: `sft.train.epochs=1` is for one, `train.epochs=1` for all that have the key."""
    stages = {name: (as_mapping(value) or {}).get("stage", name) for name, value in entries.items()}
    found: dict[str, list[str]] = {name: [] for name in entries}
    for text in sets:
        first, _, rest = text.partition(".")
        dotted = text.partition("=")[0].strip()
        if first == "score":
            continue
        if first in entries and "." in rest.partition("=")[0]:
            found[first].append(rest)
            continue
        having = [name for name, stage in stages.items() if stage in STAGES and _has(str(stage), dotted)]
        if not having:
            draft.problems.append(("", f"--set {text}: no stage of this pipeline has the setting {dotted}"))
        for name in having:
            found[name].append(text)
    return found


def _has(stage: str, dotted: str) -> bool:
    table = keys(stage)
    parent = dotted.rpartition(".")[0]
    return dotted in table or (parent in table and table[parent].mapping)


def _seeds(draft: _Draft, value: object) -> tuple[int, ...]:
    if value is None:
        return ()
    found = cast(list[object], value) if isinstance(value, list) else []
    seeds = [seed for seed in found if isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0]
    if found and len(seeds) == len(found):
        return tuple(seeds)
    draft.wrong("seeds", "seeds is not a list of whole numbers from 0")
    return ()


def _score(draft: _Draft, value: object, sets: Sequence[str]) -> ScoreOptions | None:
    if value is None:
        return None
    given = dict(as_mapping(value) or {})
    for text in sets:
        dotted, _, raw = text.partition("=")
        if dotted.startswith("score."):
            given[dotted.removeprefix("score.")] = scalar(raw)
    try:
        return ScoreOptions.model_validate(given)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            name = str(detail["loc"][0])
            near = (
                ""
                if name in ScoreOptions.model_fields
                else f"; it has {', '.join(ScoreOptions.model_fields)}"
            )
            draft.wrong(f"score.{name}", f"score.{name}: {detail['msg']}{near}")
        return None
