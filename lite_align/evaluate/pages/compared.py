"""A page about a comparison of models: who wins, how far the judge can be trusted, and what was compared."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lite_align.data.votes import Vote, played
from lite_align.errors import UserError
from lite_align.evaluate import findings
from lite_align.evaluate.curves import RUNS
from lite_align.evaluate.folder import Record, json_object, lines
from lite_align.evaluate.pages import badges, figures, page
from lite_align.evaluate.pages.answers import Shown, Side, Span, differences, groups
from lite_align.evaluate.pages.figures import Measured
from lite_align.evaluate.pages.texts import clean, command_line, facts, mapping

RECORD, VOTES = "compare.json", "comparisons.jsonl"
MOST_SHOWN = 60  # the rest stays in comparisons.jsonl, and the page says so
REMEDY = "lite-align compare wrote it; repeat the comparison."

OUTCOMES = {"a": "", "b": "", "tie": "a tie", "bad": "both bad", "skip": "skipped"}
"""What is judged, in words; which answer was preferred stands beside it."""

NOT_MEASURED = "Not measured: how far this judge agrees with people is not known."

KNOWN = (
    *("schema", "time", "command", "sides", "judge", "figures"),
    *("ranking", "position_bias", "failures", "agreement"),
)
"""What the page shows in a place of its own; the rest is shown as it stands."""


def is_comparison(folder: Path) -> bool:
    """Whether a folder holds what `compare` writes, and no run."""
    return (folder / RECORD).is_file() and not (folder / "run.json").is_file()


def write(folder: Path, out: Path | None = None) -> Path:
    """Write the page of a comparison, report.html in its folder or `out`, and return its path.

    Raises:
        UserError: a file cannot be read.
    """
    return page.save(render(folder), out or folder / "report.html")


def render(folder: Path) -> str:
    """The page of a comparison as text."""
    record = json_object(folder / RECORD, REMEDY)
    known, empty = figures.read_figures(record.get("figures"))
    given = record.get("sides")
    sides = [clean(side) for side in given] if isinstance(given, list) else []
    votes = read_votes(folder / VOTES)
    gates = badges.gates(_if_there(folder / "gates.json"), record)
    shown = [comparison(vote, sides, _numbers(votes)) for vote in votes[:MOST_SHOWN]]
    left_out = len(votes) - len(shown)
    values = {
        "sides": [(number, figures.letter(number), name) for number, name in enumerate(sides, 1)],
        "judge": clean(record.get("judge") or ""),
        "verdict": verdict(known.get("win_rate"), known.get("lc_win_rate"), sides),
        "top": top(known, votes, sides),
        "gates": gates,
        "gate_badges": badges.gate_badges(gates),
        "evaluation": {
            "title": "Figures",
            "lines": figures.lines(known),
            "plots": [*ranking(record.get("ranking")), *figures.plots(known)],
            "with_before": any(one.before is not None for one in known.values()),
            "empty": empty,
            "facts": [],
        },
        "judge_plots": judge_plots(record),
        "failures": facts(mapping(record.get("failures"))),
        "agreement": agreement(record.get("agreement")),
        "rest": facts({key: value for key, value in record.items() if key not in KNOWN}),
        "answers": shown,
        "answers_title": "Comparisons",
        "answers_note": "Underlined: words that only one of the two has. The judge did not know whose an answer was.",
        "answers_left_out": f"{left_out:,} more are in {VOTES}." if left_out > 0 else "",
        "groups": groups(shown),
        "results": results(votes[:MOST_SHOWN], sides),
        "command": command_line(record.get("command")),
        "time": clean(record.get("time") or ""),
    }
    return page.fill("compared.html.j2", values)


def _if_there(path: Path) -> Record:
    return json_object(path, REMEDY) if path.exists() else {}


def ranking(block: object) -> list[figures.Plot]:
    """The strengths of several sides, in the order of the record; none of two."""
    strengths = [
        (clean(name), one) for name, row in mapping(block).items() if (one := Measured.read(row)) is not None
    ]
    return [figures.plot("strength", strengths)] if strengths else []


def judge_plots(record: Record) -> list[figures.Plot]:
    """What is known of the judge: whether the place of an answer moves it, and how far it agrees with people."""
    place = Measured.read({**mapping(record.get("position_bias")), "unit": "share"})
    known, _ = figures.read_figures(mapping(record.get("agreement")).get("figures"))
    people = [(clean(name.partition("/")[2]) or figures.ALL, known[name]) for name in figures.ordered(known)]
    named = (("position_bias", [("first", place)] if place else []), ("kappa", people))
    return [figures.plot(name, rows) for name, rows in named if rows]


def agreement(block: object) -> str:
    """Whether people agree with the judge, in a sentence."""
    proved = mapping(block).get("proved")
    if proved is None:
        return "" if mapping(block) else NOT_MEASURED
    return (
        "It agrees with people."
        if proved is True
        else "It does not agree with people enough to be used alone."
    )


def read_votes(path: Path) -> list[Vote]:
    """The judgements that count, in the order of their file.

    Raises:
        UserError: a row is none.
    """
    votes: list[Vote] = []
    for number, row in enumerate(lines(path), 1):
        try:
            votes.append(Vote.read(row))
        except ValueError as error:
            raise UserError(f"{path}: row {number} is no judgement: {error}.", remedy=REMEDY) from error
    return played(votes)


def _numbers(votes: Sequence[Vote]) -> dict[str, int]:
    named = sorted({clean(vote.comparison.category or "") for vote in votes})
    return {name: number for number, name in enumerate(named)}


def verdict(win_rate: Measured | None, controlled: Measured | None, sides: Sequence[str]) -> dict[str, Any]:
    """A word on the last side against the first, and the sentences that carry it."""
    if win_rate is None or win_rate.low is None or win_rate.high is None:
        return {"word": "no evidence either way", "sentences": ["No win rate with an interval was measured."]}
    word = figures.direction(
        Measured(win_rate.value - 0.5, win_rate.low - 0.5, win_rate.high - 0.5), better="higher"
    )
    first, last = (sides[0], sides[-1]) if len(sides) > 1 else ("the first", "the last")
    told = [
        f"{last} wins {figures.number(win_rate.value, 'share')} {_ends(win_rate)} against {first} on "
        f"{win_rate.count:,} prompts, ties counted half."
    ]
    if controlled is not None:
        told.append(
            f"At equal length it would win {figures.number(controlled.value, 'share')} {_ends(controlled)}."
        )
    return {"word": word, "sentences": told}


def _ends(measured: Measured) -> str:
    return figures.bounds(Measured(measured.value, measured.low, measured.high, unit="share"))


def top(known: Mapping[str, Measured], votes: Sequence[Vote], sides: Sequence[str]) -> list[findings.Figure]:
    """The numbers at the top: both win rates, and how the judgements fell."""
    found: list[findings.Figure] = []
    for name in ("win_rate", "lc_win_rate"):
        measured = known.get(name)
        label = figures.title(name)
        if measured is None:
            found.append(findings.unmeasured(label))
            continue
        note = f"95 % interval {_ends(measured)}, {measured.count:,} prompts"
        found.append(findings.Figure(label, figures.number(measured.value, "share"), note))
    won = [name for vote in votes if (name := winner(vote, sides)) is not None]
    counts = {choice: sum(vote.choice == choice for vote in votes) for choice in OUTCOMES}
    told = f"won, tied and lost by {sides[-1]}" if len(sides) == 2 else f"of {len(sides):,} sides"
    value = (
        f"{won.count(sides[-1]):,} · {counts['tie'] + counts['bad']:,} · {won.count(sides[0]):,}"
        if len(sides) == 2
        else f"{len(votes):,}"
    )
    note = f"{told}; {counts['bad']:,} with both bad, {counts['skip']:,} skipped"
    return [*found, findings.Figure("Comparisons", value, note)]


def winner(vote: Vote, sides: Sequence[str]) -> str | None:
    """The side that was preferred; None of a tie."""
    if vote.choice not in ("a", "b") or len(sides) < 2:
        return None
    model, place = (vote.comparison.model_a, 1) if vote.choice == "a" else (vote.comparison.model_b, 2)
    return sides[place_of(model, place, sides) - 1]


def results(votes: Sequence[Vote], sides: Sequence[str]) -> list[tuple[int, str]]:
    """Numbers and names of the outcomes that are shown."""
    several = len(sides) > 2  # then the first answer is now of one model and now of another
    first, second = ("the first", "the second") if several else (figures.letter(1), figures.letter(2))
    named = (f"{first} preferred", f"{second} preferred", *list(OUTCOMES.values())[2:])
    found = {vote.choice for vote in votes}
    return [(number, name) for number, (choice, name) in enumerate(zip(OUTCOMES, named)) if choice in found]


def comparison(vote: Vote, sides: Sequence[str], numbers: Mapping[str, int]) -> Shown:
    """Both answers, the one that was preferred marked."""
    one = vote.comparison
    a, b = differences(clean(one.a), clean(one.b))
    category = clean(one.category or "")
    return Shown(
        prompt=clean(one.prompt[-1].content),
        category=category,
        group=numbers[category],
        sides=[
            _side(one.model_a, 1, sides, a, best=vote.choice == "a"),
            _side(one.model_b, 2, sides, b, best=vote.choice == "b"),
        ],
        outcome=outcome(vote, sides),
        result=list(OUTCOMES).index(vote.choice),
    )


def place_of(model: str | None, place: int, sides: Sequence[str]) -> int:
    """The number of a side by the name of its model; by its place where the name is none of them."""
    name = "" if model is None else clean(model)
    return sides.index(name) + 1 if name in sides else place


def _side(model: str | None, place: int, sides: Sequence[str], spans: list[Span], *, best: bool) -> Side:
    name, number = "" if model is None else clean(model), place_of(model, place, sides)
    if number > len(RUNS):
        return Side(name, "", spans, best=best)
    return Side(figures.letter(number), name, spans, colour=number, best=best)


def outcome(vote: Vote, sides: Sequence[str]) -> str:
    """What was judged, by whom, and how sure a judge was."""
    parts = [OUTCOMES[vote.choice], f"judged by {clean(vote.annotator)}"]
    if vote.first == "both":
        parts.append("in both orders")
    if vote.preference is not None:
        letter = figures.letter(place_of(vote.comparison.model_a, 1, sides))
        parts.append(f"{figures.number(vote.preference, 'share')} for {letter}")
    if vote.note:
        parts.append(clean(vote.note))
    return " · ".join(filter(None, parts))
