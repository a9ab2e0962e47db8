"""`lite-align promote RUN` and `rollback`: the pointer of a project moves only through its gates, and back."""

import json
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lite_align.errors import GateFailed, UserError
from lite_align.evaluate import figures, gates, report
from lite_align.evaluate.agreement import TooFew, agreement
from lite_align.evaluate.figures import Figure, Figures
from lite_align.evaluate.gates import Gate, Limits
from lite_align.flywheel import compare, gating, items, project, questions, sides
from lite_align.flywheel.bench import Bench
from lite_align.flywheel.evaluation import kl_of, replies_of
from lite_align.flywheel.judges.opening import Asked as AskedJudge
from lite_align.flywheel.judges.opening import open_judge
from lite_align.flywheel.project import Event, Project, event
from lite_align.flywheel.replies import measure, measure_probes
from lite_align.flywheel.sides import BASE, Side
from lite_align.model.backbone import Role
from lite_align.stages.speaker import Sampling
from lite_align.train import files
from lite_align.train.finished import FinishedRun
from lite_align.view import View

FILE = "promotion.json"


@dataclass(frozen=True)
class Options:
    """How a run is promoted.

    Attributes:
        folder: of the project.
        final: sealed prompts; None: those that the project has.
        uses: most promotions that are tried on the same sealed prompts.
        judge: who compares the run with the current one.
        probes: adversarial suite, of which nothing may newly fail.
        labels: file of votes that the run was trained on, for their agreement.
        sampling: of the answers.
        gates: in place of the seven defaults.
        limits: thresholds of the defaults.
        who: promotes; None: the user of this machine.
        why: in their words.
        start: what is current while nothing is promoted, and what the KL of the figure `kl_start` is taken to.
    """

    folder: Path
    final: str | None
    uses: int
    judge: AskedJudge
    probes: str | None
    labels: str | None
    sampling: Sampling
    gates: tuple[str, ...]
    limits: Limits
    who: str | None
    why: str
    start: str = BASE


def promote(name: str, options: Options, view: View) -> int:
    """Judge a run against the current one on sealed prompts, and move the pointer if every gate passes.

    Returns 0, or 3 where a gate does not pass: then the pointer stays, and the refusal is written down.

    Raises:
        UserError: it cannot be promoted, or the sealed prompts are used up or were changed.
    """
    conditions = wanted(options)
    side = sides.find(name)
    if side.run is None:
        raise UserError(f"{name} is no run folder.", remedy="Give a finished run of sft, dpo or ppo.")
    with project.opened(options.folder, create=True) as opened:
        current = _current(opened, side, options.start)
        asked = _sealed(opened, options)
        view.section(
            "promote",
            f"{name} against {current.name} · {asked.told()}",
            f"use {opened.uses + 1} of {options.uses} of the sealed prompts",
        )
        opened.add(event("used", options.who, run=name, adapter=side.sha256, sha256=asked.sha256))
        found = _measured(side, current, asked, options, view)
        outcomes = gating.settle(conditions, found, side.run.folder, view)
        passed = gates.passed(outcomes)
        facts = {"run": name, "adapter": side.sha256, "why": options.why}
        told = [one.record() for one in outcomes]
        decided = event("promoted" if passed else "refused", options.who, **facts, gates=told)
        _record(decided, current, found, options, side.run)
        opened.add(decided)
        report.write(side.run.folder)
        view.section(
            "verdict", f"{name} is current." if passed else f"Refused: {current.name} stays current."
        )
    return 0 if passed else GateFailed.exit_code


def wanted(options: Options) -> list[Gate]:
    """The gates of a promotion.

    Raises:
        UserError: one of those that were given is none.
    """
    given = [gates.parse(text) for text in options.gates]
    has_probes, has_labels = options.probes is not None, options.labels is not None
    return given or gates.defaults(options.limits, probes=has_probes, labels=has_labels)


def read(run: Path) -> dict[str, Any]:
    """What was decided last of a run, and every figure: its promotion.json."""
    return json.loads((run / FILE).read_bytes())


def rollback(folder: Path, who: str | None, why: str, view: View) -> None:
    """Make the promotion before the last one current again.

    Raises:
        UserError: nothing is promoted.
    """
    with project.opened(folder) as opened:
        if opened.current is None:
            raise UserError(f"Nothing is promoted in {folder}.")
        left = opened.current
        before = opened.released[-2] if len(opened.released) > 1 else None
        facts = {"run": before.run, "adapter": before.adapter} if before else {"run": BASE, "adapter": "none"}
        opened.add(event("rolled back", who, why=why, **facts))
        view.section("rollback", f"{left.run} was current; now {before.run if before else 'the base'} is.")


def _current(opened: Project, side: Side, start: str) -> Side:
    """What is current: a promoted run, unchanged since, or the start."""
    if opened.current is None:
        return sides.find(start)
    current = sides.find(opened.current.run)
    if current.sha256 != opened.current.adapter:
        raise UserError(
            f"{current.name} is not what was promoted: its adapter has changed since.",
            remedy="lite-align rollback, or put the adapter back.",
        )
    if current.sha256 == side.sha256:
        raise UserError(f"{side.name} is current already.")
    return current


def _sealed(opened: Project, options: Options) -> questions.Questions:
    """The sealed prompts, as they were when they were set apart; a use more than allowed is refused."""
    known = opened.sealed
    path = options.final or (known.file if known else None)
    if path is None:
        raise UserError(
            f"{options.folder} has no sealed prompts.",
            remedy="Give a file of prompts that nothing is trained or chosen on: --final FILE.",
        )
    asked = questions.read(path, marked=True)
    if known is None or (options.final is not None and asked.sha256 != known.sha256):
        opened.add(event("sealed", options.who, file=path, sha256=asked.sha256))
    elif asked.sha256 != known.sha256:
        raise UserError(
            f"{path} has changed since it was sealed.", remedy="Put it back, or seal it anew with --final."
        )
    if opened.uses >= options.uses:
        raise UserError(
            f"The sealed prompts of {path} were used {opened.uses} times: what is chosen on them so often looks better "
            "than it is.",
            remedy="Seal new ones with --final FILE, or raise --final-uses.",
        )
    return asked


def _measured(side: Side, current: Side, asked: questions.Questions, options: Options, view: View) -> Figures:
    """Figures of the run against the current one: what both said is measured and judged, sampled once."""
    probes = None if options.probes is None else questions.read(options.probes, marked=True)
    start = sides.find(options.start)
    base = sides.common_base([side, current, start])
    bench = Bench(base, [side, current], options.sampling, view)
    bench.put(current, Role.REFERENCE)
    bench.put(side, Role.POLICY)
    replies = replies_of(asked, bench, 1, view)
    prompts = [reply.asked for reply in replies]
    before, after = [reply.before[0] for reply in replies], [reply.after[0] for reply in replies]
    comparisons = compare.between(prompts, current.name, before, side.name, after)
    with closing(open_judge(options.judge, lambda run: compare.local(bench))) as judge:
        judged = compare.judge_all(comparisons, judge, view)
    found = measure(replies) | compare.figures_of(judged.votes, side.name)
    if probes is not None:
        suite = replies_of(probes, bench, 1, view, collector=bench.greedy)
        found["new_failures"] = measure_probes(suite)["new_failures"]
    bench.put(start, Role.REFERENCE)  # last: up to here the reference is the current one
    drift = kl_of(bench, prompts, after, 1)
    found |= figures.measure("kl_start", {figures.ALL: range(len(drift))}, drift, unit="nats", better="lower")
    return found | _alpha(options.labels)


def _alpha(labels: str | None) -> Figures:
    """Agreement of the labels that were used; none where there are too few, so that its gate cannot pass."""
    if labels is None:
        return {}
    alpha = agreement(items.read(labels).votes).alpha
    return {} if isinstance(alpha, TooFew) else {"alpha": Figure.of(alpha, "", "higher")}


def _record(decided: Event, current: Side, found: Figures, options: Options, run: FinishedRun) -> None:
    """Write promotion.json into the run folder: what was decided, against what, and every figure."""
    record = {
        "schema": 1,
        "time": decided.time,
        "who": decided.who,
        "why": decided.why,
        "run": decided.run,
        "against": current.name,
        "project": str(options.folder),
        "passed": decided.kind == "promoted",
        "figures": {name: figure.record() for name, figure in found.items()},
        "gates": decided.gates,
    }
    with files.explained(run.folder / FILE):
        files.replace(run.folder / FILE, files.dump_json(record, indent=1))
