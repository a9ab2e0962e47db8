"""CPU seconds of calls: of this process, and of the children that it waited for."""

import resource
from collections.abc import Callable
from typing import Any


def cpu_seconds() -> float:
    """CPU seconds so far."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, who))


class Stopwatch:
    """CPU seconds of calls since the last look."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, with its time counted."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            started = cpu_seconds()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds += cpu_seconds() - started

        return counted

    def take(self) -> float:
        """The seconds, which are forgotten."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds
