"""A Python function as judge: `FILE.py:NAME`, in a process of its own.

    def better(prompt: str, a: str, b: str) -> str:
        return "a" if "please" in a else "tie"

It is called in both orders, with what it asks for by name: `prompt`, `messages`, `a`, `b`, `row`
(`stages.function_child.CONTRACTS`), and returns "a", "b", "tie" or the probability that `a` is better.
"""

from collections.abc import Sequence
from typing import cast

from lite_align.data.votes import Comparison, Source
from lite_align.errors import UserError
from lite_align.flywheel.judges.judgement import (
    Advance,
    Judgement,
    Reply,
    Verdict,
    in_both_orders,
    swapped,
)
from lite_align.stages.user_function import NeverStarts, NoValue, UserFunction, turns
from lite_align.train import files

SECONDS = 30.0
"""How long one call may take."""


class FunctionJudge:
    """Asks a function of the user's own; a call that hangs, crashes or returns something else is a tie.

    Args:
        written: FILE.py:NAME.
        seconds: for one call.
        option: that names it, for messages.

    Raises:
        RecipeError: no such file or name, the file cannot be run, or the function's arguments do not fit.
    """

    kind: Source = "rule"
    rubric = None

    def __init__(self, written: str, *, seconds: float = SECONDS, option: str = "--by") -> None:
        self._function = UserFunction("judge", written, seconds=seconds, option=option)
        file = self._function.file
        self.name = f"function {file.name}{written[len(str(file)) :]} {files.sha256(file)[:8]}"
        self._written = written
        self._calls = 0

    def judge(
        self, comparisons: Sequence[Comparison], advance: Advance = lambda count: None
    ) -> list[Judgement]:
        """See `Judge`.

        Raises:
            UserError: its process did not start again.
        """
        found: list[Judgement] = []
        for one in comparisons:
            found.append(in_both_orders(one, self._ask(one), self._ask(swapped(one))))
            advance(1)
        return found

    def tell(self) -> list[str]:
        """See `Judge`."""
        return [f"{self._calls:,} calls"]

    def close(self) -> None:
        """End the process."""
        self._function.close()

    def _ask(self, comparison: Comparison) -> Reply:
        self._calls += 1
        given = turns(comparison.prompt) | {"a": comparison.a, "b": comparison.b, "row": comparison.record()}
        try:
            value = self._function(given)
        except NoValue as error:
            return Reply.failed(error.kind, error.message)
        except NeverStarts as error:
            raise UserError(
                f"The function {self._written} {error}.",
                details=[error.error.what, *error.error.details],
                remedy="Correct it and give the command again; what is judged stays.",
            ) from error
        # The child lets no other text through.
        return Reply(cast(Verdict, value)) if isinstance(value, str) else Reply.likely(value)
