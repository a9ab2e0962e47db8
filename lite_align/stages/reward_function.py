"""A reward function of the user's own: `--reward-fn FILE.py:NAME`, in a process of its own.

    def reward(answer: str, row: dict) -> float:
        return float(answer.endswith(row["solution"]))

The function is called once an answer, with what it asks for by name: `prompt`, `messages`, `answer`, `row`,
`stopped`, `tokens` (`function_child.CONTRACTS`). An equal answer should get an equal reward: one that draws by chance
or remembers makes a resumed run another one.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from lite_align.errors import TrainingStopped
from lite_align.stages import user_function
from lite_align.stages.episodes import Episode, Errors, NoReward, lost
from lite_align.stages.user_function import NeverStarts, NoValue, UserFunction

OPTION = "ppo.reward_fn"
located = partial(user_function.located, option=OPTION)


class RewardFunction:
    """The source "function".

    Args:
        written: FILE.py:NAME.
        weight: in the sum of rewards.
        seconds: for one answer.

    Raises:
        RecipeError: no such file or name, the file cannot be run, or the function's arguments do not fit.
    """

    name = "function"

    def __init__(self, written: str, *, weight: float, seconds: float) -> None:
        self.function = UserFunction("reward", written, seconds=seconds, option=OPTION)
        self.weight = weight
        self.errors = Errors(f"reward function {written}")
        self._written = written

    def __call__(self, episodes: Sequence[Episode]) -> list[float | None]:
        """The value of each answer, None and an error counted where the function gave none.

        Once more than half of the answers have none the rest is not asked: the round is lost, and every call may
        have waited for its whole time.

        Raises:
            TrainingStopped: the process did not start again.
        """
        values: list[float | None] = []
        for episode in episodes:
            try:
                values.append(self._ask(episode))
            except NoReward as error:
                self.errors.add(error)
                values.append(None)
            if lost(values, len(episodes)):
                break
        not_asked = len(episodes) - len(values)
        for _ in range(not_asked):
            self.errors.add(NoReward("not asked after these"))
        return values + [None] * not_asked

    def close(self) -> None:
        """End the process."""
        self.function.close()

    def _ask(self, episode: Episode) -> float:
        try:
            return self.function(arguments(episode))
        except NoValue as error:
            raise NoReward(error.kind, error.message) from error
        except NeverStarts as error:
            raise TrainingStopped(
                f"The reward function {self._written} {error}.",
                details=[error.error.what, *error.error.details, *self.errors.tell()],
                remedy="Correct it and go on with --resume; the last checkpoint is intact.",
            ) from error


def arguments(episode: Episode) -> dict[str, Any]:
    """All that a function can ask for."""
    return user_function.turns(episode.prompt) | {
        "answer": episode.answer,
        "row": dict(episode.row),
        "stopped": episode.stopped,
        "tokens": episode.tokens,
    }
