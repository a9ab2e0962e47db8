"""The error tree: every error says what is wrong, where, and what to do.

Commands end with the `exit_code` of the error that stopped them; a traceback is for bugs only.
"""

from collections.abc import Sequence


class LiteAlignError(Exception):
    """An error for people: `what` is wrong, at which places, and the remedy.

    Args:
        what: one sentence without the remedy.
        remedy: what the reader can do now.
        details: one line for each place, usually `file:line what is wrong there`.
    """

    exit_code = 1

    def __init__(self, what: str, *, remedy: str = "", details: Sequence[str] = ()) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy
        self.details = tuple(details)

    def __str__(self) -> str:
        return "\n".join(filter(None, (self.what, *self.details, self.remedy)))


class UserError(LiteAlignError):
    """The input of the user is wrong: data, recipe, flag or path."""

    exit_code = 2


class DataError(UserError):
    """Rows cannot be read, have the wrong shape, or too many of them are unusable."""


class RecipeError(UserError):
    """A recipe or a `--set` has an unknown key or a value that does not fit."""


class ModelError(UserError):
    """A model or tokenizer cannot be found, read or used for training."""


class DriftError(UserError):
    """A resumed run would not continue the run that was interrupted."""


class TooLittleMemory(UserError):
    """Not even one example at a time fits the device; the last checkpoint is intact."""


class GateFailed(LiteAlignError):
    """A quality gate was not passed."""

    exit_code = 3


class RunInUse(LiteAlignError):
    """Another process holds the lock of the run folder."""

    exit_code = 73


class DiskFull(LiteAlignError):
    """A checkpoint or artefact does not fit on the disk."""

    exit_code = 74


class DeviceLost(LiteAlignError):
    """The accelerator failed; the last checkpoint is intact and the run can be resumed."""

    exit_code = 75


class TrainingStopped(LiteAlignError):
    """A proof or a safety check failed during training (not finite, wrong reference, frozen adapter)."""


class Interrupted(LiteAlignError):
    """A signal asked the run to stop and its state was saved.

    Args:
        signal_number: SIGINT (2) or SIGTERM (15); the exit code is 128 plus it.
    """

    def __init__(self, what: str, *, signal_number: int, remedy: str = "") -> None:
        super().__init__(what, remedy=remedy)
        self.exit_code = 128 + signal_number
