"""`lite-align run RECIPE` with several stages: each is skipped, continued or run, and the last page sums it all up.

The folder of a pipeline holds one run folder for each stage and `pipeline.json`, which says for each what it was made
of. A stage is skipped while these inputs are the same: its recipe, the contents of its data files and of its base, and
the adapter that it continues.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lite_align.data import sources
from lite_align.model import load
from lite_align.model.backbone import adapter_digest
from lite_align.model.folder import fingerprint, locate
from lite_align.recipe import TRAINS, Pipeline, PPOOptions, Resolved, Step, to_dict
from lite_align.stages import lineage, rows, score, session
from lite_align.stages.command import CommandOptions
from lite_align.stages.places import Places
from lite_align.stages.reward_function import located
from lite_align.stages.training import procedure_of, train
from lite_align.train.faults import free_memory
from lite_align.train.record import RECORD, read_record
from lite_align.view import View

STATE = "pipeline.json"


@dataclass(frozen=True)
class Place:
    """Where a step runs, and what is there: "new", "interrupted" or "finished"."""

    folder: Path
    state: str


def run(pipeline: Pipeline, command: CommandOptions, view: View) -> Path:
    """Run what is not done yet, in order, and return the folder of the pipeline.

    Raises:
        LiteAlignError: of the first stage that stops; what was finished before stays.
    """
    root = command.out or session.RUNS / pipeline.name
    places = Places(root, STATE)
    places.require_own("pipeline", "Choose another --out, or another name: `pipeline: NAME` in the recipe.")
    require_runnable(pipeline)
    folders: dict[str, Path] = {}
    for number, step in enumerate(pipeline.steps, 1):
        names = {earlier.name for earlier in pipeline.steps}
        missing = [one for one in (step.start, step.reward) if one in names and one not in folders]
        if command.dry_run and missing:
            after = " and ".join(map(str, missing))
            view.section(step.name, f"{number} of {len(pipeline.steps)} · {step.stage}, after {after}")
            continue
        resolved = _started(step, folders)
        digest = inputs(resolved)
        place = find(places, step.name, digest)
        if place.state == "finished":
            folders[step.name] = place.folder
            view.section(step.name, f"{place.folder} · unchanged, skipped")
            continue
        view.section(step.name, f"{number} of {len(pipeline.steps)} · {step.stage} → {place.folder}")
        if not command.dry_run:
            places.note(step.name, place.folder, digest)
        options = replace(command, out=place.folder, resume=place.state == "interrupted")
        free_memory()  # of the stage before: the plan counts what is free
        found = train(resolved, options, view.step())
        if found is not None:
            folders[step.name] = found
    if not command.dry_run:
        scores = score.score(pipeline, folders, root, view) if pipeline.score else None
        conclude(pipeline, folders, root, scores, view)
    return root


def require_runnable(pipeline: Pipeline) -> None:
    """Find what would stop a later stage before the first one trains: its options, its rows, the prompts to score.

    Raises:
        LiteAlignError: of the first stage that could not run.
    """
    for step in pipeline.steps:
        recipe = _started(step, {}).recipe
        procedure = procedure_of(recipe)
        procedure.check(recipe)
        read = rows.read(procedure.kind(recipe), recipe.data, recipe.data.path)
        rows.require_enough(read.table.name, len(read.table.rows), read.dropped, recipe.data.max_dropped)
        if step.start is not None and Path(step.start).is_dir():
            lineage.find(_started(step, {}).recipe.model, step.stage)
    if pipeline.score is not None:
        score.read_asks(pipeline.score.prompts)


def _started(step: Step, folders: Mapping[str, Path]) -> Resolved[Any]:
    """The recipe of a step, with the run folders that it continues and learns from filled in."""
    nested = to_dict(step.resolved.recipe)
    provenance = dict(step.resolved.provenance)
    for key, named in (("model.adapter", step.start), ("ppo.reward", step.reward)):
        if named is not None:
            block, _, name = key.partition(".")
            nested[block][name] = str(folders.get(named, Path(named)))
            provenance[key] = f"from {named}"
    return Resolved(type(step.resolved.recipe).model_validate(nested), provenance)


def inputs(resolved: Resolved[Any]) -> str:
    """Sha256 over everything that a stage is made of, with contents in place of names."""
    recipe = resolved.recipe
    nested = to_dict(recipe)
    start = recipe.model.adapter
    if start is not None:
        nested["model"]["adapter"] = adapter_digest(_adapter_of(Path(start)))
    if recipe.stage == "ppo":
        nested["ppo"] |= _inputs_of_ppo(recipe.ppo)
    choice = load.choose(recipe.model, device=session.device())
    if not (start is not None and recipe.model.name == "auto"):  # then the base is the parent's
        nested["model"]["name"] = fingerprint(locate(choice.name, recipe.model.revision))
    for name in ("path", "held_out_path"):
        if nested["data"][name]:
            nested["data"][name] = sources.read(nested["data"][name], skip_bad=recipe.data.skip_bad).sha256
    return score.digest_of(nested)


def _adapter_of(folder: Path) -> Path:
    """The adapter that a run folder left, or the folder itself if it is an adapter's."""
    if not (folder / RECORD).exists():
        return folder
    return folder / "adapters" / TRAINS.get(str(read_record(folder)["stage"]), "policy")


def _inputs_of_ppo(options: PPOOptions) -> dict[str, str]:
    """Contents of the reward model, of the file of the reward function, and of the held-out pairs."""
    found: dict[str, str] = {}
    if options.reward is not None:
        found["reward"] = adapter_digest(_adapter_of(Path(options.reward)))
    if options.reward_fn is not None:
        path, name = located(options.reward_fn)
        found["reward_fn"] = f"{hashlib.sha256(path.read_bytes()).hexdigest()}:{name}"
    if options.pairs is not None:
        found["pairs"] = sources.read(options.pairs).sha256
    return found


def find(places: Places, name: str, digest: str) -> Place:
    """The folder where a step with these inputs was run or is to be run."""
    folder, begun = places.find(name, digest)
    if begun and (folder / RECORD).is_file():
        finished = read_record(folder)["status"] == "finished" and (folder / "report.html").is_file()
        return Place(folder, "finished" if finished else "interrupted")
    return Place(folder, "interrupted" if begun and folder.is_dir() else "new")


def conclude(
    pipeline: Pipeline, folders: Mapping[str, Path], root: Path, scores: score.Scores | None, view: View
) -> None:
    """One line for each stage, the scores, and the command to type next."""
    records = {name: read_record(folder) for name, folder in folders.items()}
    lines = []
    for name, record in records.items():
        verdict = record["verdict"]
        start = pipeline.step(name).start or "the base"
        lines.append((name, str(record["stage"]), start, str(verdict["word"]), str(verdict["sentences"][0])))
    view.table(f"Pipeline {pipeline.name}", ("step", "stage", "continues", "verdict", "held out"), lines)
    if scores is not None:
        score.show(scores, view)
    last = [step.name for step in pipeline.steps if TRAINS[step.stage] == "policy"]
    view.section("saved", str(root))
    if last:
        view.section("next", f"lite-align chat {folders[last[-1]]}")
    view.json_record(
        {"folder": str(root), "runs": records, "score": None if scores is None else scores.record()}
    )
