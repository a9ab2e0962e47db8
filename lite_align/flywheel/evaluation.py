"""`lite-align eval RUN`: what a model gained and lost on held-out rows and on probes, against what it started from."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lite_align.data.types import Chat, Pair, Tree
from lite_align.errors import UserError
from lite_align.evaluate import figures, gates, report
from lite_align.evaluate.figures import Figure, Figures
from lite_align.evaluate.statistics import signed
from lite_align.flywheel import gating, questions, sides, standard_tasks
from lite_align.flywheel.bench import Answer, Bench
from lite_align.flywheel.questions import Measurable, Questions, expectation
from lite_align.flywheel.replies import Reply, measure, measure_probes
from lite_align.flywheel.standard_tasks import Tasks
from lite_align.losses import ppo
from lite_align.model.backbone import Role
from lite_align.stages.rollouts import Asked, Collector
from lite_align.stages.speaker import Sampling
from lite_align.train import files
from lite_align.view import View, number

FILE, ROWS = "eval.json", "eval.jsonl"


@dataclass(frozen=True)
class Options:
    """What `eval` measures.

    Attributes:
        data: file of pairs, conversations or prompts in place of what the run held out.
        probes: file of prompts, some of them marked `expect`.
        prompts: most prompts of the data that are answered.
        samples: answers to each.
        sampling: how they are drawn.
        model: name of the base, where nothing says it.
        out: folder of the results; the run's own if None.
        gates: conditions, see `evaluate.gates`.
        command: as typed, for the record.
        tasks: standard tasks, see `standard_tasks`.
    """

    data: str | None
    probes: str | None
    prompts: int
    samples: int
    sampling: Sampling
    model: str | None = None
    out: Path | None = None
    gates: tuple[str, ...] = ()
    command: str = ""
    tasks: Tasks | None = None


def evaluate(name: str, options: Options, view: View) -> int:
    """Measure a run or an adapter, write eval.json and eval.jsonl, and return the exit code: 3 if a gate does not pass.

    Raises:
        UserError: it is nothing that can be measured, or there is nothing to measure it on.
    """
    wanted = [gates.parse(text) for text in options.gates]
    side = sides.find(name)
    if side.adapter is None:
        raise UserError("The base is what others are measured against.", remedy="Give a run or an adapter.")
    if side.run is None and options.data is None and options.probes is None:
        raise UserError(f"{name} held nothing out.", remedy="Give --data FILE or --probes FILE.")
    out = options.out or (side.run.folder if side.run is not None else None)
    if out is None:
        raise UserError(f"{name} is no run folder to write to.", remedy="Give --out FOLDER.")
    if options.tasks is not None:
        standard_tasks.harness()
    started = time.monotonic()
    given = None if options.data is None else questions.read(options.data, marked=True)
    probes = None if options.probes is None else questions.read(options.probes, marked=True)
    base = sides.common_base([side], options.model)
    bench = Bench(base, [side], options.sampling, view)
    bench.put(side.reference, Role.REFERENCE)
    bench.put(side, Role.POLICY)
    rows = _rows(side, options, bench)
    if rows.dropped:
        rules = " · ".join(f"{count:,} by {rule}" for rule, count in rows.dropped.items())
        view.warn(f"{sum(rows.dropped.values()):,} {rows.noun} of {options.data} are not measured: {rules}")
    found = _measured_rows(rows.examples, bench, _beta(side), view)
    if given is None and side.run is not None:
        given = _held_out_questions(side, [row for row, _ in rows.examples])
    given = None if given is None else given.first(options.prompts)
    told = [one.told() for one in (given, probes) if one is not None]
    view.section("eval", f"{side.name} against {side.reference.name}", *told)
    sampled = [] if given is None else replies_of(given, bench, options.samples, view)
    probed = [] if probes is None else replies_of(probes, bench, 1, view, collector=bench.greedy)
    found |= measure(sampled) | measure_probes(probed)
    if options.tasks is not None:
        found |= standard_tasks.measure(options.tasks, bench)
    record = {
        "schema": 1,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": options.command,
        "side": side.facts,
        "against": side.reference.facts,
        "data": _data_record(given, rows),
        "probes": None if probes is None else _data_record(probes, Measurable()),
        "sampling": {**asdict(options.sampling), "samples": options.samples},
        "seconds": round(time.monotonic() - started, 1),
        "figures": {label: figure.record() for label, figure in found.items()},
    }
    out.mkdir(parents=True, exist_ok=True)
    with files.explained(out / FILE):
        files.replace(out / ROWS, b"".join(files.dump_json(reply.row()) for reply in (*sampled, *probed)))
        files.replace(out / FILE, files.dump_json(record, indent=1))
    show(found, view)
    outcomes = gating.settle(wanted, found, out, view) if wanted else []
    page = report.write(out) if side.run is not None and out == side.run.folder else None
    view.section("saved", f"{out / FILE}" + (f", {page}" if page else ""))
    view.json_record(record)
    return gating.exit_code(outcomes)


def _rows(side: sides.Side, options: Options, bench: Bench) -> Measurable:
    """The rows whose log-probs are measured: of the file that was given, or held out by the run."""
    if options.data is not None:
        return questions.rows_of(options.data, bench.positions, bench.renderer)
    return Measurable() if side.run is None else questions.held_out(side.run, bench.renderer)


def _held_out_questions(side: sides.Side, found: Sequence[Any]) -> Questions:
    assert side.run is not None
    sha256 = str((side.run.record.get("hashes") or {}).get("data", ""))
    return questions.of_rows(f"{side.name} (held out)", sha256, found)


def _beta(side: sides.Side) -> float:
    """What a margin is multiplied with: the run's own beta, 1 where it has none."""
    value = getattr(getattr(side.run and side.run.recipe, "loss", None), "beta", 1.0)
    return value if isinstance(value, float) else 1.0


def _measured_rows(examples: Sequence[tuple[Any, Tree]], bench: Bench, beta: float, view: View) -> Figures:
    """Loss of the good answers, and of pairs the margin and the share that is ranked right."""
    kept = [(row, tree) for row, tree in examples if isinstance(row, Pair | Chat)]
    if not kept:
        return {}
    trees = [replace(tree, key=number) for number, (_, tree) in enumerate(kept)]
    with view.bar("held out", 2 * len(trees), "rows") as bar:
        before, after = (bench.logps(role, trees, bar.advance) for role in (Role.REFERENCE, Role.POLICY))
    sizes = [sum(tree.root_trained) + sum(tree.leaves[0].trained) for tree in trees]
    places = figures.groups([row.category for row, _ in kept], [len(tree.root) for tree in trees])

    def loss(logps: Sequence[Sequence[float]]) -> list[float]:
        return [-one[0] / max(1, size) for one, size in zip(logps, sizes, strict=True)]

    found = figures.measure("loss", places, loss(after), loss(before), unit="nats", better="lower")
    if not all(isinstance(row, Pair) for row, _ in kept):
        return found
    gaps = [[chosen - rejected for chosen, rejected in logps] for logps in (before, after)]
    margins = [beta * (now - was) for was, now in zip(*gaps, strict=True)]
    ranked = [[0.5 * (1 + (gap > 0) - (gap < 0)) for gap in side] for side in (*gaps, margins)]
    found |= figures.measure("margin", places, margins, [0.0] * len(margins), better="higher")
    found |= figures.measure(
        "accuracy", places, ranked[2], [0.5] * len(margins), unit="share", counted=True, better="higher"
    )
    return found | figures.measure(
        "prefers_chosen", places, ranked[1], ranked[0], unit="share", counted=True, better="higher"
    )


def replies_of(
    asked: Questions, bench: Bench, samples: int, view: View, *, collector: Collector | None = None
) -> list[Reply]:
    """Both sides' answers to the same prompts, with the same random numbers; see `Bench.answers`."""
    prompts = bench.ask(asked)
    with view.bar("answers", 2 * samples * len(prompts), "answers") as bar:
        before, after = (
            bench.answers(role, prompts, samples, bar.advance, collector=collector)
            for role in (Role.REFERENCE, Role.POLICY)
        )
    kl = kl_of(bench, prompts, after, samples)
    groups = [slice(n * samples, (n + 1) * samples) for n in range(len(prompts))]
    return [
        Reply(one, asked.name, expectation(one.columns, one.row.source), before[own], after[own], kl[own])
        for one, own in zip(prompts, groups, strict=True)
    ]


def kl_of(bench: Bench, prompts: Sequence[Asked], answers: Sequence[Answer], samples: int) -> list[float]:
    """KL of POLICY to REFERENCE in each of POLICY's answers, nats (k1: the sum of the log-ratios of its tokens)."""
    rollout = bench.collector.score(prompts, [answer.sampled for answer in answers], samples)
    return rollout.ragged.padded(ppo.k1(rollout.logps, rollout.reference_logps)).sum(1).tolist()


def _data_record(asked: Questions | None, rows: Measurable) -> dict[str, Any]:
    name, sha256, prompts = (asked.name, asked.sha256, len(asked.prompts)) if asked else ("", "", 0)
    measured = {"rows": len(rows.examples), "kind": rows.noun, "dropped": dict(rows.dropped)}
    return {"path": name, "sha256": sha256, "prompts": prompts, **measured}


BY_CATEGORY = ("accuracy", "refusal", "tokens", "repetition", "rule_score")
"""Figures of categories that are shown; all of them stand in eval.json and in the report."""


def show(found: Figures, view: View) -> None:
    """A table of figures over all prompts, and one by category: before → after."""
    rows = [
        (
            label,
            "–" if figure.before is None else number(figure.before),
            f"{number(figure.value)} [{number(figure.low)}, {number(figure.high)}]",
            "–" if figure.change is None else signed(figure.change),
            f"{figure.count:,}",
            figure.unit,
        )
        for label, figure in found.items()
        if "/" not in label
    ]
    view.table(
        "Held out and probes", ("figure", "before", "after [95 %]", "change [95 %]", "n", "unit"), rows
    )
    names = [name for name in BY_CATEGORY if any(label.startswith(f"{name}/") for label in found)]
    groups = dict.fromkeys(label.partition("/")[2] for label in found if "/" in label)
    rows = [(group, *(_change(found.get(f"{name}/{group}")) for name in names)) for group in groups]
    if rows:
        view.table("By category and length of the prompt", ("", *names), rows)


def _change(figure: Figure | None) -> str:
    if figure is None:
        return "–"
    before = "" if figure.before is None else f"{number(figure.before)} → "
    return before + number(figure.value)
