"""What stops a device in the middle of the work: its memory runs out, or it is lost.

Memory that runs out costs the pass that needed it: the work is done again in smaller passes. A lost device ends the
process; its checkpoints stay.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from lite_align.errors import DeviceLost, TooLittleMemory

T = TypeVar("T")

# Only torch's own allocator raises OutOfMemoryError; CUDA itself, cuBLAS, compiled code and the CPU say it in words.
_OUT_OF_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory")
# Where torch does not raise AcceleratorError (libraries that call CUDA themselves).
_LOST = (
    "device-side assert",
    "unspecified launch failure",
    "illegal memory access",
    "uncorrectable ECC error",
    "CUBLAS_STATUS_EXECUTION_FAILED",
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; the device is fine."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def device_lost(error: BaseException) -> bool:
    """Whether an error says that nothing can be computed on the device any more, by this process at least."""
    if not isinstance(error, RuntimeError) or out_of_memory(error):
        return False
    return isinstance(error, torch.AcceleratorError) or any(words in str(error) for words in _LOST)


@contextmanager
def lost_device_told(folder: Path) -> Iterator[None]:
    """Turn the errors of a lost device into one that says how the run in `folder` goes on.

    Raises:
        DeviceLost: nothing was saved from the broken device; the last checkpoint is as it was.
    """
    try:
        yield
    except RuntimeError as error:
        if not device_lost(error):
            raise
        raise DeviceLost(
            "The device stopped working in the middle of the run.",
            details=[_first_line(error)],
            remedy=f"Start the same command again with --resume --out {folder}: it goes on from the last checkpoint. "
            "If it stops at the same step again, look at the rows and at the driver's log (Xid errors in dmesg).",
        ) from error


# Memory.


class Size(NamedTuple):
    """How much a pass holds."""

    tokens: int
    examples: int


class Shortage(NamedTuple):
    """That memory ran out, in the words of whoever noticed."""

    words: str


def attempt(work: Callable[[], T]) -> T | Shortage:
    """Return what `work` returns, or Shortage if memory ran out; what it held is free then."""
    try:
        return work()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        words = _first_line(error)
    # Not inside the handler: the error holds the frames of the work, and they hold its graph.
    free_memory()
    return Shortage(words)


def free_memory() -> None:
    """Free what nothing refers to any more, cycles too, and give it back to the device: before the next model, say."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def smaller(passes: Sequence[Size]) -> int | None:
    """Half the tokens of the largest pass with several examples; None if every pass holds a single one."""
    return max((size.tokens // 2 for size in passes if size.examples > 1), default=None)


@dataclass(frozen=True)
class Lowered:
    """One lowering of the token budget; `where` says what was done when memory ran out."""

    where: str
    before: int
    after: int
    words: str

    def __str__(self) -> str:
        return (
            f"Memory ran out in {self.where}: it is done again with the same examples, and passes hold at most "
            f"{self.after:,} tokens from now on (before: {self.before:,})."
        )


class TokenBudget:
    """How many tokens a pass through the model may hold; lowered for the rest of the run where memory runs out.

    Args:
        tokens: as planned.
        tell: hears of every lowering.
        levers: what else would need less memory, for the error where nothing can be lowered.
    """

    def __init__(
        self,
        tokens: int,
        *,
        tell: Callable[[Lowered], None] = lambda lowered: None,
        levers: Sequence[str] = (),
    ) -> None:
        self.planned = tokens
        self.tokens = tokens
        self._tell = tell
        self._levers = tuple(levers)

    def lower(self, shortage: Shortage, where: str, passes: Sequence[Size]) -> None:
        """Halve the passes, one of which ran out of memory.

        Raises:
            TooLittleMemory: each of them holds a single example.
        """
        tokens = smaller(passes)
        if tokens is None:
            longest = max(size.tokens for size in passes)
            raise TooLittleMemory(
                f"The device has too little memory for one example at a time, in {where}.",
                details=[f"the longest example there holds {longest:,} tokens", shortage.words],
                remedy=" · ".join(self._levers),
            )
        lowered = Lowered(where, self.tokens, tokens, shortage.words)
        self.tokens = tokens
        self._tell(lowered)

    def apart(self, tokens: int) -> "TokenBudget":
        """A budget of so many tokens for passes of another kind, with the same listener and advice."""
        return TokenBudget(tokens, tell=self._tell, levers=self._levers)

    def state(self) -> dict[str, int]:
        """The budget for a checkpoint."""
        return {"planned": self.planned, "tokens": self.tokens}

    def load_state(self, state: dict[str, int]) -> None:
        """Go on with a lowered budget, unless the recipe has set another one since."""
        if state["planned"] == self.planned:
            self.tokens = min(self.tokens, state["tokens"])


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
