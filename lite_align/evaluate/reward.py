"""The verdict on a reward model: does it rank held-out answers better than chance, and by more than their length?

Accuracy on pairs alone is a weak gate: a model that judges style and does not look at the prompt can have it. So the
swap test, the probes and the correlation with length stand beside it.
"""

import math
from collections.abc import Callable, Mapping

from lite_align.evaluate.findings import (
    Categories,
    Figure,
    Table,
    Verdict,
    Word,
    accuracy_categories,
    by_category,
    few_held_out,
    share_row,
    unmeasured,
    warnings,
)
from lite_align.evaluate.folder import RunFolder
from lite_align.evaluate.scores import PROBES, SWAPS, Scores, measure, measured
from lite_align.evaluate.statistics import Interval, bracket, percent

# Below this, optimising for the scores follows their mistakes (RLHF folklore asks for 0.65 to 0.75).
LEAST_ACCURACY = 0.6
MOST_CORRELATION = 0.5  # rule LA503
# A nearly prompt-blind model of the small world stood at 0.64, and policies trained on it answered all prompts alike.
LEAST_SWAP = 0.65
LEAST_PROBE = 0.8
SURE = 0.05  # p below which a difference is called one


def judge(folder: RunFolder) -> Verdict:
    """The verdict on the files of a reward run."""
    rows = measured(folder.held_out)
    found = measure(rows) if rows else None
    categories = by_category(rows, measure)
    return Verdict(
        word=_word(found),
        sentences=_sentences(found),
        warnings=warnings(folder, found, CHECKS, few_held_out(len(rows), "pairs")),
        figures=_figures(found),
        headline=_headline(found),
        categories=_categories(categories),
        tables=_tables(found, categories),
    )


def _word(found: Scores | None) -> Word:
    if found is not None and found.accuracy.low > 0.5:
        return "better than chance"
    if found is not None and found.accuracy.high < 0.5:
        return "worse than chance"
    return "no evidence either way"


def _sentences(found: Scores | None) -> list[str]:
    if found is None:
        return ["No held-out pairs were scored, so nothing can be said about new prompts."]
    told = [
        f"On {found.count:,} held-out pairs the chosen answer scores higher in {percent(found.accuracy.value)} "
        f"{bracket(found.accuracy)}; “the longer answer wins” would be right in {percent(found.longer.value)}: "
        f"{_against_longer(found)}."
    ]
    if found.swaps:
        told.append(
            "The chosen answer scores higher than "
            + _listed({SWAPS[kind]: f"{percent(i.value)} {bracket(i)}" for kind, i in found.swaps.items()})
            + "."
        )
    return told


def _against_longer(found: Scores) -> str:
    if found.against_longer >= SURE:
        return "no clear difference"
    return f"the model is right {'more' if found.accuracy.value > found.longer.value else 'less'} often"


def _listed(shares: Mapping[str, str]) -> str:
    return ", and ".join(f"{name} in {share}" for name, share in shares.items())


def _figures(found: Scores | None) -> list[Figure]:
    if found is None:
        return [unmeasured(label) for label in ("Held-out accuracy", "Sees the prompt", "Calibration error")]
    first = Figure(
        "Held-out accuracy",
        percent(found.accuracy.value),
        f"95 % interval {bracket(found.accuracy)}, {found.count:,} pairs; "
        f"“longer wins” {percent(found.longer.value)}",
    )
    error = Figure(
        "Calibration error",
        percent(found.calibration_error),
        f"mean distance of confidence and accuracy; held-out loss {found.nll:.3f}, chance {math.log(2):.3f}",
    )
    same = found.swaps.get("same") or found.swaps.get("other")
    if same is None:
        return [first, unmeasured("Sees the prompt"), error]
    note = f"own answer against another prompt's; 95 % interval {bracket(same)}, chance 50 %"
    return [first, Figure("Sees the prompt", percent(same.value), note), error]


def _headline(found: Scores | None) -> str:
    if found is None:
        return ""
    length = "" if found.length is None else f" · correlation with length {found.length.pearson:+.2f}"
    swap = "".join(f" · swap test, {kind} {i.value:.2f}" for kind, i in found.swaps.items())
    return (
        f"accuracy {found.accuracy.value:.2f} [{found.accuracy.low:.2f}, {found.accuracy.high:.2f}] · longer wins "
        f"{found.longer.value:.2f} · loss {found.nll:.3f} · calibration error {found.calibration_error:.2f}"
        f"{length}{swap}"
    )


def _categories(details: Mapping[str, Scores]) -> Categories | None:
    return accuracy_categories(
        "Dot and bar: accuracy with its interval; ring: what “the longer answer wins” would reach; dashes: chance.",
        [share_row(name, found.longer.value, found.accuracy) for name, found in details.items()],
        compared="longer wins",
        measured="accuracy",
    )


def _tables(found: Scores | None, details: Mapping[str, Scores]) -> list[Table]:
    if found is None:
        return []
    every = {"all": found, **details}
    tables = [
        Table(
            "Does the score see the prompt?",
            ("category", "prompts", "same category", "another category"),
            [
                (name, _prompts(scores.swaps), *(_share(scores.swaps.get(kind)) for kind in SWAPS))
                for name, scores in every.items()
                if scores.swaps
            ],
            "Share of held-out prompts whose own chosen answer scores higher than the chosen answer to another prompt, "
            "of the same or of another category. Both are good answers: a model that sees style alone stands at 50 %.",
        ),
        Table(
            "Answers that must score low",
            ("in the place of the chosen answer", "scores lower in"),
            [(text, _share(found.probes[kind])) for kind, text in PROBES.items() if kind in found.probes],
            f"Share of {_prompts(found.probes)} held-out prompts whose chosen answer scores higher than a text without "
            "value.",
        ),
        Table(
            "Confidence and accuracy",
            ("confidence", "pairs", "mean confidence", "right"),
            [
                (
                    f"{percent(b.low)} to {percent(b.high)}",
                    f"{b.count:,}",
                    percent(b.confidence),
                    percent(b.accuracy),
                )
                for b in found.reliability
            ],
            "A calibrated model is right as often as its confidence says.",
        ),
    ]
    if found.length is not None:
        length = found.length
        tables.append(
            Table(
                "Score and length",
                ("", "correlation"),
                [("Pearson", f"{length.pearson:+.2f}"), ("Spearman", f"{length.spearman:+.2f}")],
                f"Of the scores of {length.count:,} held-out answers with their tokens; 0 is best, and above "
                f"{MOST_CORRELATION} a policy that learns from the scores learns to be long.",
            )
        )
    return [table for table in tables if table.rows]


def _share(interval: Interval | None) -> str:
    return "–" if interval is None else f"{percent(interval.value)} {bracket(interval)}"


def _prompts(shares: Mapping[str, Interval]) -> str:
    return f"{max((interval.count for interval in shares.values()), default=0):,}"


def _inaccurate(folder: RunFolder, found: Scores | None) -> str | None:
    if found is None or found.accuracy.value >= LEAST_ACCURACY:
        return None
    return (
        f"Held-out accuracy is {percent(found.accuracy.value)}, below {percent(LEAST_ACCURACY)}: a policy that learns "
        "from these scores learns their mistakes. More pairs, or labels that agree more."
    )


def _learned_length(folder: RunFolder, found: Scores | None) -> str | None:
    if found is None or found.length is None or abs(found.length.pearson) <= MOST_CORRELATION:
        return None
    direction = "longer" if found.length.pearson > 0 else "shorter"
    return (
        f"LA503: scores go with length (correlation {found.length.pearson:+.2f}): {direction} answers win. Pairs of "
        "like length, or in which length speaks for neither side, help."
    )


def _prompt_blind(folder: RunFolder, found: Scores | None) -> str | None:
    weak = {k: i for k, i in (found.swaps if found else {}).items() if i.value < LEAST_SWAP}
    if not weak:
        return None
    told = _listed({SWAPS[kind]: percent(interval.value) for kind, interval in weak.items()})
    return (
        f"Nearly blind to the prompt: the chosen answer scores higher than {told} only. Rejected answers that would "
        "be good for another prompt help, and so may loss.judge_suffix."
    )


def _fooled(folder: RunFolder, found: Scores | None) -> str | None:
    weak = {k: i for k, i in (found.probes if found else {}).items() if i.value < LEAST_PROBE}
    if not weak:
        return None
    told = _listed({PROBES[kind]: percent(interval.value) for kind, interval in weak.items()})
    return f"Texts without value score too high: the chosen answer beats {told} only. Do not optimise for this score."


def _overconfident(folder: RunFolder, found: Scores | None) -> str | None:
    if found is None or found.nll <= math.log(2) or found.accuracy.value <= 0.5:
        return None
    return (
        f"Overconfident: the held-out loss of {found.nll:.3f} is above {math.log(2):.3f}, that of a coin, although the "
        "ranking is better. Fewer train.epochs or a lower train.learning_rate."
    )


Check = Callable[[RunFolder, Scores | None], str | None]
CHECKS: tuple[Check, ...] = (
    _inaccurate,
    _prompt_blind,
    _learned_length,
    _fooled,
    _overconfident,
)
