"""Progress and agreement in words, for the page and the terminal."""

from collections.abc import Sequence

from lite_align.flywheel.label.session import HIDDEN_VOTES, KNOWN_ANSWERS, YOURSELF, Progress, Shared

_WHOM = {KNOWN_ANSWERS: "known answers", YOURSELF: "your own earlier ones"}


def progress(now: Progress) -> str:
    """How far: `12 of 40 · 30 % · about 6 min left`."""
    share = f"{100 * now.done // max(1, now.total)} %"
    parts = [f"{now.done:,} of {now.total:,}", share]
    if now.seconds_left:
        parts.append(f"about {_time(now.seconds_left)} left")
    return " · ".join(parts)


def agreement(shared: Sequence[Shared] | None) -> list[str]:
    """Whom one agrees with, one line each; the reason where there is nothing to show."""
    if shared is None:
        return [f"agreement is shown after {HIDDEN_VOTES} votes"]
    if not shared:
        return ["agreement: nobody else has voted on these yet"]
    return [
        f"equal votes with {_WHOM.get(one.whom, one.whom)}: {one.equal:,} of {one.count:,}"
        + ("" if one.kappa is None else f" · kappa {one.kappa:.2f}")
        for one in shared
    ]


def _time(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"
