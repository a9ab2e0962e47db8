"""The verdict on preference training: did the margin between chosen and rejected answers grow on held-out pairs?

The verdict rests on held-out pairs alone: did the margin grow in more of them than chance explains? It says nothing of
text that the model writes by itself; warnings and answers do.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lite_align.evaluate.findings import (
    Categories,
    Figure,
    Verdict,
    Word,
    accuracy_categories,
    by_category,
    few_held_out,
    length_change,
    length_drifts,
    length_figure,
    share_row,
    unmeasured,
    warnings,
)
from lite_align.evaluate.folder import Record, RunFolder, is_number, learned_from_thumbs
from lite_align.evaluate.statistics import (
    Interval,
    accuracy,
    bracket,
    mean,
    percent,
    share_above_zero,
    sign_test,
)

# Perfect on training pairs before half of the run: they are told apart by something easier than quality.
EARLY_SHARE = 0.5
PERFECT = 0.999
PERFECT_ROWS = 5  # a single small batch is perfect by luck
# A run of the small world that broke its text stood at 3.7 nats on answers of 25 tokens: 0.15 a token.
DRIFT_PER_TOKEN = 0.15


@dataclass(frozen=True)
class Words:
    """What held-out rows are called: the rows, what is counted of them, and their better answers."""

    rows: str
    preferred: str
    chosen: str
    rejected: str


PAIRS = Words("pairs", " the chosen answer is preferred", "chosen answers", "rejected ones")
THUMBS = Words(
    "thumbs up, each against a thumb down",
    ", the answer with the thumb up gained more",
    "answers with a thumb up",
    "those with a thumb down",
)


def words_for(folder: RunFolder) -> Words:
    """The words for the rows of a run."""
    return THUMBS if learned_from_thumbs(folder) else PAIRS


@dataclass(frozen=True)
class HeldOut:
    """Figures of the held-out pairs, before and after.

    `accuracy`: share that prefers the chosen answer; `margin`: mean difference of rewards; `chosen`: mean
    change of the log-prob of chosen answers, nats; `improved`: share of pairs whose margin grew, `p` its sign
    test.
    """

    count: int
    accuracy_before: Interval
    accuracy: Interval
    margin_before: float
    margin: Interval
    chosen: Interval
    improved: Interval
    p: float


@dataclass(frozen=True)
class PreferenceVerdict(Verdict):
    """A verdict with the figures of held-out pairs, all together and by category."""

    held_out: HeldOut | None = None
    details: dict[str, HeldOut] = field(default_factory=dict[str, HeldOut])
    length_change: float | None = None


def judge(folder: RunFolder) -> PreferenceVerdict:
    """The verdict on the files of a dpo run."""
    rows = [row for row in folder.held_out if _is_measured(row)]
    figures = measure(rows) if rows else None
    details = by_category(rows, measure)
    few = few_held_out(len(rows), words_for(folder).rows)
    return PreferenceVerdict(
        word=_word(figures),
        sentences=_sentences(figures, words_for(folder)),
        warnings=warnings(folder, figures, CHECKS, few),
        figures=_figures(figures, folder.answers),
        headline=_headline(figures),
        categories=_categories(details),
        held_out=figures,
        details=details,
        length_change=length_change(folder.answers),
    )


def measure(rows: Sequence[Record]) -> HeldOut:
    """Figures of held-out rows that all have margins before and after."""
    before = [row["before"]["margin"] for row in rows]
    after = [row["after"]["margin"] for row in rows]
    changes = [b - a for a, b in zip(before, after, strict=True)]
    chosen = [
        row["after"]["chosen_logp"] - row["before"]["chosen_logp"]
        for row in rows
        if is_number(row["after"].get("chosen_logp")) and is_number(row["before"].get("chosen_logp"))
    ]
    return HeldOut(
        count=len(rows),
        accuracy_before=accuracy(before),
        accuracy=accuracy(after),
        margin_before=statistics.fmean(before),
        margin=mean(after),
        chosen=mean(chosen),
        improved=share_above_zero(changes),
        p=sign_test(changes),
    )


def _is_measured(row: Record) -> bool:
    sides = row.get("before"), row.get("after")
    return all(isinstance(side, Mapping) and is_number(side.get("margin")) for side in sides)


def _word(figures: HeldOut | None) -> Word:
    if figures is None or figures.improved.count == 0:
        return "no evidence either way"
    moved = figures.margin.value - figures.margin_before
    if figures.improved.low > 0.5 and moved > 0:
        return "better"
    if figures.improved.high < 0.5 and moved < 0:
        return "worse"
    return "no evidence either way"


def _sentences(figures: HeldOut | None, words: Words) -> list[str]:
    if figures is None:
        return [
            f"No held-out {words.rows} were measured before and after, so nothing can be said about new prompts."
        ]
    known = figures.accuracy
    return [
        f"On {figures.count:,} held-out {words.rows}{words.preferred} in {percent(known.value)} "
        f"{bracket(known)}, before in {percent(figures.accuracy_before.value)}.",
        f"The margin grew in {percent(figures.improved.value)} of them {bracket(figures.improved)}; "
        f"in the mean it went from {figures.margin_before:.3g} to {figures.margin.value:.3g}.",
    ]


def _figures(held_out: HeldOut | None, answers: Sequence[Record]) -> list[Figure]:
    length = length_figure(answers)
    if held_out is None:
        return [unmeasured("Held-out accuracy"), unmeasured("Held-out margin"), length]
    accuracy, margin = held_out.accuracy, held_out.margin
    before = percent(held_out.accuracy_before.value)
    known = f"95 % interval [{margin.low:.2f}, {margin.high:.2f}]; " if held_out.count > 1 else ""
    return [
        Figure(
            "Held-out accuracy",
            percent(accuracy.value),
            f"95 % interval {bracket(accuracy)}, {held_out.count:,} pairs; {before} before",
        ),
        Figure("Held-out margin", f"{margin.value:.2f}", f"{known}{held_out.margin_before:.2f} before"),
        length,
    ]


def _headline(figures: HeldOut | None) -> str:
    if figures is None:
        return ""
    return (
        f"accuracy {figures.accuracy_before.value:.2f} → {figures.accuracy.value:.2f} "
        f"[{figures.accuracy.low:.2f}, {figures.accuracy.high:.2f}] · margin {figures.margin_before:.2g} → "
        f"{figures.margin.value:.2g} · chosen log-prob {figures.chosen.value:+.2g}"
    )


def _categories(details: Mapping[str, HeldOut]) -> Categories | None:
    return accuracy_categories(
        "Ring: before; dot and bar: after with its interval; dashes: chance.",
        [share_row(name, row.accuracy_before.value, row.accuracy) for name, row in details.items()],
    )


def _chosen_falls(folder: RunFolder, figures: HeldOut | None) -> str | None:
    if figures is None or figures.chosen.count < 2 or figures.chosen.high >= 0:
        return None
    words = words_for(folder)
    return (
        f"LA307: {words.chosen} became less likely, by {-figures.chosen.value:.2g} nats each in the mean; "
        f"where {words.rejected} fall more, margins grow all the same. A larger loss.sft_weight or loss.beta helps."
    )


def _drift(folder: RunFolder, figures: HeldOut | None) -> str | None:
    tokens = [t for row in folder.held_out if is_number(t := row.get("chosen_tokens"))]
    total = sum(tokens)
    if figures is None or not total:
        return None
    per_token = abs(figures.chosen.value) * figures.chosen.count / total
    if per_token <= DRIFT_PER_TOKEN:
        return None
    chosen = words_for(folder).chosen
    return (
        f"The model is far from where it began: log-probs of {chosen} moved by {per_token:.2g} nats a "
        "token. Read the answers; a lower train.learning_rate or a larger loss.beta keeps it closer."
    )


def _perfect_early(folder: RunFolder, figures: HeldOut | None) -> str | None:
    steps, values = folder.series("rewards/accuracies")
    for i in range(len(values) - PERFECT_ROWS + 1):
        if min(values[i : i + PERFECT_ROWS]) >= PERFECT:
            if steps[i] > EARLY_SHARE * steps[-1]:
                return None
            return (
                f"Training accuracy was 1.0 from step {steps[i]:,.0f} of {steps[-1]:,.0f}: something easy tells "
                "the answers apart (length, style, a repeated answer). Look at them with lite-align check."
            )
    return None


Check = Callable[[RunFolder, HeldOut | None], str | None]
CHECKS: tuple[Check, ...] = (
    _chosen_falls,
    _drift,
    lambda folder, _: length_drifts(folder),
    _perfect_early,
)
