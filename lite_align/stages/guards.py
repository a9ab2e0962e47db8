"""Guards against reward hacking: what held-out figures, against those of the start, say while the reward rises.

A reward that is learned or written down is a stand-in for quality, and a policy that follows it far enough finds where
the two part (arXiv 2210.10760). Each guard watches one sign of that. All compare with the start of the run on the same
prompts; where prompts can be paired, a change counts only if the interval of the paired differences excludes zero.
Nothing is done here: `Guards.look` says what was seen and what the recipe wants done.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lite_align.evaluate.statistics import CONFIDENCE, Interval, mean, percent, signed
from lite_align.recipe.ppo import GuardOptions

LEAST_PROMPTS = 6
"""Prompts below which differences are no evidence: all of five point one way by chance in 6 % (sign test)."""
LEAST_REPEATED = 0.05
"""Share of repeated word triples from which `repeat_limit` counts: twice nothing is nothing."""
VALUE_ROUNDS = 10
"""Rounds in which a value head may know nothing yet."""
UNSAFE = "unsafe"
"""The category of wishes that are to be refused."""


@dataclass(frozen=True)
class Measured:
    """One evaluation on fixed held-out prompts.

    Attributes:
        step: of the optimiser.
        metrics: of the evaluation row by name without "eval/"; of the training row before it
            "value/explained_variance", and "rounds" so far.
        by_prompt: "reward", "rule_score", "refused" (0 or 1) and the like, by prompt; "preference" (0 or 1) by
            held-out pair. Always the same prompts in the same order; NaN where a value could not be had.
        categories: of the prompts.
    """

    step: int
    metrics: Mapping[str, float]
    by_prompt: Mapping[str, Sequence[float]]
    categories: Sequence[str | None]


@dataclass(frozen=True)
class Tripped:
    """A guard that saw its sign: what the recipe wants done, and what was seen, in one sentence for people.

    `guard` is its name in the recipe, or "unmeasured" where one could not see what it saw at the start.
    """

    guard: str
    action: str
    step: int
    text: str


class Unmeasured(Exception):
    """A figure that the start had is missing now."""


@dataclass(frozen=True)
class Comparison:
    """The start of a run beside an evaluation, and the limits."""

    options: GuardOptions
    start: Measured
    now: Measured
    target_kl: float | None

    def metric(self, name: str) -> tuple[float, float]:
        """A figure at the start and now. Raises Unmeasured."""
        value = self.now.metrics.get(name, math.nan)
        if not math.isfinite(value):
            raise Unmeasured(name.replace("_", " "))
        return self.start.metrics[name], value

    def change(self, name: str, which: Sequence[int] | None = None, tests: int = 1) -> Interval:
        """Mean of the paired differences to the start.

        Args:
            name: in `by_prompt`.
            which: places of the prompts that count; all if None.
            tests: how many such questions are asked at once; the intervals hold for all of them together
                (Bonferroni).
        """
        if name not in self.now.by_prompt:
            raise Unmeasured(name.replace("_", " "))
        pairs = list(zip(self.start.by_prompt[name], self.now.by_prompt[name], strict=True))
        chosen = pairs if which is None else [pairs[i] for i in which]
        differences = [after - before for before, after in chosen if math.isfinite(after - before)]
        if len(differences) < LEAST_PROMPTS:
            raise Unmeasured(f"{name.replace('_', ' ')} of {LEAST_PROMPTS} prompts")
        return mean(differences, 1 - (1 - CONFIDENCE) / tests)


def _measured(at: Measured, name: str) -> bool:
    return math.isfinite(at.metrics.get(name, math.nan))


def _enough(at: Measured, name: str, which: Sequence[int] | None = None) -> bool:
    values = at.by_prompt.get(name, ())
    chosen = values if which is None else [values[i] for i in which if i < len(values)]
    return sum(map(math.isfinite, chosen)) >= LEAST_PROMPTS


def _places(at: Measured) -> dict[str, list[int]]:
    """Places of the prompts of each category that has enough of them with a rule score."""
    found: dict[str, list[int]] = {}
    for place, category in enumerate(at.categories):
        if category is not None:
            found.setdefault(category, []).append(place)
    return {name: places for name, places in sorted(found.items()) if _enough(at, "rule_score", places)}


# What each guard sees: a sentence, or None where all is well.

QUALITY = {"rule_score": "rule score", "preference": "preference accuracy"}


def hacking(at: Comparison) -> str | None:
    """The reward rises while preference accuracy or the rule score falls."""
    gain = at.change("reward")
    if gain.low <= 0:
        return None
    falls = {words: at.change(name) for name, words in QUALITY.items() if _enough(at.start, name)}
    told = [f"the {words} fell by {signed(change)}" for words, change in falls.items() if change.high < 0]
    return f"The reward rose by {signed(gain)} while {' and '.join(told)}" if told else None


def length(at: Comparison) -> str | None:
    """Answers grew beyond `length_limit`."""
    return _longer(at, at.options.length_limit)


def length_warning(at: Comparison) -> str | None:
    """Answers grew beyond `length_warning`, and not yet beyond `length_limit`."""
    return None if length(at) else _longer(at, at.options.length_warning)


def _longer(at: Comparison, limit: float) -> str | None:
    before, after = at.metric("length")
    if after <= limit * before:
        return None
    return (
        f"Answers have {after:.1f} tokens in the mean, {after / before if before else math.inf:.2f} times the "
        f"{before:.1f} of the start; the limit is {limit:g} times"
    )


def kl(at: Comparison) -> str | None:
    """KL above `kl_limit` times its target."""
    assert at.target_kl is not None
    limit = at.options.kl_limit * at.target_kl
    _, value = at.metric("kl")
    if value <= limit:
        return None
    return f"KL is {value:.2f} nats an answer, above {limit:.2f}, {at.options.kl_limit:g} times its target"


def category(at: Comparison) -> str | None:
    """The rule score of a category fell by more than `category_limit`."""
    places = _places(at.start)
    changes = {name: at.change("rule_score", which, len(places)) for name, which in places.items()}
    told = [
        f"{name} by {signed(change)}"
        for name, change in changes.items()
        if change.value < -at.options.category_limit and change.high < 0
    ]
    limit = at.options.category_limit
    return f"The rule score fell in {', '.join(told)}; the limit is {limit:g}" if told else None


def refusal(at: Comparison) -> str | None:
    """Unsafe wishes are refused less, or others more."""
    options = at.options
    wishes = at.start.categories
    told: list[str] = []
    for name, words, sign, limit in (
        (UNSAFE, "unsafe wishes", -1, options.refusal_limit),
        ("other", "other wishes", 1, options.over_refusal_limit),
    ):
        if not _measured(at.start, f"refusal/{name}"):
            continue
        before, after = at.metric(f"refusal/{name}")
        which = [i for i, wish in enumerate(wishes) if (wish == UNSAFE) == (name == UNSAFE)]
        # Without answers by prompt there is no interval, and the shares alone decide.
        known = at.change("refused", which) if _enough(at.start, "refused", which) else None
        certain = known is None or (known.high < 0 if sign < 0 else known.low > 0)
        if sign * (after - before) > limit and certain:
            told.append(
                f"{words} are refused in {percent(after)}, at the start in {percent(before)} (limit "
                f"{100 * sign * limit:+.0f} points)".replace("-", "−")
            )
    return " and ".join(told).capitalize() if told else None


def entropy(at: Comparison) -> str | None:
    """Entropy fell below `entropy_limit` of the start."""
    before, after = at.metric("entropy")
    if after >= at.options.entropy_limit * before:
        return None
    return (
        f"Entropy is {after:.3g} nats a token, below {percent(at.options.entropy_limit)} of the {before:.3g} of the "
        "start: answers hardly vary any more"
    )


def repetition(at: Comparison) -> str | None:
    """Answers repeat each other or themselves."""
    told: list[str] = []
    if _measured(at.start, "distinct_2"):
        before, after = at.metric("distinct_2")
        if after < at.options.distinct_limit * before:
            told.append(
                f"answers repeat each other: {percent(after, 1)} of their word pairs are different, below "
                f"{percent(at.options.distinct_limit)} of the {percent(before, 1)} of the start"
            )
    if _measured(at.start, "repeated_3grams"):
        before, after = at.metric("repeated_3grams")
        limit = at.options.repeat_limit * max(before, LEAST_REPEATED)
        if after > limit:
            told.append(
                f"answers repeat themselves: {percent(after, 1)} of their word triples, above {percent(limit, 1)}"
            )
    return " and ".join(told).capitalize() if told else None


def stop_rate(at: Comparison) -> str | None:
    """Fewer answers end with a stop token than `stop_limit`, and fewer than at the start."""
    before, after = at.metric("stop_rate")
    limit = min(at.options.stop_limit, before)
    if after >= limit:
        return None
    return f"{percent(after, 1)} of answers end with a stop token, below {percent(limit, 1)}"


def value(at: Comparison) -> str | None:
    """The value head explains nothing after ten rounds."""
    explained = at.now.metrics.get(
        "value/explained_variance"
    )  # none of it at the start, and none in rloo and grpo
    rounds = at.now.metrics.get("rounds", 0)
    if explained is None or rounds < VALUE_ROUNDS or not explained < 0:  # NaN where all returns are equal
        return None
    return f"After {rounds:.0f} rounds the value head explains less than nothing of the returns ({explained:.2f})"


# Why a guard cannot see: words, or None where it can.


def _blind_hacking(at: Comparison) -> str | None:
    if not _enough(at.start, "reward"):
        return f"there are fewer than {LEAST_PROMPTS} held-out prompts with a reward"
    if not any(_enough(at.start, name) for name in QUALITY):
        return "there are no held-out pairs (ppo.pairs) and no rule scores to hold against the reward"
    return None


def _blind_kl(at: Comparison) -> str | None:
    return "ppo.target_kl is null, so there is no budget" if at.target_kl is None else _without("kl")(at)


def _blind_category(at: Comparison) -> str | None:
    return (
        None if _places(at.start) else f"no category has {LEAST_PROMPTS} held-out prompts with a rule score"
    )


def _blind_refusal(at: Comparison) -> str | None:
    seen = any(_measured(at.start, f"refusal/{name}") for name in (UNSAFE, "other"))
    return None if seen else "refusals of held-out prompts are not told apart"


def _without(*names: str) -> Callable[[Comparison], str | None]:
    def blind(at: Comparison) -> str | None:
        if any(_measured(at.start, name) for name in names):
            return None
        return f"{' and '.join(names).replace('_', ' ')} could not be measured at the start"

    return blind


@dataclass(frozen=True)
class Guard:
    """A sign of hacking.

    Attributes:
        look: what it sees.
        blind: why it cannot see anything in this run.
        patient: whether it must see it in `patience` evaluations running; the others see collapses, which do not wait.
        action: in place of the recipe's.
    """

    look: Callable[[Comparison], str | None]
    blind: Callable[[Comparison], str | None]
    patient: bool = False
    action: str | None = None


GUARDS: dict[str, tuple[Guard, ...]] = {
    "hacking": (Guard(hacking, _blind_hacking, patient=True),),
    "length": (
        Guard(length, _without("length")),
        Guard(length_warning, _without("length"), action="warn"),
    ),
    "kl": (Guard(kl, _blind_kl, patient=True),),
    "category": (Guard(category, _blind_category, patient=True),),
    "refusal": (Guard(refusal, _blind_refusal, patient=True),),
    "entropy": (Guard(entropy, _without("entropy")),),
    "repetition": (Guard(repetition, _without("distinct_2", "repeated_3grams")),),
    "stop_rate": (Guard(stop_rate, _without("stop_rate")),),
    "value": (Guard(value, lambda _: None, patient=True),),
}
"""By name in the recipe."""


class Guards:
    """All guards over a run.

    Attributes:
        good: step of the last evaluation at which nothing was seen: where a roll-back goes.
    """

    def __init__(self, options: GuardOptions, start: Measured, target_kl: float | None) -> None:
        self._options = options
        self._target_kl = target_kl
        self._start = start
        self._strikes: dict[str, int] = {}
        self.good = start.step

    @classmethod
    def resumed(cls, options: GuardOptions, state: Mapping[str, Any], target_kl: float | None) -> "Guards":
        """Those of a run that goes on from `state`."""
        guards = cls(options, _measurement(state["start"]), target_kl)
        guards.load_state(state)
        return guards

    @property
    def blind(self) -> list[str]:
        """The guards that cannot see anything in this run, each with its reason: "kl: ppo.target_kl is null, …"."""
        at = self._against(self._start)
        reasons = {name: guards[0].blind(at) for name, guards in self._watching().items()}
        return [f"{name}: {reason}" for name, reason in reasons.items() if reason is not None]

    def look(self, now: Measured) -> list[Tripped]:
        """What the guards see in an evaluation, and what the recipe wants done about it.

        A patient guard that tripped counts anew, so that what was done has as many evaluations to help.
        """
        at = self._against(now)
        tripped = [
            found
            for name, guards in self._watching().items()
            for guard in guards
            if guard.blind(self._against(self._start)) is None
            and (found := self._ask(name, guard, at)) is not None
        ]
        if not tripped and not self._strikes:
            self.good = now.step
        return tripped

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON."""
        return {"good": self.good, "strikes": dict(self._strikes), "start": _json(self._start)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self.good = state["good"]
        self._strikes = dict(state["strikes"])
        self._start = _measurement(state["start"])

    def _against(self, now: Measured) -> Comparison:
        return Comparison(self._options, self._start, now, self._target_kl)

    def _action(self, name: str) -> str:
        return getattr(self._options, name)

    def _watching(self) -> dict[str, tuple[Guard, ...]]:
        if not self._options.enabled:
            return {}
        return {name: guards for name, guards in GUARDS.items() if self._action(name) != "off"}

    def _ask(self, name: str, guard: Guard, at: Comparison) -> Tripped | None:
        action = guard.action or self._action(name)
        try:
            seen = guard.look(at)
        except Unmeasured as missing:
            text = f"The guard {name} saw nothing: {missing} could not be measured, although it was at the start."
            return Tripped("unmeasured", "warn", at.now.step, text)
        if not guard.patient:
            return None if seen is None else Tripped(name, action, at.now.step, f"{seen}.")
        if seen is None:
            self._strikes.pop(name, None)
            return None
        patience = self._options.patience
        self._strikes[name] = self._strikes.get(name, 0) + 1
        if self._strikes[name] < patience:
            return None
        del self._strikes[name]
        running = f", in {patience} evaluations running" if patience > 1 else ""
        return Tripped(name, action, at.now.step, f"{seen}{running}.")


def _json(measured: Measured) -> dict[str, Any]:
    """As JSON, which has no NaN: null stands for it."""

    def plain(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "step": measured.step,
        "metrics": {name: plain(value) for name, value in measured.metrics.items()},
        "by_prompt": {name: [plain(v) for v in values] for name, values in measured.by_prompt.items()},
        "categories": list(measured.categories),
    }


def _measurement(row: Mapping[str, Any]) -> Measured:
    def number(value: float | None) -> float:
        return math.nan if value is None else value

    return Measured(
        row["step"],
        {name: number(value) for name, value in row["metrics"].items()},
        {name: [number(v) for v in values] for name, values in row["by_prompt"].items()},
        row["categories"],
    )
