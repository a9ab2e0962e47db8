"""`lite-align agreement`: do annotators agree, what is to be discussed, and the pairs that their votes come to."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lite_align.data import formats, lint, sources
from lite_align.data.formats.votes import VoteRow
from lite_align.data.majority import Decision, decide, meant
from lite_align.data.types import Message, Pair, Source
from lite_align.data.votes import Vote
from lite_align.errors import DataError, UserError
from lite_align.evaluate.agreement import (
    WEAK,
    Agreement,
    Annotator,
    Bias,
    Disagreement,
    Drift,
    Figure,
    TooFew,
    agreement,
)
from lite_align.evaluate.statistics import CONFIDENCE, Interval, bracket, holm, percent
from lite_align.stages.check import as_json
from lite_align.view import View

WHO = {"human": "person", "ai": "language model", "rule": "program", "reward": "reward model"}
ALONE = {"human": "people", "ai": "language models", "rule": "programs", "reward": "reward models"}
SHOWN = 5
"""Comparisons to discuss that are printed; --json has all of them."""

_EXCERPT = 160


@dataclass(frozen=True)
class Ballots:
    """The votes of some files, in the order of the files, and where the first vote on each comparison stands."""

    votes: tuple[Vote, ...]
    places: Mapping[str, Source]


def report(paths: Sequence[str], view: View, *, pairs: Path | None = None) -> None:
    """Show every figure of some files of votes; with `pairs` write what the votes come to as training pairs.

    Raises:
        DataError: rows are no votes.
        UserError: `pairs` exists already.
    """
    if pairs is not None and pairs.exists():
        raise UserError(f"{pairs} exists already", remedy="Give --to pairs the name of a new file.")
    ballots = read(paths)
    found, decisions = agreement(ballots.votes), decide(ballots.votes)
    _show_data(paths, ballots, found, decisions, view)
    _show_agreement(found, view)
    _show_annotators(found.annotators, view)
    _show_disagreements(found.discuss, view)
    for warning in warnings(found):
        view.warn(warning)
    view.section("verdict", verdict(found.alpha))
    if pairs is not None:
        rows = pair_rows(decisions, ballots.places)
        if not rows:
            raise DataError(
                "no comparison has a preferred answer", remedy="Nothing was written; collect more votes."
            )
        lint.write_rows(rows, pairs)
        view.section("saved", f"{pairs} · {len(rows):,} pairs with weights")
        view.section("next", f"lite-align dpo {pairs}")
    view.json_record(record(found, decisions))


def read(paths: Sequence[str]) -> Ballots:
    """Read files of votes; a vote in a later file replaces one of the same annotator in an earlier one.

    Raises:
        DataError: a file holds something else, or rows do not fit.
    """
    votes: list[Vote] = []
    places: dict[str, Source] = {}
    for path in paths:
        table = sources.read(path)
        detection = formats.detect(table)
        if detection.name != "votes":
            raise DataError(
                f"{path} holds {detection.name} ({detection.description}), not votes",
                remedy="Give files of lite-align label, judge or compare.",
            )
        formats.convert(table, detection)
        for row in formats.read_rows(table, detection)[0]:
            assert isinstance(row, VoteRow)
            votes.append(row.vote)
            places.setdefault(row.vote.comparison.id, row.source)
    return Ballots(tuple(votes), places)


def pair_rows(decisions: Sequence[Decision], places: Mapping[str, Source]) -> list[dict[str, Any]]:
    """Training pairs as rows of `pair.chat`, with weight, category, id, and who voted."""
    rows: list[dict[str, Any]] = []
    for decision in decisions:
        if decision.better is None:
            continue
        one = decision.comparison
        chosen, rejected = ((Message("assistant", text),) for text in (decision.better, decision.worse))
        pair = Pair(
            places[one.id],
            one.category,
            one.id,
            prompt=one.prompt,
            chosen=chosen,
            rejected=rejected,
            weight=decision.weight,
        )
        rows.append({**as_json(pair), "annotators": sorted(vote.annotator for vote in decision.votes)})
    return rows


# What a person sees


def verdict(alpha: Figure) -> str:
    """Whether labels that agree so much are a base for decisions."""
    if isinstance(alpha, TooFew):
        return f"Too little evidence: {alpha.why} comparisons with votes of several annotators."
    figure = f"alpha {shown(alpha)}"
    if alpha.value < WEAK:
        return f"The labels do not agree enough to decide anything on: {figure}, below {WEAK}."
    if alpha.low < WEAK:
        return (
            f"The labels seem to agree, but that is not certain: {figure}; the interval reaches below {WEAK}."
        )
    return f"The labels agree well enough to train and to decide on: {figure}."


def warnings(found: Agreement) -> Iterator[str]:
    """What is wrong with labels or labellers, beyond what so many annotators would show by chance."""
    if isinstance(found.alpha, Interval) and found.alpha.value < WEAK:
        yield (
            f"alpha is below {WEAK}: annotators see different things. Discuss the comparisons above, write what was "
            "agreed into the rubric, and label again before training on these votes."
        )
    names = list(found.annotators)
    habits = {
        "the answer shown first": [found.annotators[name].first for name in names],
        "the longer answer": [found.annotators[name].longer for name in names],
    }
    for what, biases in habits.items():
        measured = [(name, bias) for name, bias in zip(names, biases) if isinstance(bias, Bias)]
        for (name, bias), p in zip(measured, holm([bias.p for _, bias in measured])):
            if p < 1 - CONFIDENCE:
                yield f"{name} chooses {what} in {percent(bias.share.value)} {bracket(bias.share)} of choices."
    drifts = [(name, one.drift) for name, one in found.annotators.items() if one.drift.p is not None]
    for (name, drift), p in zip(drifts, holm([drift.p or 0.0 for _, drift in drifts])):
        if p < 1 - CONFIDENCE:
            first, last = shown(drift.first), shown(drift.last)
            yield f"The agreement of {name} with the others changed: kappa {first} at first, {last} at last."


def shown(figure: Figure, *, share: bool = False) -> str:
    """A figure with its interval, or that there are too few."""
    if isinstance(figure, TooFew):
        return figure.why
    if share:
        return f"{percent(figure.value)} {bracket(figure)}"
    return f"{figure.value:.2f} [{figure.low:.2f}, {figure.high:.2f}]".replace("-", "−")


def _show_data(
    paths: Sequence[str], ballots: Ballots, found: Agreement, decisions: Sequence[Decision], view: View
) -> None:
    decided = sum(decision.better is not None for decision in decisions)
    undecided = Counter(
        decision.why.partition(",")[0].partition(":")[0] for decision in decisions if not decision.better
    )
    left = " · ".join(f"{why} ({count:,})" for why, count in undecided.most_common())
    view.section(
        "data",
        f"{', '.join(paths)} · {len(ballots.votes):,} votes of {len(found.annotators):,} annotators",
        f"{len(decisions):,} comparisons, {found.several:,} of them labelled by several annotators",
        f"{decided:,} with a preferred answer" + f"; without: {left}" * bool(left),
    )


def _show_agreement(found: Agreement, view: View) -> None:
    figures = {
        "Krippendorff's alpha": found.alpha,
        "Fleiss' kappa": found.fleiss,
        **{f"alpha, {ALONE[kind]} alone": figure for kind, figure in found.kinds.items()},
        **{f"alpha, {category}": figure for category, figure in found.categories.items()},
    }
    if len(found.annotators) > 2:
        figures |= {f"Cohen's kappa, {one} and {other}": kappa for (one, other), kappa in found.pairs.items()}
    rows = [(name, shown(figure), f"{figure.count:,}") for name, figure in figures.items()]
    view.table("Agreement", ("of", "value [95 %]", "comparisons"), rows)


def _show_annotators(annotators: Mapping[str, Annotator], view: View) -> None:
    rows = [
        (
            name,
            WHO[one.kind],
            f"{one.votes:,}",
            f"{one.skipped:,}",
            shown(one.kappa),
            _course(one.drift),
        )
        for name, one in annotators.items()
    ]
    header = ("annotator", "who", "votes", "skipped", "kappa with most others", "early → late")
    view.table("Annotators", header, rows)
    habits = [
        (
            name,
            shown(one.calibration, share=True),
            shown(one.consistency, share=True),
            *(
                shown(bias if isinstance(bias, TooFew) else bias.share, share=True)
                for bias in (one.first, one.longer)
            ),
        )
        for name, one in annotators.items()
    ]
    header = (
        "annotator",
        "right where known",
        "same when asked again",
        "takes the first",
        "takes the longer",
    )
    view.table("Habits", header, habits)


def _course(drift: Drift) -> str:
    """Kappa early and late; the intervals are left to --json."""
    if drift.p is None:
        return shown(drift.first)
    ends = (
        f"{part.value:.2f}" if isinstance(part, Interval) else part.why for part in (drift.first, drift.last)
    )
    return f"{' → '.join(ends)} (p {drift.p:.2f})".replace("-", "−")


def _show_disagreements(items: Sequence[Disagreement], view: View) -> None:
    for number, item in enumerate(items[:SHOWN]):
        one = item.comparison
        said = " · ".join(f"{vote.annotator}: {meant(vote, one)}" for vote in item.votes)
        notes = [f"{vote.annotator} notes: {_excerpt(vote.note)}" for vote in item.votes if vote.note]
        view.section(
            "" if number else "discuss",
            " · ".join(filter(None, (said, one.category, one.id))),
            f"prompt: {_excerpt(one.prompt[-1].content)}",
            f"a: {_excerpt(one.a)}",
            f"b: {_excerpt(one.b)}",
            *notes,
        )
    if len(items) > SHOWN:
        view.section(
            "",
            f"… and {len(items) - SHOWN:,} more comparisons on which annotators differ (--json lists them)",
        )


def _excerpt(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _EXCERPT else line[: _EXCERPT - 2] + " …"


# What a program reads


def record(found: Agreement, decisions: Sequence[Decision]) -> dict[str, Any]:
    """All figures as JSON, named as in eval.json (`alpha`, `alpha/fact`); one that was not computed is null."""
    figures = {"alpha": found.alpha, "fleiss": found.fleiss}
    figures |= {f"alpha/{name}": figure for name, figure in {**found.kinds, **found.categories}.items()}
    return {
        "schema": 1,
        "comparisons": found.comparisons,
        "several": found.several,
        "figures": {name: figure_record(figure) for name, figure in figures.items()},
        "annotators": {name: _annotator(one) for name, one in found.annotators.items()},
        "pairs": [
            {"annotators": list(names), "kappa": figure_record(figure)}
            for names, figure in found.pairs.items()
        ],
        "discuss": [
            {
                "id": item.comparison.id,
                "category": item.comparison.category,
                "choices": {vote.annotator: meant(vote, item.comparison) for vote in item.votes},
            }
            for item in found.discuss
        ],
        "preferred": sum(decision.better is not None for decision in decisions),
        "left_out": {one.comparison.id: one.why for one in decisions if one.better is None},
        "warnings": list(warnings(found)),
    }


def _annotator(one: Annotator) -> dict[str, Any]:
    return {
        "kind": one.kind,
        "votes": one.votes,
        "skipped": one.skipped,
        "kappa": figure_record(one.kappa),
        "first_third": figure_record(one.drift.first),
        "last_third": figure_record(one.drift.last),
        "drift_p": one.drift.p,
        "calibration": figure_record(one.calibration),
        "consistency": figure_record(one.consistency),
        "takes_first": _bias(one.first),
        "takes_longer": _bias(one.longer),
    }


def _bias(bias: Bias | TooFew) -> dict[str, Any]:
    return figure_record(bias) if isinstance(bias, TooFew) else {**figure_record(bias.share), "p": bias.p}


def figure_record(figure: Figure) -> dict[str, Any]:
    """A figure as JSON; one that was not computed has its count alone."""
    if isinstance(figure, TooFew):
        return {"value": None, "low": None, "high": None, "count": figure.count}
    return asdict(figure)
