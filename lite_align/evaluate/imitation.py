"""The verdict on supervised fine-tuning: did the loss on held-out conversations fall?

The verdict rests on the paired difference of the loss over held-out rows, before and after. A lower loss says that the
model is more like the data; whether its answers are good is what the answers show.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lite_align.evaluate.findings import (
    Categories,
    Figure,
    Verdict,
    Word,
    by_category,
    change_row,
    few_held_out,
    length_figure,
    unmeasured,
    warnings,
)
from lite_align.evaluate.folder import Record, RunFolder, is_number
from lite_align.evaluate.statistics import Interval, percent, ratio, signed

# At a fraction of the loss on new rows the training rows are known by heart, and the rest of the run taught nothing.
MEMORISED = 0.5
LAST_ROWS = 5  # of the training loss, of which single rows jump


@dataclass(frozen=True)
class HeldOut:
    """Figures of the held-out rows, before and after.

    `loss`: nats a trained token; `change`: of the loss, with its interval over rows; `accuracy`: share of trained
    tokens that no other token beats.
    """

    count: int
    tokens: int
    loss_before: float
    loss: float
    change: Interval
    accuracy_before: float
    accuracy: float


def judge(folder: RunFolder) -> Verdict:
    """The verdict on the files of an sft run."""
    rows = [row for row in folder.held_out if _is_measured(row)]
    figures = measure(rows) if rows else None
    return Verdict(
        word=_word(figures),
        sentences=_sentences(figures),
        warnings=warnings(folder, figures, CHECKS, few_held_out(len(rows), "rows")),
        figures=_figures(figures, folder.answers),
        headline=_headline(figures),
        categories=_categories(by_category(rows, measure)),
    )


def measure(rows: Sequence[Record]) -> HeldOut:
    """Figures of held-out rows that all have losses before and after; every token weighs the same."""
    tokens = [row["tokens"] for row in rows]
    total = sum(tokens)

    def loss(side: str) -> float:
        return sum(row[side]["loss"] * row["tokens"] for row in rows) / total

    def accuracy(side: str) -> float:
        return sum(row[side]["correct"] for row in rows) / total

    changes = [(row["after"]["loss"] - row["before"]["loss"]) * row["tokens"] for row in rows]
    return HeldOut(
        count=len(rows),
        tokens=total,
        loss_before=loss("before"),
        loss=loss("after"),
        change=ratio(changes, tokens),
        accuracy_before=accuracy("before"),
        accuracy=accuracy("after"),
    )


def _is_measured(row: Record) -> bool:
    sides = row.get("before"), row.get("after")
    known = all(
        isinstance(side, Mapping) and is_number(side.get("loss")) and is_number(side.get("correct"))
        for side in sides
    )
    return known and is_number(row.get("tokens")) and row["tokens"] > 0


def _word(figures: HeldOut | None) -> Word:
    if figures is None or figures.count < 2:
        return "no evidence either way"
    if figures.change.high < 0:
        return "better"
    return "worse" if figures.change.low > 0 else "no evidence either way"


def _sentences(figures: HeldOut | None) -> list[str]:
    if figures is None:
        return ["No held-out rows were measured before and after, so nothing can be said about new ones."]
    return [
        f"On {figures.count:,} held-out conversations ({figures.tokens:,} trained tokens) the loss went from "
        f"{figures.loss_before:.3g} to {figures.loss:.3g} nats a token: {signed(figures.change)}.",
        f"The right token was the likeliest in {percent(figures.accuracy)} of places, before in "
        f"{percent(figures.accuracy_before)}.",
    ]


def _figures(held_out: HeldOut | None, answers: Sequence[Record]) -> list[Figure]:
    length = length_figure(answers)
    if held_out is None:
        return [unmeasured("Held-out loss"), unmeasured("Token accuracy"), length]
    return [
        Figure(
            "Held-out loss",
            f"{held_out.loss:.2f}",
            f"nats a token; {held_out.loss_before:.2f} before, change {signed(held_out.change)} "
            f"(95 % interval), {held_out.count:,} conversations",
        ),
        Figure(
            "Token accuracy",
            percent(held_out.accuracy),
            f"of held-out tokens are the likeliest; {percent(held_out.accuracy_before)} before",
        ),
        length,
    ]


def _headline(figures: HeldOut | None) -> str:
    if figures is None:
        return ""
    return (
        f"loss {figures.loss_before:.3g} → {figures.loss:.3g} nats a token, {signed(figures.change)} · "
        f"token accuracy {percent(figures.accuracy_before)} → {percent(figures.accuracy)}"
    )


def _categories(details: Mapping[str, HeldOut]) -> Categories | None:
    if not details:
        return None
    most = max(max(row.loss_before, row.loss_before + _finite_high(row)) for row in details.values())
    return Categories(
        "Held-out loss by category",
        "rows",
        f"0 to {most:.2f}",
        "Nats a trained token. Ring: before; dot and bar: after, with the 95 % interval of its difference to before.",
        [
            change_row(name, row.count, row.loss_before, row.change, (0.0, most))
            for name, row in details.items()
        ],
        chance=False,
    )


def _finite_high(row: HeldOut) -> float:
    return row.change.high if math.isfinite(row.change.high) else row.change.value


def _memorised(folder: RunFolder, figures: HeldOut | None) -> str | None:
    _, values = folder.series("loss")
    if figures is None or len(values) < LAST_ROWS:
        return None
    last = sum(values[-LAST_ROWS:]) / LAST_ROWS
    if last >= MEMORISED * figures.loss:
        return None
    return (
        f"Training loss ended at {last:.3g}, held-out loss at {figures.loss:.3g}: the training rows are known by "
        "heart. Fewer train.epochs, or more rows."
    )


Check = Callable[[RunFolder, HeldOut | None], str | None]
CHECKS: tuple[Check, ...] = (_memorised,)
