"""Better, worse, or no evidence either way: what a run says about itself, in plain words.

The verdict rests on held-out pairs alone: did the margin between chosen and rejected answer grow in more of
them than chance explains? It says nothing of text that the model writes by itself; warnings and answers do.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lite_align.evaluate.folder import Record, RunFolder, is_number, read
from lite_align.evaluate.statistics import (
    Interval,
    accuracy,
    bracket,
    mean,
    percent,
    share_above_zero,
    sign_test,
)

Word = Literal["better", "worse", "no evidence either way"]

# Below 40 pairs even 60 % wins leave an interval of ±15 points around one half: only large effects show.
SMALL_HELD_OUT = 40
# Perfect on training pairs before half of the run: they are told apart by something easier than quality.
EARLY_SHARE = 0.5
PERFECT = 0.999
PERFECT_ROWS = 5  # a single small batch is perfect by luck
# 15 % is more than mean lengths of a few dozen greedy answers spread, and less than a reader overlooks.
LENGTH_DRIFT = 0.15
# A run of the small world that broke its text stood at 3.7 nats on answers of 25 tokens: 0.15 a token.
DRIFT_PER_TOKEN = 0.15
# fp32 adapters move everywhere in a few steps; bf16 ones moved 0.4 % of their entries and learned nothing.
MOVED_SHARE = 0.99
# Held-out loss this far above its least value is more than the noise of one evaluation of some fifty pairs.
LOSS_RISE = 1.05


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
class Verdict:
    """One of three words, the sentences that carry it, and what else to look at."""

    word: Word
    sentences: list[str]
    warnings: list[str]
    held_out: HeldOut | None = None
    length_change: float | None = None
    details: dict[str, HeldOut] = field(default_factory=dict)


def judge(run_dir: Path) -> Verdict:
    """The verdict on a run folder. Raises UserError if the folder cannot be read."""
    return judge_folder(read(run_dir))


def judge_folder(folder: RunFolder) -> Verdict:
    """The verdict on a run folder that was read already."""
    rows = [row for row in folder.held_out if _is_measured(row)]
    figures = measure(rows) if rows else None
    change = length_change(folder.answers)
    warnings = [text for check in CHECKS if (text := check(folder, figures)) is not None]
    return Verdict(
        word=_word(figures),
        sentences=_sentences(figures),
        warnings=warnings,
        held_out=figures,
        length_change=change,
        details=_by_category(rows),
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


def length_change(answers: Sequence[Record]) -> float | None:
    """Relative change of the mean answer length in tokens; None without answers."""
    pairs = [(a.get("before_tokens"), a.get("after_tokens")) for a in answers]
    known = [(b, a) for b, a in pairs if is_number(b) and is_number(a)]
    before = sum(b for b, _ in known)
    return sum(a for _, a in known) / before - 1 if before else None


def _is_measured(row: Record) -> bool:
    sides = row.get("before"), row.get("after")
    return all(isinstance(side, Mapping) and is_number(side.get("margin")) for side in sides)


def _by_category(rows: Sequence[Record]) -> dict[str, HeldOut]:
    groups: dict[str, list[Record]] = {}
    for row in rows:
        groups.setdefault(str(row.get("category") or "without category"), []).append(row)
    return {name: measure(groups[name]) for name in sorted(groups)} if len(groups) > 1 else {}


def _word(figures: HeldOut | None) -> Word:
    if figures is None or figures.improved.count == 0:
        return "no evidence either way"
    moved = figures.margin.value - figures.margin_before
    if figures.improved.low > 0.5 and moved > 0:
        return "better"
    if figures.improved.high < 0.5 and moved < 0:
        return "worse"
    return "no evidence either way"


def _sentences(figures: HeldOut | None) -> list[str]:
    if figures is None:
        return ["No held-out pairs were measured before and after, so nothing can be said about new prompts."]
    known = figures.accuracy
    return [
        f"On {figures.count:,} held-out pairs the chosen answer is preferred in {percent(known.value)} "
        f"{bracket(known)}, before in {percent(figures.accuracy_before.value)}.",
        f"The margin grew in {percent(figures.improved.value)} of them {bracket(figures.improved)}; "
        f"in the mean it went from {figures.margin_before:.3g} to {figures.margin.value:.3g}.",
    ]


def _small(folder: RunFolder, figures: HeldOut | None) -> str | None:
    if figures is None or figures.count >= SMALL_HELD_OUT:
        return None
    return f"Only {figures.count} held-out pairs: small effects cannot show. Raise data.held_out or add data."


def _chosen_falls(folder: RunFolder, figures: HeldOut | None) -> str | None:
    if figures is None or figures.chosen.count < 2 or figures.chosen.high >= 0:
        return None
    return (
        f"LA307: chosen answers became less likely, by {-figures.chosen.value:.2g} nats each in the mean; "
        "where rejected ones fall more, margins grow all the same. A larger loss.sft_weight or loss.beta helps."
    )


def _drift(folder: RunFolder, figures: HeldOut | None) -> str | None:
    tokens = [t for row in folder.held_out if is_number(t := row.get("chosen_tokens"))]
    total = sum(tokens)
    if figures is None or not total:
        return None
    per_token = abs(figures.chosen.value) * figures.chosen.count / total
    if per_token <= DRIFT_PER_TOKEN:
        return None
    return (
        f"The model is far from where it began: log-probs of chosen answers moved by {per_token:.2g} nats a "
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
                "the pairs apart (length, style, a repeated answer). Look at them with lite-align check."
            )
    return None


def _length(folder: RunFolder, figures: HeldOut | None) -> str | None:
    change = length_change(folder.answers)
    if change is None or abs(change) < LENGTH_DRIFT:
        return None
    word = "longer" if change > 0 else "shorter"
    doubt = "verbosity" if change > 0 else "answers that break off"
    return f"Answers grew {percent(abs(change))} {word}; check for {doubt} before release."


def _moved(folder: RunFolder, figures: HeldOut | None) -> str | None:
    _, values = folder.series("moved")
    if not values or values[-1] >= MOVED_SHARE:
        return None
    return (
        f"Only {percent(values[-1], 1)} of the adapter's parameters moved: the learning rate is too small for their "
        "precision, or part of the adapter is not trained."
    )


def _loss_rises(folder: RunFolder, figures: HeldOut | None) -> str | None:
    steps, values = folder.series("eval/loss")
    if len(values) < 3:
        return None
    least = min(range(len(values)), key=values.__getitem__)
    if values[least] <= 0 or values[-1] <= LOSS_RISE * values[least]:
        return None
    return (
        f"Held-out loss was least at step {steps[least]:,.0f} ({values[least]:.3g}) and rose to "
        f"{values[-1]:.3g}: the run went on too long. Fewer train.epochs or a lower train.learning_rate."
    )


def _train_loss_rises(folder: RunFolder, figures: HeldOut | None) -> str | None:
    _, values = folder.series("loss")
    quarter = len(values) // 4
    if quarter < 3:
        return None
    first, last = statistics.fmean(values[:quarter]), statistics.fmean(values[-quarter:])
    if first <= 0 or last <= LOSS_RISE * first:
        return None
    return f"Training loss rose from {first:.3g} to {last:.3g}: the learning rate is too high."


Check = Callable[[RunFolder, HeldOut | None], str | None]
CHECKS: tuple[Check, ...] = (
    _chosen_falls,
    _drift,
    _length,
    _perfect_early,
    _loss_rises,
    _train_loss_rises,
    _moved,
    _small,
)
