"""The rule score of policies on held-out prompts of the built-in world: sampled answers, paired by prompt."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lite_align.assets import world
from lite_align.data import sources
from lite_align.data.render import Renderer
from lite_align.data.types import Message
from lite_align.errors import UserError
from lite_align.evaluate.statistics import Interval, mean
from lite_align.model import load
from lite_align.model.backbone import Backbone, Role, adapter_digest
from lite_align.model.folder import TINY
from lite_align.recipe import TRAINS, Pipeline, ScoreOptions, from_dict
from lite_align.stages import session
from lite_align.train import files
from lite_align.train.record import read_record
from lite_align.view import View

FILE = "score.json"
ALL = "all"
AT_ONCE = 64
"""Prompts that are answered together: short ones, of a small model."""


@dataclass(frozen=True)
class Scores:
    """Scores of each policy, and what each gained over the one that it continues.

    Attributes:
        inputs: sha256 of the adapters, the questions and the options.
        prompts: how many.
        samples: answers to each.
        means: mean score by policy and category ("all" among them).
        gains: mean paired difference to the policy before, by policy and category, with its interval over prompts.
        before: the policy that each one is compared with.
        rows: score of every prompt, the mean of its samples, by policy; `prompt` and `category` beside them.
    """

    inputs: str
    prompts: int
    samples: int
    means: dict[str, dict[str, float]]
    gains: dict[str, dict[str, Interval]]
    before: dict[str, str]
    rows: list[dict[str, Any]]

    def record(self) -> dict[str, Any]:
        """For score.json."""
        return asdict(self)


def score(pipeline: Pipeline, folders: Mapping[str, Path], root: Path, view: View) -> Scores:
    """Sample answers of the base and of every policy of a pipeline, score them by rule, and write score.json.

    Raises:
        UserError: the base is not the demo model, or a prompt is not of its world.
    """
    assert pipeline.score is not None
    steps = [step for step in pipeline.steps if TRAINS[step.stage] == "policy"]
    asks = read_asks(pipeline.score.prompts)
    recipe = from_dict(read_record(folders[steps[0].name])["recipe"])
    if recipe.model.name != TINY:
        raise UserError(
            f"The rule of the built-in world scores {TINY}, not {recipe.model.name}.",
            remedy="Leave out `score`; the reward model and the report compare answers of other models.",
        )
    adapters = {step.name: adapter_digest(folders[step.name] / "adapters" / "policy") for step in steps}
    inputs = digest_of([adapters, [ask.text for ask in asks], pipeline.score.model_dump(mode="json")])
    if (known := stored(root)) is not None and known.inputs == inputs:
        return known
    loaded = load.load_model(recipe.model, device=session.device())
    backbone = Backbone(loaded, recipe.lora, seed=0)
    renderer = Renderer(loaded.tokenizer, trusted=True)
    found: dict[str, list[float]] = {}
    total = (1 + len(steps)) * len(asks) * pipeline.score.samples
    with view.bar("score", total, "answers") as bar:
        for name in ("base", *(step.name for step in steps)):
            if name != "base":
                backbone.load_adapter(Role.POLICY, folders[name] / "adapters" / "policy")
            with backbone.role(Role.BASE if name == "base" else Role.POLICY):
                found[name] = sampled(backbone, renderer, asks, pipeline.score)
            bar.advance(len(asks) * pipeline.score.samples)
    names = {step.name for step in steps}
    before = {step.name: step.start if step.start in names and step.start else "base" for step in steps}
    scores = compare(asks, found, before, samples=pipeline.score.samples, inputs=inputs)
    with files.explained(root / FILE):
        files.replace(root / FILE, files.dump_json(scores.record(), indent=1))
    return scores


def read_asks(path: str) -> list[world.Ask]:
    """Questions of the built-in world, from a file of prompts.

    Raises:
        UserError: a row is no question of that world.
    """
    asks = []
    for source, row in sources.read(path).rows:
        ask = world.find(str(row.get("prompt", "")))
        if ask is None:
            raise UserError(
                f"{source}: this prompt is not from the built-in world, so no rule can score its answers.",
                remedy="Use data_samples/held_out_prompts.jsonl, or leave out `score`.",
            )
        asks.append(ask)
    return asks


def sampled(
    backbone: Backbone, renderer: Renderer, asks: Sequence[world.Ask], options: ScoreOptions
) -> list[float]:
    """Mean rule score of the sampled answers to each question, under the current role."""
    prompts = [renderer.prompt_ids((Message("user", ask.text),)) for ask in asks]
    totals = [0.0] * len(asks)
    for sample in range(options.samples):
        answers = backbone.generate(
            prompts,
            stop_ids=renderer.stop_ids,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            seed=sample,
            batch_size=AT_ONCE,
        )
        for number, (ask, ids) in enumerate(zip(asks, answers, strict=True)):
            text = str(backbone.loaded.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()
            ended = bool(ids) and ids[-1] in renderer.stop_ids
            totals[number] += world.score(ask, text, ended=ended).total / options.samples
    return totals


def compare(
    asks: Sequence[world.Ask],
    found: Mapping[str, Sequence[float]],
    before: Mapping[str, str],
    *,
    samples: int,
    inputs: str = "",
) -> Scores:
    """Means and paired gains, over all prompts and by category."""
    categories = sorted({ask.category for ask in asks})
    groups = {ALL: list(range(len(asks)))}
    groups |= {name: [i for i, ask in enumerate(asks) if ask.category == name] for name in categories}

    def gain(name: str, rows: Sequence[int]) -> Interval:
        return mean([found[name][i] - found[before[name]][i] for i in rows])

    return Scores(
        inputs=inputs,
        prompts=len(asks),
        samples=samples,
        means={
            name: {group: sum(values[i] for i in rows) / len(rows) for group, rows in groups.items()}
            for name, values in found.items()
        },
        gains={name: {group: gain(name, rows) for group, rows in groups.items()} for name in before},
        before=dict(before),
        rows=[
            {
                "prompt": ask.text,
                "category": ask.category,
                **{name: round(found[name][i], 4) for name in found},
            }
            for i, ask in enumerate(asks)
        ],
    )


def show(scores: Scores, view: View) -> None:
    """The table of scores: one row a category, one column a policy, and the last gain with its interval."""
    names = list(scores.means)
    header = ("category", *names, *(f"{name} − {before}" for name, before in scores.before.items()))
    rows = []
    for group in scores.means["base"]:
        gains = [scores.gains[name][group] for name in scores.before]
        shown = [f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]" for gain in gains]
        rows.append((group, *(f"{scores.means[name][group]:.3f}" for name in names), *shown))
    view.table(
        f"Rule score of {scores.prompts} held-out prompts, {scores.samples} answers each", header, rows
    )


def stored(root: Path) -> Scores | None:
    """The scores in a pipeline folder; None if there are none that this version can read."""
    try:
        content = json.loads((root / FILE).read_text(encoding="utf-8"))
        gains = {
            name: {g: Interval(**gain) for g, gain in by.items()} for name, by in content["gains"].items()
        }
        return Scores(**{**content, "gains": gains})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def digest_of(content: object) -> str:
    """Sha256 of JSON values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
