"""The verdict on a policy that was trained on a reward: is it better, or only better at the reward?

The reward is what was optimised, so that it rose proves nothing. The verdict rests on what was not optimised: the rule
score where there is one, else held-out pairs; with neither it names the reward and claims no more.
"""

from collections.abc import Callable, Mapping

from lite_align.evaluate.findings import (
    LENGTH_DRIFT,
    Categories,
    Figure,
    Verdict,
    Word,
    by_category,
    change_row,
    few_held_out,
    hardly_moved,
    unmeasured,
    warnings,
)
from lite_align.evaluate.folder import Record, RunFolder, is_number
from lite_align.evaluate.gains import HeldOut, Preference, change, known, measure, preferences, trips
from lite_align.evaluate.statistics import CONFIDENCE, Interval, percent, signed
from lite_align.view import safe

LEAST_ENTROPY = 0.5  # of the start; the default of guards.entropy_limit
LEAST_STOPPED = 0.95
KL_LIMIT = 2.0  # times its target; the default of guards.kl_limit

DID = {
    "warn": "warned",
    "raise_kl": "raised the weight of the KL",
    "lower_rate": "lowered the learning rate",
    "stop": "ended the run",
    "roll_back": "rolled the policy back",
}


def judge(folder: RunFolder) -> Verdict:
    """The verdict on the files of a ppo run."""
    rows = [row for row in folder.held_out if known(row, "reward")]
    found = measure(rows) if rows else None
    preference = preferences(folder)
    few = few_held_out(len(rows), "prompts")
    return Verdict(
        word=_word(found, preference),
        sentences=_sentences(folder, found, preference),
        warnings=_tripped(folder) + warnings(folder, found, CHECKS, few, general=(hardly_moved,)),
        figures=_figures(found, preference),
        headline=_headline(found, preference),
        categories=_categories(by_category(rows, measure)),
    )


def _word(found: HeldOut | None, preference: Preference | None) -> Word:
    if found is not None and found.rule_score is not None:
        return _by(found.rule_score.change, 0.0, "better", "worse")
    if preference is not None:
        improved = preference.improved
        return "no evidence either way" if improved is None else _by(improved, 0.5, "better", "worse")
    if found is not None:
        return _by(found.reward.change, 0.0, "higher reward", "lower reward")
    return "no evidence either way"


def _by(interval: Interval, level: float, above: Word, below: Word) -> Word:
    if interval.low > level:
        return above
    return below if interval.high < level else "no evidence either way"


def _sentences(folder: RunFolder, found: HeldOut | None, preference: Preference | None) -> list[str]:
    told = _hacking(folder)
    if found is None:
        told.append(
            "No held-out prompts were measured before and after, so nothing can be said about new ones."
        )
    elif found.rule_score is not None:
        told.append(
            f"On {found.rule_score.change.count:,} held-out prompts the rule score went from "
            f"{found.rule_score.before:.2f} to {found.rule_score.after:.2f}: {signed(found.rule_score.change)}."
        )
    if preference is not None:
        told.append(_preferred(preference))
    if found is not None:
        proves = found.rule_score is None and preference is None
        told.append(
            f"The held-out reward went from {found.reward.before:.2f} to {found.reward.after:.2f}: "
            f"{signed(found.reward.change)}. It is the reward that was optimised"
            + (" and proves nothing about quality; read the answers." if proves else ".")
        )
        told += _distance(found)
    return [*told, *_acted(folder)]


def _preferred(preference: Preference) -> str:
    of = "held-out pairs" if preference.pairs is None else f"{preference.pairs:,} held-out pairs"
    moved = (
        "; how many changed was not recorded, so chance cannot be told from learning"
        if preference.gained is None
        else f"; {preference.gained:,} were gained and {preference.lost:,} lost"
    )
    return (
        f"The policy prefers the chosen answer in {percent(preference.after)} of {of}, before in "
        f"{percent(preference.before)}{moved}."
    )


def _distance(found: HeldOut) -> list[str]:
    told: list[str] = []
    if found.kl is not None:
        told.append(f"the policy is {found.kl.after:.2f} nats an answer from its start")
    if found.tokens is not None and found.longer is not None:
        told.append(
            f"answers have {found.tokens.after:.1f} tokens, before {found.tokens.before:.1f} "
            f"({100 * found.longer:+.0f} %)".replace("-", "−")
        )
    text = ", and ".join(told)
    return [text[0].upper() + text[1:] + "."] if text else []


def _hacking(folder: RunFolder) -> list[str]:
    seen = [row for row in trips(folder) if row.get("guard") == "hacking"]
    told = [
        f"Reward hacking was seen at step {_plain(row.get('step'))}: {_plain(row.get('text'))}"
        for row in seen[:1]
    ]
    back = folder.part("ppo").get("rolled_back_to")
    if is_number(back):
        told.append(f"The policy is that of step {back:,.0f}, to which a guard rolled it back.")
    return told


def _acted(folder: RunFolder) -> list[str]:
    if "guards" not in folder.part("ppo") or not _guarded(folder):
        return []
    counts: dict[tuple[str, str], int] = {}
    for row in trips(folder):
        key = _plain(row.get("guard")), _plain(row.get("action"))
        counts[key] = counts.get(key, 0) + 1
    if not counts:
        return ["No guard saw anything."]
    told = [f"{guard} {DID.get(action, action)} {_times(count)}" for (guard, action), count in counts.items()]
    return [f"Guards: {'; '.join(told)}."]


def _times(count: int) -> str:
    return "once" if count == 1 else "twice" if count == 2 else f"{count:,} times"


def _plain(value: object) -> str:
    return f"{value:,.0f}" if is_number(value) else safe(str(value))


def _figures(found: HeldOut | None, preference: Preference | None) -> list[Figure]:
    quality = _quality_figure(found, preference)
    if found is None:
        return [quality, unmeasured("Held-out reward"), unmeasured("KL"), unmeasured("Answer length")]
    reward = Figure(
        "Held-out reward",
        f"{found.reward.after:.2f}",
        f"what was optimised; {found.reward.before:.2f} before, change {signed(found.reward.change)}",
    )
    kl = (
        unmeasured("KL")
        if found.kl is None
        else Figure("KL", f"{found.kl.after:.2f}", "nats an answer from the start")
    )
    if found.tokens is None or found.longer is None:
        return [quality, reward, kl, unmeasured("Answer length")]
    length = Figure(
        "Answer length",
        ("+" if found.longer >= 0 else "−") + percent(abs(found.longer)),
        f"{found.tokens.after:.1f} tokens in the mean; {found.tokens.before:.1f} before",
    )
    return [quality, reward, kl, length]


def _quality_figure(found: HeldOut | None, preference: Preference | None) -> Figure:
    if found is not None and (score := found.rule_score) is not None:
        moved = f"{score.before:.2f} before, change {signed(score.change)}"
        note = f"not optimised; {moved}, {score.change.count:,} prompts"
        return Figure("Rule score", f"{score.after:.2f}", note)
    if preference is not None:
        moved = (
            "" if preference.gained is None else f", {preference.gained:,} gained, {preference.lost:,} lost"
        )
        note = f"of held-out pairs; {percent(preference.before)} before{moved}"
        return Figure("Preference accuracy", percent(preference.after), note)
    return unmeasured("Quality")


def _headline(found: HeldOut | None, preference: Preference | None) -> str:
    told: list[str] = []
    if found is not None and found.rule_score is not None:
        score = found.rule_score
        told.append(f"rule score {score.before:.2f} → {score.after:.2f}, {signed(score.change)}")
    elif preference is not None:
        told.append(f"preference accuracy {preference.before:.2f} → {preference.after:.2f}")
    if found is not None:
        told.append(
            f"reward {found.reward.before:.2f} → {found.reward.after:.2f}, {signed(found.reward.change)}"
        )
        told += [f"KL {found.kl.after:.2f}"] if found.kl else []
        told += [f"length {100 * found.longer:+.0f} %".replace("-", "−")] if found.longer is not None else []
    return " · ".join(told)


def _categories(details: Mapping[str, HeldOut]) -> Categories | None:
    if not details:
        return None
    scored = all(row.rule_score is not None for row in details.values())
    changes = {name: (row.rule_score if scored else None) or row.reward for name, row in details.items()}
    ends = [value for row in changes.values() for value in (row.before, row.after)]
    span = (0.0, 1.0) if scored and min(ends) >= 0 and max(ends) <= 1 else (min(ends), max(ends))
    figure = "Rule score" if scored else "Held-out reward"
    return Categories(
        f"{figure} by category",
        "prompts",
        f"{span[0]:.2f} to {span[1]:.2f}",
        "Ring: before; dot and bar: after, with the 95 % interval of its difference to before; of many categories, one "
        "in twenty differs by chance.",
        [change_row(name, row.change.count, row.before, row.change, span) for name, row in changes.items()],
        chance=False,
    )


# Warnings.


def _guarded(folder: RunFolder) -> bool:
    block = folder.part("recipe").get("guards")
    return not isinstance(block, Mapping) or block.get("enabled") is not False


def _guards_off(folder: RunFolder, found: HeldOut | None) -> str | None:
    if _guarded(folder):
        return None
    return "Guards were off (guards.enabled): nothing watched for reward hacking while the run went on."


def _tripped(folder: RunFolder) -> list[str]:
    """One warning for each guard that saw something: when, and what it saw last."""
    steps: dict[str, list[str]] = {}
    last: dict[str, str] = {}
    for row in trips(folder):
        guard = _plain(row.get("guard"))
        if guard == "hacking":  # stands in the sentences
            continue
        steps.setdefault(guard, []).append(_plain(row.get("step")))
        last[guard] = _plain(row.get("text"))
    return [
        f"Guard {guard}, at step{'s' if len(at) > 1 else ''} {', '.join(at)}: {last[guard]}"
        for guard, at in steps.items()
    ]


def _blind(folder: RunFolder, found: HeldOut | None) -> str | None:
    rows = folder.part("ppo").get("blind")
    if not isinstance(rows, list) or not rows:
        return None
    return f"Guards that could not see: {'; '.join(map(_plain, rows))}."


def _far(folder: RunFolder, found: HeldOut | None) -> str | None:
    recipe = folder.part("recipe")
    target, limit = _setting(recipe, "ppo", "target_kl"), _setting(recipe, "guards", "kl_limit") or KL_LIMIT
    if found is None or found.kl is None or target is None or found.kl.after <= limit * target:
        return None
    return (
        f"KL is over its budget: {found.kl.after:.2f} nats an answer, above {limit:g} times ppo.target_kl "
        f"({target:g}). A larger ppo.kl or a lower train.learning_rate."
    )


def _setting(recipe: Record, block: str, name: str) -> float | None:
    part = recipe.get(block)
    value = part.get(name) if isinstance(part, Mapping) else None
    return value if is_number(value) else None


def _length_drifts(folder: RunFolder, found: HeldOut | None) -> str | None:
    if found is None or found.longer is None or abs(found.longer) < LENGTH_DRIFT:
        return None
    word, doubt = ("longer", "verbosity") if found.longer > 0 else ("shorter", "answers that break off")
    return (
        f"Answers grew {percent(abs(found.longer))} {word}; check for {doubt}: length is the commonest hack."
    )


def _categories_lost(folder: RunFolder, found: HeldOut | None) -> str | None:
    groups = by_category([row for row in folder.held_out if known(row, "rule_score")], list)
    # The intervals hold for all categories together.
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(groups))
    changes = {name: change(rows, "rule_score", confidence) for name, rows in groups.items()}
    lost = [
        f"{_plain(name)} {signed(row.change)}" for name, row in changes.items() if row and row.change.high < 0
    ]
    return f"The rule score fell in some categories: {', '.join(lost)}." if lost else None


def _entropy(folder: RunFolder, found: HeldOut | None) -> str | None:
    _, values = folder.series("eval/entropy")
    if len(values) < 2 or values[-1] >= LEAST_ENTROPY * values[0]:
        return None
    return (
        f"Entropy collapsed from {values[0]:.3g} to {values[-1]:.3g} nats a token: answers hardly vary any more. A "
        "larger ppo.kl or a lower train.learning_rate."
    )


def _unstopped(folder: RunFolder, found: HeldOut | None) -> str | None:
    _, values = folder.series("eval/stop_rate")
    if not values or values[-1] >= LEAST_STOPPED:
        return None
    return (
        f"Only {percent(values[-1], 1)} of held-out answers ended with a stop token. A larger ppo.max_new_tokens, or a "
        "lower ppo.missing_stop."
    )


def _without_reward(folder: RunFolder, found: HeldOut | None) -> str | None:
    count = sum(folder.series("reward/errors")[1])
    if not count:
        return None
    return (
        f"{count:,.0f} sampled answers had no reward (the function failed) and took no part in the training."
    )


def _ended_early(folder: RunFolder, found: HeldOut | None) -> str | None:
    total = folder.part("plan").get("total_steps")
    steps = [row["step"] for row in folder.metrics if is_number(row.get("step"))]
    if not is_number(total) or not steps or max(steps) >= total:
        return None
    return f"The run ended at step {max(steps):,.0f} of {total:,.0f}."


Check = Callable[[RunFolder, HeldOut | None], str | None]
CHECKS: tuple[Check, ...] = (
    _guards_off,
    _blind,
    _far,
    _length_drifts,
    _categories_lost,
    _entropy,
    _unstopped,
    _without_reward,
    _ended_early,
)
