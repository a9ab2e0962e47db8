"""The rewards of text that a recipe asks for, and how the values of several sources become one score."""

from collections.abc import Mapping, Sequence

from lite_align.errors import RecipeError, TrainingStopped
from lite_align.recipe import PPOOptions
from lite_align.stages.episodes import Episode, Errors, NoReward, TextReward, lost
from lite_align.stages.reward_function import RewardFunction
from lite_align.stages.rules import RuleReward

__all__ = [
    "Episode",
    "Errors",
    "NoReward",
    "TextReward",
    "require_enough",
    "require_reward",
    "text_rewards",
    "total",
]


def require_reward(options: PPOOptions) -> None:
    """Refuse a recipe without any reward, or whose value head would read a reward model that it does not name.

    Raises:
        RecipeError: it names the settings.
    """
    if options.reward is None and options.reward_fn is None and not options.rules:
        raise RecipeError(
            "ppo has no reward",
            remedy="Give --reward RUN (of lite-align reward), --reward-fn FILE.py:NAME, or ppo.rules.",
        )
    if options.value == "reward" and options.reward is None:
        raise RecipeError(
            "ppo.value is reward, and there is no reward model whose states it could read",
            remedy="Leave ppo.value out, or set ppo.value=policy.",
        )


def text_rewards(options: PPOOptions) -> list[TextReward]:
    """All sources that look at texts: the rules in the recipe's order, then the function. Close them after use.

    Raises:
        RecipeError: rules or a function that cannot be used; all wrong rules are listed.
    """
    sources: list[TextReward] = []
    problems: list[RecipeError] = []
    for written, weight in options.rules.items():
        try:
            sources.append(RuleReward(written, weight=weight))
        except RecipeError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise RecipeError(
            f"{len(problems)} rules do not fit.",
            details=[error.what for error in problems],
            remedy=problems[0].remedy,
        )
    if options.reward_fn is not None:
        seconds = options.reward_fn_timeout
        sources.append(RewardFunction(options.reward_fn, weight=options.reward_fn_weight, seconds=seconds))
    return sources


def total(values: Mapping[str, Sequence[float | None]], weights: Mapping[str, float]) -> list[float | None]:
    """Sum of weight times value over the sources, for each answer; None where any source has no value.

    A source without a value takes the whole answer out: a part of the sum would be another reward.
    """
    assert values.keys() == weights.keys()

    def summed(answer: Sequence[float | None]) -> float | None:
        score = 0.0
        for weight, value in zip(weights_in_order, answer, strict=True):
            if value is None:
                return None
            score += weight * value
        return score

    weights_in_order = [weights[name] for name in values]
    return [summed(answer) for answer in zip(*values.values(), strict=True)]


def require_enough(values: Sequence[float | None], tells: Sequence[str]) -> None:
    """Stop where more than half of some answers have no reward.

    Args:
        values: of all sources, summed.
        tells: what the sources tell of their errors.

    Raises:
        TrainingStopped: with the counts and the first messages.
    """
    if lost(values, len(values)):
        raise TrainingStopped(
            f"{values.count(None):,} of {len(values):,} answers have no reward; half at most may have none.",
            details=tells,
            remedy="Correct what it depends on and go on with --resume; the last checkpoint is intact. A function that "
            "was changed is another reward, and needs a new run.",
        )
