"""`lite-align loop RECIPE`: what is current answers, is judged, learns, and is replaced where it got better; and again.

With a reward run as the judge this is online DPO (Guo et al. 2024, arXiv 2402.04792), gated. The folder of a loop has
one folder a round, see `round.py`; `loop.json` says what each round was made of, `rounds.json` what came of it, and the
log of the project what was promoted. A command that was stopped goes on in any step; what was promoted is not made
again.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lite_align.data import sources
from lite_align.data.split import prompt_key
from lite_align.errors import GateFailed, UserError
from lite_align.evaluate.pages import rounds as page
from lite_align.flywheel import items, project, promotion, questions, round, rounds, sides
from lite_align.flywheel.judges.opening import Asked
from lite_align.flywheel.project import Event, Project
from lite_align.flywheel.questions import Questions
from lite_align.flywheel.round import Round, Waiting
from lite_align.flywheel.rounds import PROMOTED, REFUSED, ROLLED_BACK, STOPPED, WAITING
from lite_align.flywheel.rubrics import Rubric
from lite_align.flywheel.rubrics import read as read_rubric
from lite_align.model.backbone import adapter_digest
from lite_align.recipe import PEOPLE, Loop, drift_classes, flatten, to_dict
from lite_align.stages import pipeline, session, user_function
from lite_align.stages.places import Places
from lite_align.stages.score import digest_of
from lite_align.train import files
from lite_align.train.finished import read_reward
from lite_align.train.lock import FolderLock
from lite_align.view import View

STATE, LOCK = "loop.json", "loop.lock"


@dataclass
class Looping:
    """A loop that runs.

    Attributes:
        plan: its recipe.
        root: its folder.
        places: the folders of its rounds.
        command: as typed.
        records: of its rounds so far, as in rounds.json.
    """

    plan: Loop
    root: Path
    places: Places
    command: str
    records: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    @property
    def project(self) -> Path:
        """Where the pointer is."""
        named = self.plan.own.recipe.loop.project
        return Path(named) if named else self.root / "project"

    @property
    def current(self) -> str:
        """What is current now, as `sides.find` takes it."""
        known = known_of(self.project)
        return known.current.run if known and known.current else self.plan.own.recipe.loop.start


def loop(plan: Loop, out: Path | None, command: str, view: View, *, dry_run: bool = False) -> int:
    """Run what is not done yet, round after round, and return the exit code: 3 where a gate stopped it.

    Raises:
        LiteAlignError: of the step that stops; what was finished before stays.
    """
    root = out or session.RUNS / plan.name
    one = Looping(plan, root, Places(root, STATE), command)
    one.places.require_own("loop", "Choose another --out, or another loop.name.")
    asked, sealed = look(plan)
    show_plan(one, asked, sealed, view)
    if dry_run:
        view.section("next", "Leave out --dry-run to begin; nothing was written.")
        return 0
    with files.explained(root):
        root.mkdir(parents=True, exist_ok=True)
    lock = FolderLock.acquire(root, LOCK)
    try:
        return _rounds(one, asked, view)
    finally:
        lock.release()


def _rounds(one: Looping, asked: Questions, view: View) -> int:
    most = one.plan.own.recipe.loop.rounds
    for n in range(1, most + 1):
        view.section(f"round {n}", f"of {most}")
        try:
            record = _round(one, n, asked, view)
        except Waiting as waiting:
            record = {"round": n, "status": WAITING, "why": str(waiting)}
        except GateFailed as error:
            _keep(one, {"round": n, "status": STOPPED, "why": error.what})
            _conclude(one, view)
            raise
        _keep(one, record)
        if record["status"] != PROMOTED:
            break
    _conclude(one, view)
    return 0 if one.records[-1]["status"] in (PROMOTED, WAITING) else GateFailed.exit_code


def _keep(one: Looping, record: dict[str, Any]) -> None:
    one.records.append(record)
    with files.explained(one.root):
        content = {
            "schema": 1,
            "name": one.plan.name,
            "most": one.plan.own.recipe.loop.rounds,
            "current": one.current,
            "rounds": one.records,
        }
        files.replace(one.root / rounds.FILE, files.dump_json(content, indent=1))


def _conclude(one: Looping, view: View) -> None:
    """The rounds, why the loop stopped, and what to type next."""
    recipe = one.plan.own.recipe
    last = one.records[-1]
    promoted = sum(record["status"] == PROMOTED for record in one.records)
    rounds.show(one.plan.name, one.records, view)
    reached = f"{promoted:,} of {recipe.loop.rounds:,} rounds were promoted; {one.current} is current."
    stopped = (
        [] if last["status"] == PROMOTED else [f"Round {last['round']}, {last['status']}: {last['why']}."]
    )
    view.section("verdict", reached, *stopped)
    view.section("saved", f"{one.root / rounds.FILE}, {page.write(one.root).name}")
    match last["status"]:
        case "waiting":
            candidates = one.places.folder(f"round-{last['round']}") / "candidates.jsonl"
            label = f"lite-align label {candidates} --pairs {recipe.judge.pairs}"
            view.section("next", f"{label}, then the same command again")
        case "promoted":
            view.section("next", f"lite-align chat {one.current}")
        case "refused" | "rolled back":
            view.section("next", f"lite-align report {one.root / last['folder'] / 'dpo'}")
        case _:
            pass
    view.json_record({"schema": 1, "name": one.plan.name, "current": one.current, "rounds": one.records})


def _round(one: Looping, n: int, asked: Questions, view: View) -> dict[str, Any]:
    """What came of a round: from its files if it is decided, else it is run as far as it gets."""
    name = f"round-{n}"
    known = known_of(one.project)
    for event in known.released if known else ():
        run = Path(event.run)
        own = run.parent.name == name or run.parent.name.startswith(f"{name}-")
        if own and run.parent.parent.resolve() == one.root.resolve():
            done = Round(n, one.plan, one.root / run.parent.name, one.project, "")
            view.section("skipped", f"{done.run} is promoted")
            return rounds.record(done, PROMOTED)
    current = one.current
    made_of = inputs(one.plan, n, current, asked)
    folder, begun = one.places.find(name, made_of)
    this = Round(n, one.plan, folder, one.project, current)
    if begun and known and (event := _decision(this, known)) is not None:
        if event.kind == PROMOTED:
            left = next(e for e in reversed(known.events) if e.kind == ROLLED_BACK)
            return rounds.record(this, ROLLED_BACK, f"by {left.who}: {left.why}")
        wanted = [gate.text for gate in promotion.wanted(round.promotion_of(this))]
        if wanted == [gate["gate"] for gate in event.gates]:
            return rounds.record(this, REFUSED)
    one.places.note(name, folder, made_of)
    steps = view.step()
    round.prepare(this, steps)
    round.learn(this, one.command, steps)
    return rounds.record(this, PROMOTED if round.decide_on(this, steps) else REFUSED)


def known_of(folder: Path) -> Project | None:
    """The project as it is now; None before it begins."""
    if not (folder / project.LOG).is_file():
        return None
    with project.opened(folder) as opened:
        return opened


def _decision(one: Round, known: Project) -> Event | None:
    """What was decided last of the run of a round."""
    kinds = (PROMOTED, REFUSED)
    own = [e for e in known.events if e.kind in kinds and Path(e.run).resolve() == one.run.resolve()]
    return own[-1] if own else None


def inputs(plan: Loop, n: int, current: str, asked: Questions) -> str:
    """Sha256 over everything that the run of a round is made of, with contents in place of names."""
    classes = drift_classes("loop")
    own = {key: value for key, value in flatten(to_dict(plan.own.recipe)).items() if classes[key] == "refuse"}
    own["sample.prompts"] = asked.sha256
    own["judge.by"] = _contents(round.judge_of(plan, plan.own.recipe.judge.by))
    if (rubric := plan.own.recipe.judge.rubric) is not None:
        own["judge.rubric"] = files.sha256(Path(rubric))
    del own["loop.start"]  # its adapter stands in the recipe below
    start = Round(n, plan, Path(), Path(), current)
    return digest_of([n, own, pipeline.inputs(round.resolved(start, data=""))])


def _contents(asked: Asked) -> str:
    """What a judge is, by content where it is a file or a run of ours."""
    match asked.kind:
        case "reward" if asked.by != PEOPLE:
            return adapter_digest(Path(asked.by) / "adapters" / "reward")
        case "function":
            path, name = user_function.located(asked.by, "judge.by")
            return f"{hashlib.sha256(path.read_bytes()).hexdigest()}:{name}"
        case _:
            return f"{asked.by} {asked.model}"


# Before the first round.


def look(plan: Loop) -> tuple[Questions, Questions]:
    """Find what would stop a later step, and return the prompts of the rounds and the sealed ones.

    Raises:
        LiteAlignError: a file, a run or a judge is not there or not what it should be.
        UserError: rounds would be judged on prompts that they are trained on.
    """
    recipe = plan.own.recipe
    for path in (recipe.sample.prompts, recipe.final.prompts, recipe.final.probes, *recipe.judge.humans):
        if path:
            sources.require_there(path)
    sides.find(recipe.loop.start)
    for by in dict.fromkeys((recipe.judge.by, recipe.final.by)):
        if by not in (None, PEOPLE):
            _look_at_judge(round.judge_of(plan, by))
    promotion.wanted(round.promotion_of(Round(1, plan, Path(), Path(), "")))
    for path in recipe.judge.humans:
        items.read(path)
    if recipe.final.probes is not None:
        questions.read(recipe.final.probes, marked=True)
    asked = questions.read(recipe.sample.prompts)
    sealed = questions.read(recipe.final.prompts, marked=True)
    trained = {prompt_key(prompt.messages) for prompt in asked.prompts}
    both = [str(prompt.source) for prompt in sealed.prompts if prompt_key(prompt.messages) in trained]
    if both:
        raise UserError(
            f"{len(both):,} of the sealed prompts of {sealed.name} are prompts of {asked.name} too: rounds would be "
            "judged on what they were trained on.",
            details=both,
            remedy="Take them out of one of the files.",
        )
    return asked, sealed


def _look_at_judge(asked: Asked) -> None:
    match asked.kind:
        case "reward":
            read_reward(Path(asked.by))
        case "function":
            user_function.located(asked.by, "judge.by")
        case "endpoint":
            asked.endpoint()
        case "base":
            pass
    if asked.rubric is not None:
        read_rubric(Rubric, asked.rubric)


def show_plan(one: Looping, asked: Questions, sealed: Questions, view: View) -> None:
    """What the rounds will do."""
    recipe = one.plan.own.recipe
    per_round = min(recipe.sample.per_round or len(asked.prompts), len(asked.prompts))
    again = recipe.loop.rounds * per_round > len(asked.prompts)
    view.section(
        "loop",
        f"{one.plan.name}: at most {recipe.loop.rounds} rounds in {one.root}, from {recipe.loop.start}",
    )
    view.section(
        "sample",
        asked.told(),
        f"{per_round:,} prompts a round, {recipe.sample.n} answers each"
        + (", some prompts in several rounds" if again else ""),
    )
    final = recipe.final.by or recipe.judge.by
    view.section("judge", f"labels: {recipe.judge.by} · gate: {final}")
    if final == recipe.judge.by:
        view.warn(
            "The judge that labels also judges the gate: what it takes for good wrongly, nobody sees (final.by)."
        )
    view.section("final", sealed.told(), f"project {one.project}")
    wanted = promotion.wanted(round.promotion_of(Round(1, one.plan, Path(), one.project, "")))
    view.section("gates", *(gate.text for gate in wanted))
