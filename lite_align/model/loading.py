"""Loading a model in the background, while the host does something else."""

import functools
import threading

import torch

from lite_align.model.load import Loaded, read
from lite_align.recipe import ModelOptions


class Loading:
    """Reads a model in a thread of its own: `with Loading(...):` around what is done meanwhile, then `result`.

    Nothing else may compute with torch in the block, as transformers changes settings of the process while it reads.
    At its end the thread is over, whatever happened; what went wrong in it is told by `result`.

    Args:
        options: as for `read`.
        device: where the model goes.
    """

    def __init__(self, options: ModelOptions, *, device: torch.device) -> None:
        self._read = functools.partial(read, options, device=device)
        self._loaded: Loaded | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="loading")

    def __enter__(self) -> "Loading":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()

    def _run(self) -> None:
        try:
            self._loaded = self._read()
        except BaseException as error:  # raised again by `result`
            self._error = error

    def result(self) -> Loaded:
        """The model.

        Raises:
            ModelError: as `load_model`.
        """
        if self._error is not None:
            raise self._error
        assert self._loaded is not None
        return self._loaded
