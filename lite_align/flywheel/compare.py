"""`lite-align compare A B …`: answers to the same prompts from one base with its adapters switched, and who wins."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lite_align.data.votes import Comparison, Vote, played
from lite_align.errors import UserError
from lite_align.evaluate import gates, winrate
from lite_align.evaluate.figures import Figure, Figures
from lite_align.evaluate.statistics import Interval, bracket, percent
from lite_align.flywheel import gating, items, questions, sides
from lite_align.flywheel.bench import Answer, Bench
from lite_align.flywheel.judges import humans, judgement
from lite_align.flywheel.judges.judgement import Judge, Judgement
from lite_align.flywheel.judges.opening import Asked as AskedJudge
from lite_align.flywheel.judges.opening import Local, open_judge
from lite_align.flywheel.questions import Questions
from lite_align.flywheel.sides import Side
from lite_align.stages.rollouts import Asked
from lite_align.stages.speaker import Sampling
from lite_align.train import files
from lite_align.train.run import require_unused
from lite_align.view import View, number

FILE, ROWS = "compare.json", "comparisons.jsonl"
PEOPLE = "people"
"""In place of a judge: the comparisons are written for `lite-align label`."""

SAME = "the same answer"
"""Note of a tie that no judge was asked about."""


@dataclass(frozen=True)
class Options:
    """What is compared, and who judges.

    Attributes:
        data: file of prompts; None: what the last run held out.
        prompts: most prompts.
        samples: answers of each side to each prompt; the first is compared with the first, and so on.
        sampling: how they are drawn.
        judge: who judges; None: people do, later.
        votes: file of votes on a comparison that was made before.
        humans: file of votes of people, with which the judge is compared.
        model: name of the base, where nothing says it.
        out: folder of the results.
        gates: conditions on the last side against the first.
        command: as typed.
    """

    data: str | None
    prompts: int
    samples: int
    sampling: Sampling
    judge: AskedJudge | None
    votes: str | None = None
    humans: str | None = None
    model: str | None = None
    out: Path | None = None
    gates: tuple[str, ...] = ()
    command: str = ""


@dataclass(frozen=True)
class Judged:
    """Votes on comparisons, and how they came about.

    Attributes:
        votes: one a comparison.
        judgements: of those that a judge was asked about.
        judge: its name.
        told: what the judge took, for people.
    """

    votes: Sequence[Vote]
    judgements: Sequence[Judgement]
    judge: str
    told: Sequence[str]


def compare(names: Sequence[str], options: Options, view: View) -> int:
    """Compare sides, write compare.json and comparisons.jsonl, and return the exit code: 3 if a gate does not pass.

    Raises:
        UserError: there are fewer than two sides, they have different bases, or nothing to ask them.
    """
    wanted = [gates.parse(text) for text in options.gates]
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError("Two different sides are needed.", remedy="lite-align compare base runs/my-dpo")
    out = options.out or _folder(names)
    require_unused(out)
    people = None if options.humans is None else items.read(options.humans).votes
    if options.votes is not None:
        judged = _counted(options.votes, people)
    else:
        found = _answered(names, options, view)
        if options.judge is None:
            return _for_people(found, out, view)
        judged = judge_all(found.comparisons, found.judge, view)
        found.judge.close()
    record = {
        "schema": 1,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": options.command,
        "sides": list(names),
        **outcome(judged, names, people),
    }
    figures = {name: Figure.read(one) for name, one in record["figures"].items()}
    out.mkdir(parents=True, exist_ok=True)
    with files.explained(out / FILE):
        files.replace(out / ROWS, b"".join(files.dump_json(vote.record()) for vote in judged.votes))
        files.replace(out / FILE, files.dump_json(record, indent=1))
    show(record, figures, judged, view)
    view.section("saved", f"{out}")
    view.section("next", f"lite-align report {out}")
    view.json_record(record)
    return gating.exit_code(gating.settle(wanted, figures, out, view) if wanted else [])


def _counted(votes: str, people: Sequence[Vote] | None) -> Judged:
    """The votes of a file; measured on people's they must be of one judge."""
    found = played(items.read(votes).votes)
    if people is not None and len({vote.annotator for vote in found}) > 1:
        raise UserError(
            f"{votes} holds votes of several annotators; --humans measures one judge.",
            remedy="Leave --humans out; lite-align agreement compares annotators.",
        )
    return Judged(found, (), f"votes of {votes}", ())


def _folder(names: Sequence[str]) -> Path:
    """A folder that is not there yet."""
    stem = "compare-" + "-vs-".join(Path(name).name for name in names)
    numbered = (Path("runs") / f"{stem}-{n:04}" for n in itertools.count(1))
    return next(folder for folder in numbered if not folder.exists())


# Answers.


@dataclass(frozen=True)
class Answered:
    """Comparisons of what the sides said, and the judge, if one was asked for, on the same base."""

    comparisons: Sequence[Comparison]
    judge: Any


def _answered(names: Sequence[str], options: Options, view: View) -> Answered:
    found = [sides.find(name) for name in names]
    base = sides.common_base(found, options.model)
    asked = None if options.data is None else questions.read(options.data)
    if asked is None and found[-1].run is None:
        raise UserError("Nothing says what to ask.", remedy="Give a file of prompts with --data.")
    bench = Bench(base, found, options.sampling, view)
    judge = None if options.judge is None else open_judge(options.judge, lambda run: local(bench))
    if asked is None:
        asked = _held_out(found[-1], bench)
    asked = asked.first(options.prompts)
    view.section("compare", " against ".join(names), asked.told())
    return Answered(_comparisons(found, asked, bench, options.samples, view), judge)


def local(bench: Bench) -> Local:
    """The base of a bench, as judges need it."""
    return Local(bench.backbone, bench.renderer, bench.budget, bench.positions)


def _held_out(side: Side, bench: Bench) -> Questions:
    assert side.run is not None
    examples = questions.held_out(side.run, bench.renderer).examples
    sha256 = str((side.run.record.get("hashes") or {}).get("data", ""))
    return questions.of_rows(f"{side.name} (held out)", sha256, [row for row, _ in examples])


def _comparisons(
    found: Sequence[Side], asked: Questions, bench: Bench, samples: int, view: View
) -> list[Comparison]:
    """Every two sides on every prompt: an adapter is put on the base once, and every prompt rendered once."""
    prompts = bench.ask(asked)
    answers: dict[str, list[Answer]] = {}
    with view.bar("answers", len(found) * samples * len(prompts), "answers") as bar:
        for side in found:
            answers[side.name] = bench.answers(bench.put(side), prompts, samples, bar.advance)
    return [
        comparison
        for a, b in itertools.combinations(answers, 2)
        for comparison in between(prompts, a, answers[a], b, answers[b])
    ]


def between(
    prompts: Sequence[Asked], a: str, first: Sequence[Answer], b: str, second: Sequence[Answer]
) -> list[Comparison]:
    """The answers of two sides to the same prompts, side by side."""
    samples = len(first) // len(prompts)
    return [
        Comparison(
            prompt=prompts[n // samples].row.messages,
            a=one.text,
            b=other.text,
            category=prompts[n // samples].row.category,
            model_a=a,
            model_b=b,
        )
        for n, (one, other) in enumerate(zip(first, second, strict=True))
    ]


def _for_people(found: Answered, out: Path, view: View) -> int:
    different = [one for one in found.comparisons if one.a != one.b]
    if not different:
        raise UserError("All answers are the same: there is nothing to compare.")
    out.mkdir(parents=True, exist_ok=True)
    path = out / "to-label.jsonl"
    with files.explained(path):
        files.replace(path, b"".join(files.dump_json(one.record()) for one in different))
    same = len(found.comparisons) - len(different)
    view.section("saved", f"{path}: {len(different):,} comparisons; {same:,} with the same answer left out")
    view.section("next", f"lite-align label {path}")
    return 0


# Judging.


def judge_all(comparisons: Sequence[Comparison], judge: Judge, view: View) -> Judged:
    """Votes on all comparisons; two answers that are the same tie without being asked about."""
    different = [one for one in comparisons if one.a != one.b]
    with view.bar("judge", len(different), "comparisons") as bar:
        judgements = judge.judge(different, bar.advance)
    asked = iter(judgement.votes(judge, different, judgements))
    votes = [next(asked) if one.a != one.b else _tie(one, judge) for one in comparisons]
    return Judged(votes, judgements, judge.name, judge.tell())


def _tie(comparison: Comparison, judge: Judge) -> Vote:
    return Vote(comparison=comparison, choice="tie", annotator=judge.name, kind=judge.kind, note=SAME)


def figures_of(votes: Sequence[Vote], name: str) -> Figures:
    """Win rates of one side against the other: over all prompts, at equal length, by category; categories it loses."""
    found = winrate.outcomes(votes, name)
    values, prompts = [one.value for one in found], [one.prompt for one in found]
    figures: Figures = {"win_rate": Figure.of(winrate.win_rate(values, prompts), "share", "higher")}
    lengths = [one.length_difference for one in found]
    controlled = winrate.length_controlled(values, lengths, prompts)
    figures["lc_win_rate"] = Figure.of(controlled, "share", "higher")
    categories = winrate.by_category(found)
    for category, rate in categories.items():
        figures[f"win_rate/{category}"] = Figure.of(rate.rate, "share", "higher")
    losing = sum(rate.significant_loss for rate in categories.values())
    ends = Interval(losing, losing, losing, len(categories))
    figures["losing_categories"] = Figure.of(ends, "categories", "lower")
    return figures


def outcome(judged: Judged, names: Sequence[str], people: Sequence[Vote] | None) -> dict[str, Any]:
    """What compare.json says: figures of the last side against the first, a ranking, and what the judge is worth."""
    first, last = names[0], names[-1]
    duel = [vote for vote in judged.votes if _sides(vote) == {first, last}]
    if not duel:
        raise UserError(
            f"No vote compares {first} with {last}.", remedy="Give the names that stand in the votes."
        )
    agreement = None
    if people is not None:
        agreement = humans.against_humans(judged.votes, people).record()
    bias = judgement.position_bias(judged.judgements)
    return {
        "judge": judged.judge,
        "figures": {name: figure.record() for name, figure in figures_of(duel, last).items()},
        "ranking": ranking(judged.votes) if len(names) > 2 else None,
        "same": sum(vote.note == SAME for vote in judged.votes),
        "position_bias": None if bias is None else asdict(bias),
        "failures": dict(judgement.problems(judged.judgements)),
        "flagged": sum(bool(one.flagged) for one in judged.judgements),
        "agreement": agreement,
    }


def _sides(vote: Vote) -> set[str | None]:
    return {vote.comparison.model_a, vote.comparison.model_b}


def ranking(votes: Sequence[Vote]) -> dict[str, dict[str, Any]]:
    """Bradley–Terry strengths, the best first."""
    values = {"a": 0.0, "b": 1.0, "tie": 0.5, "bad": 0.5}
    games = [
        winrate.Game(str(one.model_a), str(one.model_b), values[vote.choice], one.prompt)
        for vote in votes
        if vote.choice in values and (one := vote.comparison)
    ]
    return {name: asdict(strength) for name, strength in winrate.bradley_terry(games).items()}


def show(record: dict[str, Any], figures: Figures, judged: Judged, view: View) -> None:
    """Win rate and ranking, then what the judge is worth."""
    first, last = record["sides"][0], record["sides"][-1]
    counts = Counter(_winner(vote) for vote in judged.votes if _sides(vote) == {first, last})
    rate = figures["win_rate"].interval
    view.section(
        "win rate",
        f"{last} against {first}: {percent(rate.value)} {bracket(rate)} of {rate.count:,} prompts · "
        f"{counts[last]:,} won, {counts['tie']:,} tied, {counts[first]:,} lost",
        f"at equal length {percent(figures['lc_win_rate'].value)} {bracket(figures['lc_win_rate'].interval)}",
        verdict(rate, last),
    )
    rows = [
        (name.partition("/")[2], f"{percent(one.value)} {bracket(one.interval)}", f"{one.count:,}")
        for name, one in figures.items()
        if name.startswith("win_rate/")
    ]
    if rows:
        view.table("By category", ("category", "win rate [95 %]", "prompts"), rows)
    if record["ranking"]:
        strengths = [
            (name, f"{number(one['value'])} [{number(one['low'])}, {number(one['high'])}]")
            for name, one in record["ranking"].items()
        ]
        view.table("Ranking (Bradley–Terry)", ("side", "strength [95 %]"), strengths)
    lines = judgement.summary(judged.judgements) if judged.judgements else []
    view.section("judge", judged.judge, *lines, *judged.told)
    if record["agreement"] is None:
        view.section(
            "agreement", "not measured: how far this judge agrees with people is not known (--humans)"
        )


def _winner(vote: Vote) -> str:
    names = {"a": vote.comparison.model_a, "b": vote.comparison.model_b}
    return str(names.get(vote.choice) or "tie")


def verdict(rate: Interval, name: str) -> str:
    """One of the three verdict words."""
    word = "better" if rate.low > 0.5 else "worse" if rate.high < 0.5 else "no evidence either way"
    return f"{name}: {word}."
