"""`lite-align judge FILE`: labels of a judge, once it is known how far it agrees with people.

What people labelled is judged first, and kappa measured on it. Only then come the comparisons of the file. Both files
of votes are append-only: a command that was stopped goes on where it was, and what failed is asked again.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lite_align.data.votes import Comparison, Vote
from lite_align.errors import GateFailed, UserError
from lite_align.flywheel import agreement, items
from lite_align.flywheel.judges.humans import HumanAgreement, against_humans
from lite_align.flywheel.judges.judgement import PROBLEM, Judge, Judgement, problems, summary, votes
from lite_align.flywheel.judges.opening import Asked, Loading, load_local, open_judge
from lite_align.flywheel.label.ballot import Ballot
from lite_align.flywheel.rubrics import Rubric
from lite_align.flywheel.rubrics import read as read_rubric
from lite_align.recipe import ModelOptions
from lite_align.train import files
from lite_align.view import View

ENDING, HUMAN_PART, RECORD = ".judged.jsonl", ".people.jsonl", ".judge.json"
TOGETHER = 64
"""Comparisons that are judged before their votes are written."""

MOST_LOST = 0.5
"""A judge that gives no verdict on a larger share of `FEWEST` comparisons or more is not asked on."""

FEWEST = 8


@dataclass(frozen=True)
class JudgeOptions:
    """What is asked of `judge`.

    Attributes:
        asked: the judge.
        out: file of votes; FILE.judged.jsonl where there is none.
        humans: files of votes of people.
        pairs: pairs of candidates a prompt, at most.
        force: write labels that are not proved.
    """

    asked: Asked
    out: Path | None = None
    humans: tuple[str, ...] = ()
    pairs: int = 1
    force: bool = False


def judge(file: str, options: JudgeOptions, view: View) -> None:
    """Judge the comparisons of a file.

    Raises:
        GateFailed: the judge does not agree with people enough, or nobody knows, and it was not forced.
        UserError: the file, the judge or an option cannot be used.
    """
    found = items.read(file, pairs=options.pairs)
    given = agreement.read(options.humans).votes if options.humans else ()
    out = options.out or Path(file).with_name(Path(file).stem + ENDING)
    _check(file, options, out)
    with closing(open_judge(options.asked, loading(options.asked, view))) as one:
        view.section("data", f"{file} · {len(found.comparisons):,} comparisons", *found.notes[1:])
        view.section("judge", one.name, *([f"rubric {one.rubric}"] if one.rubric else []))
        proof, known = prove(one, given, human_part(out), view)
        if not proof.proved and not options.force:
            raise GateFailed(
                f"{proof.verdict} Its labels were not written.",
                details=[
                    f"lite-align agreement {' '.join(options.humans)} {human_part(out)} shows where they differ."
                ],
                remedy="Change the rubric or the judge, label more, or write the labels all the same with --force.",
            )
        with closing(Ballot(out)) as ballot:
            judgements = fill(one, found.comparisons, ballot, known, view, "judge")
            decided = sum(vote.choice in ("a", "b") for vote in said(one, ballot).values())
        _record(options, file, found.sha256, one, proof, out)
        _report(judgements, len(found.comparisons), decided, one, proof, out, view)


def loading(asked: Asked, view: View) -> Loading:
    """Loads the base of a reward run, or the one that is asked for."""

    def load(run: Any) -> Any:
        model = ModelOptions(name=asked.model or "auto") if run is None else run.recipe.model
        local = load_local(model, lambda lowered: view.warn(f"Memory ran out: {lowered}"))
        view.section("model", local.backbone.loaded.name, *local.backbone.notes)
        return local

    return load


def said(judge: Judge, ballot: Ballot) -> dict[str, Vote]:
    """The verdicts of a judge by its rubric in a file of votes, by comparison; what failed is none."""
    own = {name: given.get(judge.name) for name, given in ballot.tally.counting.items()}
    return {
        name: vote
        for name, vote in own.items()
        if vote and vote.rubric == judge.rubric and not (vote.note or "").startswith(PROBLEM)
    }


def fill(
    judge: Judge,
    comparisons: Sequence[Comparison],
    ballot: Ballot,
    elsewhere: Mapping[str, Vote],
    view: View,
    label: str,
) -> list[Judgement]:
    """Write the verdicts that a file of votes lacks, and return those that are new.

    Args:
        judge: that gives them.
        comparisons: that need one.
        ballot: the file.
        elsewhere: verdicts of the same judge that need not be asked for again.
        view: shows progress.
        label: of the progress.

    Raises:
        UserError: it gives no verdict on most of them; what was written before stays.
    """
    here = said(judge, ballot)
    missing = [one for one in comparisons if one.id not in here]
    for one in missing:
        if one.id in elsewhere:
            ballot.append(elsewhere[one.id])
    asked = [one for one in missing if one.id not in elsewhere]
    new: list[Judgement] = []
    with view.bar(label, len(comparisons), "comparisons", len(comparisons) - len(asked)) as bar:
        for start in range(0, len(asked), TOGETHER):
            some = asked[start : start + TOGETHER]
            judgements = judge.judge(some, bar.advance)
            _require_verdicts(judge, judgements)
            for vote in votes(judge, some, judgements):
                ballot.append(vote)
            new += judgements
    return new


def _require_verdicts(judge: Judge, judgements: Sequence[Judgement]) -> None:
    lost = problems(judgements)
    if len(judgements) < FEWEST or lost.total() <= MOST_LOST * len(judgements):
        return
    told = list(dict.fromkeys(one.problem for one in judgements if one.problem))
    raise UserError(
        f"{judge.name} gave no verdict on {lost.total():,} of {len(judgements):,} comparisons.",
        details=told[:3],
        remedy="Their votes were not written. Mend the judge and give the command again; it goes on there.",
    )


def _check(file: str, options: JudgeOptions, out: Path) -> None:
    if not out.parent.is_dir():
        raise UserError(f"There is no folder {out.parent}.", remedy="Make it, or choose another --out.")
    for other in (file, *options.humans):
        if out.exists() and Path(other).exists() and out.samefile(other):
            raise UserError(
                f"{other} is read here: labels of a judge are kept apart.", remedy="Choose another --out."
            )
    if not options.humans and not options.force:
        raise GateFailed(
            "Nobody knows whether this judge agrees with people: there are no labels of people (--humans).",
            remedy=f"Label some 50 of them with lite-align label {file}, and give the votes with --humans; "
            "--force writes labels all the same.",
        )


def human_part(out: Path) -> Path:
    """Where a judge's votes on what people labelled are, beside its votes on a file."""
    return out.with_name(out.name.removesuffix(".jsonl") + HUMAN_PART)


def prove(
    judge: Judge, given: Sequence[Vote], path: Path, view: View
) -> tuple[HumanAgreement, dict[str, Vote]]:
    """Agreement with people, and the verdicts that it rests on, which a file of votes keeps.

    Args:
        judge: is asked what it was not asked before.
        given: votes of people.
        path: of its votes on the same comparisons.
        view: shows progress and figures.
    """
    people = {vote.comparison.id: vote.comparison for vote in given if vote.kind == "human"}
    if not people:
        return against_humans([], given), {}
    with closing(Ballot(path)) as part:
        fill(judge, list(people.values()), part, {}, view, "people's")
        known = said(judge, part)
    proof = against_humans([known[name] for name in people if name in known], given)
    view.section("people", *proof.lines())
    return proof, known


def _record(
    options: JudgeOptions, file: str, sha256: str, judge: Judge, proof: HumanAgreement, out: Path
) -> None:
    """Keep beside the votes what they were made with, by judge."""
    rubric = read_rubric(Rubric, options.asked.rubric).model_dump() if judge.rubric else None
    entry = {
        "kind": judge.kind,
        "rubric": {"hash": judge.rubric, "content": rubric} if rubric else None,
        "data": {"path": file, "sha256": sha256},
        "humans": list(options.humans),
        "agreement": proof.record(),
        "forced": options.force and not proof.proved,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    path = _beside(out)
    with files.explained(path):
        content = {"schema": 1, "judges": {**stored(out), judge.name: entry}}
        files.replace(path, files.dump_json(content, indent=1))


def stored(out: Path) -> dict[str, dict[str, Any]]:
    """What is kept beside a file of votes, by judge; the last one labelled last."""
    path = _beside(out)
    return json.loads(path.read_bytes())["judges"] if path.exists() else {}


def _beside(out: Path) -> Path:
    return out.with_name(out.name.removesuffix(".jsonl") + RECORD)


def _report(
    judgements: Sequence[Judgement],
    comparisons: int,
    decided: int,
    judge: Judge,
    proof: HumanAgreement,
    out: Path,
    view: View,
) -> None:
    before = comparisons - len(judgements)
    view.section("labels", *summary(judgements), *([f"{before:,} were judged before"] if before else []))
    view.section("took", *judge.tell())
    if not proof.proved:
        view.warn(f"These labels are unproved: {proof.verdict}")
    view.section("saved", f"{out} · {comparisons:,} comparisons judged, {decided:,} with a better answer")
    if decided:
        view.section("next", f"lite-align dpo {out}")
    view.json_record(
        {
            "schema": 1,
            "judge": judge.name,
            "out": str(out),
            "comparisons": comparisons,
            "decided": decided,
            "new": len(judgements),
            "problems": dict(problems(judgements)),
            "flagged": sum(bool(one.flagged) for one in judgements),
            "agreement": proof.record(),
        }
    )
