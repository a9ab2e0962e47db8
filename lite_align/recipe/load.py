"""Recipe file, flags and `--set` into one validated recipe, with the origin of every value."""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from pydantic import ValidationError

from lite_align.errors import RecipeError
from lite_align.recipe.keys import SCHEMAS, blocks, flatten, keys, to_dict, with_provenance, yaml_value
from lite_align.recipe.loop import LoopRecipe
from lite_align.recipe.schema import STAGES, Recipe
from lite_align.recipe.secrets import holds_secret
from lite_align.recipe.yaml import MAX_BYTES, Document, read, scalar

FLAGS = {
    "model.name": "--model",
    "model.adapter": "--from",
    "train.seed": "--seed",
    "data.format": "--format",
    "data.map": "--map",
    "ppo.reward": "--reward",
    "ppo.reward_fn": "--reward-fn",
    "ppo.force": "--force",
}
"""Settings that have a flag of their own, by dotted key."""

_OTHER_NAMES = {
    "lr": "train.learning_rate",
    "num_train_epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "per_device_train_batch_size": "train.batch_size",
    "gradient_accumulation_steps": "train.batch_size",
    "micro_batch_size": "train.tokens_per_microbatch",
    "lr_scheduler_type": "train.schedule",
    "warmup_ratio": "train.warmup",
    "r": "lora.rank",
    "lora_r": "lora.rank",
    "lora_alpha": "lora.alpha",
    "target_modules": "lora.targets",
    "model_name_or_path": "model.name",
    "base_model": "model.name",
    "load_in_4bit": "model.quantization",
    "loss_type": "loss.name",
    "rpo_alpha": "loss.sft_weight",
    "max_seq_length": "data.max_length",
    "init_kl_coef": "ppo.kl",
}

AnyRecipe = TypeVar("AnyRecipe", bound=Recipe | LoopRecipe, covariant=True)


@dataclass(frozen=True)
class Resolved(Generic[AnyRecipe]):
    """A recipe and where each value came from.

    `provenance` maps each dotted key to `default`, `recipe dpo.yaml:12`, `DATA`, `--set`, `--model` (or
    another flag) or `auto: reason`.
    """

    recipe: AnyRecipe
    provenance: dict[str, str]


@dataclass
class Values:
    """What was given so far, and every mistake (place, text)."""

    stage: str
    given: dict[str, object] = field(default_factory=dict[str, object])
    origin: dict[str, str] = field(default_factory=dict[str, str])
    place: dict[str, str] = field(default_factory=dict[str, str])
    problems: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    @property
    def provenance(self) -> dict[str, str]:
        """Where the value of every setting comes from."""
        return {dotted: self.origin.get(dotted, "default") for dotted in keys(self.stage)}

    def add(self, dotted: str, value: object, *, origin: str, place: str = "") -> None:
        """Take a value for a dotted key, or note why not."""
        table = keys(self.stage)
        parent, _, own = dotted.rpartition(".")
        if isinstance(value, str) and holds_secret(value):
            text = f"{dotted} looks like an access token or a password; it would be stored with the run"
            self.problems.append((place, f"{text}. Use `hf auth login` or the variable HF_TOKEN"))
        elif dotted in table:
            self._keep(dotted, value, origin, place)
        elif parent in table and table[parent].mapping:
            merged = {**cast(dict[str, object], self.given.get(parent, {})), own: value}
            self._keep(parent, merged, origin, place)
        elif dotted in blocks(self.stage):
            example = next(name for name in table if name.startswith(f"{dotted}."))
            self.problems.append((place, f"{dotted} is a group of settings, such as {example}, not a value"))
        else:
            guess = nearest(self.stage, dotted)
            hint = f" Did you mean {guess}?" if guess else ""
            self.problems.append((place, f"{dotted} is not a setting of {self.stage}.{hint}"))

    def _keep(self, dotted: str, value: object, origin: str, place: str) -> None:
        self.given[dotted] = value
        self.origin[dotted] = origin
        self.place[dotted] = place


def load(
    stage: str,
    *,
    data: str | None = None,
    recipe_file: Path | None = None,
    flags: Mapping[str, object] | None = None,
    sets: Sequence[str] = (),
) -> Resolved[Any]:
    """Resolve defaults < recipe file < DATA, flags and `--set`, and report all mistakes at once.

    Args:
        stage: a key of `STAGES`.
        data: the argument DATA, becomes `data.path`.
        recipe_file: a YAML recipe of the same stage.
        flags: values by dotted key (see `FLAGS`); None means that the flag was not given.
        sets: `key=value` texts.

    Raises:
        RecipeError: unknown keys, values that do not fit, broken YAML; one line for each mistake.
    """
    values = Values(stage)
    if recipe_file is not None:
        _take_file(values, recipe_file)
    given = {"data.path": data, **(flags or {})}
    direct = {dotted: value for dotted, value in given.items() if value is not None}
    for dotted, value in direct.items():
        values.add(dotted, value, origin=FLAGS.get(dotted, "DATA"))
    take_sets(values, sets, {dotted: FLAGS.get(dotted, "DATA") for dotted in direct})
    recipe = validate(values)
    if recipe is None or values.problems:
        raise wrong_settings(stage, values.problems)
    return Resolved(recipe, values.provenance)


def from_dict(values: Mapping[str, Any]) -> Recipe:
    """The recipe that `to_dict` wrote, for example from a run.json.

    Raises:
        RecipeError: this version has other settings.
    """
    stage = str(values.get("stage"))
    if stage not in STAGES:
        raise RecipeError(f"{stage} is not a stage", remedy=f"The stages are {', '.join(STAGES)}.")
    collected = Values(stage)
    for dotted, value in flatten(values).items():
        collected.add(dotted, value, origin="")
    recipe = validate(collected)
    if recipe is None or collected.problems:
        raise wrong_settings(stage, collected.problems)
    return recipe


def stage_of(recipe_file: Path) -> str:
    """The stage that a recipe file is for.

    Raises:
        RecipeError: the file cannot be read or names no known stage.
    """
    document = read_file(recipe_file)
    raise_problems(recipe_file, document)
    stage = (as_mapping(document.value) or {}).get("stage")
    if not isinstance(stage, str) or stage not in STAGES:
        what = f"{recipe_file} names no stage" if stage is None else f"{recipe_file}: {stage} is not a stage"
        raise RecipeError(what, remedy=f"Its first line should be one of: stage: {', '.join(STAGES)}.")
    return stage


def resolve_auto(resolved: Resolved[AnyRecipe], key: str, value: object, reason: str) -> Resolved[AnyRecipe]:
    """Fill a setting that is still `auto`; a value that a person chose stays as it is."""
    nested = to_dict(resolved.recipe)
    block, _, name = key.partition(".")
    if nested[block][name] != "auto":
        return resolved
    nested[block][name] = value
    recipe = cast(AnyRecipe, type(resolved.recipe).model_validate(nested))
    return replace(resolved, recipe=recipe, provenance={**resolved.provenance, key: f"auto: {reason}"})


def fill_options(
    resolved: Resolved[AnyRecipe], key: str, values: Mapping[str, object], reason: str
) -> Resolved[AnyRecipe]:
    """Fill entries of a setting that maps names to values, where a person chose none of them."""
    nested = to_dict(resolved.recipe)
    block, _, name = key.partition(".")
    if nested[block][name].keys() & values.keys():
        return resolved
    nested[block][name] |= values
    recipe = cast(AnyRecipe, type(resolved.recipe).model_validate(nested))
    origin = resolved.provenance.get(key, "default")
    told = f"auto: {reason}" if origin == "default" else f"{origin}, auto: {reason}"
    return replace(resolved, recipe=recipe, provenance={**resolved.provenance, key: told})


def inherit(
    resolved: Resolved[AnyRecipe],
    must: Mapping[str, object],
    may: Mapping[str, object],
    *,
    origin: str,
    free: Sequence[str] = (),
) -> Resolved[AnyRecipe]:
    """Take settings from what a recipe continues, where nobody has chosen them.

    Args:
        resolved: the recipe.
        must: values by dotted key that a choice must agree with.
        may: values that a choice stands against.
        origin: where the values come from, for the provenance.
        free: keys of `must` whose present value is replaced all the same.

    Raises:
        RecipeError: choices that differ from `must`, all of them.
    """
    nested = to_dict(resolved.recipe)
    provenance = dict(resolved.provenance)
    problems: list[tuple[str, str]] = []
    for key, value in {**must, **may}.items():
        block, _, name = key.partition(".")
        plain: object = list(cast(tuple[object, ...], value)) if isinstance(value, tuple) else value
        present, chosen = nested[block][name], provenance.get(key, "default") != "default"
        if present == plain:
            continue
        if key in must and chosen and present != "auto" and key not in free:
            text = f"{key} is {yaml_value(present)} ({provenance[key]}), {yaml_value(plain)} {origin}"
            problems.append(("", text))
        elif present == "auto" or not chosen or key in free:
            nested[block][name] = plain
            provenance[key] = origin
    if problems:
        raise wrong_settings(resolved.recipe.stage, problems)
    recipe = cast(AnyRecipe, type(resolved.recipe).model_validate(nested))
    return replace(resolved, recipe=recipe, provenance=provenance)


def dump(resolved: Resolved[Any]) -> str:
    """The resolved recipe as YAML, each value with where it came from."""
    return with_provenance(resolved.recipe, resolved.provenance)


def nearest(stage: str, dotted: str) -> str | None:
    """The setting that a wrong name most likely meant, if any is close."""
    table = keys(stage)
    last = dotted.rpartition(".")[2]
    by_last = {name.rpartition(".")[2]: name for name in table}
    if last in by_last:
        return by_last[last]
    if _OTHER_NAMES.get(last) in table:
        return _OTHER_NAMES[last]
    for candidates, wanted in ((list(table), dotted), (list(by_last), last), (list(blocks(stage)), dotted)):
        found = difflib.get_close_matches(wanted, candidates, n=1, cutoff=0.7)
        if found:
            return by_last.get(found[0], found[0])
    return None


def read_file(path: Path) -> Document:
    """Read a recipe file; RecipeError if that is not possible."""
    try:
        with path.open("rb") as file:
            return read(file.read(MAX_BYTES + 1))
    except OSError as error:
        reason = (
            "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        )
        raise RecipeError(f"{path} {reason}", remedy="A recipe is a YAML file; see recipes/.") from error


def raise_problems(path: Path, document: Document) -> None:
    """Raise RecipeError with every mistake of the YAML text."""
    if document.problems:
        places = [f"{path}:{problem.line}" if problem.line else str(path) for problem in document.problems]
        raise wrong_settings("", list(zip(places, (problem.text for problem in document.problems))))


def _take_file(values: Values, path: Path) -> None:
    document = read_file(path)
    for problem in document.problems:
        values.problems.append((f"{path}:{problem.line}" if problem.line else str(path), problem.text))
    given = as_mapping(document.value)
    if given is None:
        if document.value is not None:
            values.problems.append((str(path), "is not a recipe: `key: value` lines expected"))
        return
    content = dict(given)
    stage = content.pop("stage", values.stage)
    if stage != values.stage:
        place = f"{path}:{document.lines['stage']}"
        values.problems.append((place, f"is a recipe for {stage}, not for {values.stage}"))
        return
    take_content(values, content, path, document.lines)


def take_content(
    values: Values, content: Mapping[str, object], path: Path, lines: Mapping[str, int], *, below: str = ""
) -> None:
    """Take the blocks of a recipe.

    Args:
        values: what was given so far.
        content: blocks by name.
        path: of the file that they stand in.
        lines: line of each dotted key of that file.
        below: what stands before the dotted keys in `lines`: "stages.sft." for a part of a pipeline.
    """
    for name, value in content.items():
        nested = as_mapping(value)
        if name in blocks(values.stage) and value is None:
            continue
        inside = (
            {f"{name}.{own}": item for own, item in nested.items()} if nested is not None else {name: value}
        )
        for dotted, item in inside.items():
            line = lines.get(f"{below}{dotted}") or lines[f"{below}{name}"]
            values.add(dotted, item, origin=f"recipe {path.name}:{line}", place=f"{path}:{line}")


def take_sets(values: Values, sets: Sequence[str], direct: Mapping[str, str]) -> None:
    """Take `key=value` texts; a key that `direct` has a flag for may not be given again."""
    seen = dict(direct)
    for text in sets:
        dotted, equals, raw = text.partition("=")
        if not equals or not dotted.strip():
            values.problems.append(("", f"--set {text}: key=value expected, such as --set loss.beta=0.3"))
            continue
        dotted = dotted.strip()
        if dotted in seen:
            values.problems.append(("", f"{dotted} is given twice, by {seen[dotted]} and by --set"))
            continue
        seen[dotted] = "--set"
        raw = raw.strip()
        if raw[:1] in ("[", "{", '"', "'"):
            document = read(raw.encode())
            values.problems.extend(("", f"--set {dotted}: {problem.text}") for problem in document.problems)
            values.add(dotted, document.value, origin="--set")
        else:
            values.add(dotted, scalar(raw), origin="--set")


def validate(values: Values) -> Any:
    """The recipe of the values; None, with the mistakes noted, if they do not fit."""
    nested: dict[str, Any] = {"stage": values.stage}
    for dotted, value in values.given.items():
        block, _, name = dotted.partition(".")
        nested.setdefault(block, {})[name] = value
    try:
        return SCHEMAS[values.stage].model_validate(nested)
    except ValidationError as error:
        table = keys(values.stage)
        told: set[str] = set()
        for detail in error.errors(include_url=False):
            dotted = str(detail.get("ctx", {}).get("key") or ".".join(map(str, detail["loc"][:2])))
            if dotted in told:
                continue
            told.add(dotted)
            if detail["type"] == "setting":
                text = detail["msg"]
            else:
                text = f"{dotted} is {_shown(values.given[dotted])}; expected {table[dotted].expected}"
            if values.origin.get(dotted) in FLAGS.values():
                text = f"{values.origin[dotted]}: {text}"
            values.problems.append((values.place.get(dotted, ""), text))
        return None


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else yaml_value(value)
    return text if len(text) <= 60 else text[:57] + "…"


def wrong_settings(stage: str, problems: Sequence[tuple[str, str]]) -> RecipeError:
    """The error that tells all mistakes, (place, text) each, in the order of their lines."""
    lines = [f"{place}: {text}" if place else text for place, text in sorted(problems, key=_line_number)]
    remedy = "Nothing was written."
    if stage:
        remedy = f"lite-align {stage} --help-all lists the settings; nothing was written."
    if len(lines) == 1:
        return RecipeError(lines[0], remedy=remedy)
    return RecipeError(f"{len(lines)} settings are not right", details=lines, remedy=remedy)


def _line_number(problem: tuple[str, str]) -> tuple[bool, int]:
    place = problem[0]
    line = place.rpartition(":")[2]
    return not place, int(line) if line.isdecimal() else 0


def folder_name(name: str, path: Path, block: str) -> str:
    """A name that a folder below runs/ can have.

    Raises:
        RecipeError: it is none.
    """
    if not all(letter.isalnum() or letter in "-_." for letter in name) or name.startswith("."):
        raise RecipeError(
            f"{path}: {block} is {name}; letters, digits, dashes and underscores expected",
            remedy="It names the folder of the runs.",
        )
    return name


def as_mapping(value: object) -> dict[str, object] | None:
    """The value if it is a mapping, else None."""
    return cast(dict[str, object], value) if isinstance(value, dict) else None
