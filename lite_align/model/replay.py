"""How steps of the sampler are run: one by one, or captured once as a CUDA graph and replayed.

A step takes no arguments: it reads and writes buffers that stay where they are. A bucket names what is constant in it
(rows and slots); another bucket is another list of kernels.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable

import torch
from transformers import PreTrainedModel

Step = Callable[[], None]


class Runner(ABC):
    """Runs steps, and says which sizes suit it.

    Attributes:
        slots: the visible part of the cache grows by so many.
        steps: so many are run before the host looks which rows are finished.
        note: what a person should know about how the steps were run; empty if nothing.
    """

    slots: int
    steps: int
    note = ""

    @abstractmethod
    def rows(self, now: int, alive: int) -> int:
        """How many rows to go on with when so many are alive: `now`, or fewer if that pays; 0 if none is."""

    @abstractmethod
    def run(self, bucket: Hashable, step: Step) -> None:
        """Run the step once."""


class Eager(Runner):
    """Runs steps as they are; rows leave soon, because nothing has to be captured again."""

    slots = 32
    steps = 4

    def rows(self, now: int, alive: int) -> int:
        """Leave finished rows behind once they are an eighth."""
        return alive if alive <= now * 7 // 8 else now

    def run(self, bucket: Hashable, step: Step) -> None:
        """Run the step."""
        step()


class Replayed(Runner):
    """Captures the second step of each bucket and replays it from then on; the first one is the warm-up.

    If a capture fails, all further steps are run as they are, and `note` says so.
    """

    slots = 128
    steps = 8

    def __init__(self) -> None:
        self._captured: dict[Hashable, Step] = {}

    def rows(self, now: int, alive: int) -> int:
        """Take the next power of two once half of the rows are finished: few buckets serve all batches."""
        if alive > now // 2:
            return now
        return 1 << (alive - 1).bit_length() if alive else 0

    def run(self, bucket: Hashable, step: Step) -> None:
        """Replay the bucket's step, or capture it."""
        if self.note:
            step()
        elif bucket not in self._captured:
            self.warm_up(step)
            self._captured[bucket] = lambda: self._first_replay(bucket, step)
        else:
            self._captured[bucket]()

    def _first_replay(self, bucket: Hashable, step: Step) -> None:
        try:
            self._captured[bucket] = self.capture(step)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # Nothing was run while it was captured, so the step is still to be made.
            self.note = f"sampling runs without CUDA graphs (slower): {str(error).splitlines()[0]}"
            self._captured[bucket] = step
        self._captured[bucket]()

    @abstractmethod
    def warm_up(self, step: Step) -> None:
        """Run a step so that everything it sets up at its first use is there."""

    @abstractmethod
    def capture(self, step: Step) -> Step:
        """Record a step without running it; the result runs what was recorded."""


class CudaGraphs(Replayed):
    """Steps as CUDA graphs, captured as https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs says.

    All graphs share a pool of memory: they run one after another, and what a step leaves is in the buffers.

    Args:
        device: of the model.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, step: Step) -> None:
        """Run the step on the side stream that captures."""
        main = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(main)
        with torch.cuda.stream(self._stream):
            step()
        main.wait_stream(self._stream)

    def capture(self, step: Step) -> Step:
        """Capture a graph; other threads (pinned memory) may go on meanwhile."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            step()
        return graph.replay


def runner_of(model: PreTrainedModel) -> Runner:
    """CUDA graphs on CUDA, where the model's step is the same list of kernels every time."""
    return CudaGraphs(model.device) if model.device.type == "cuda" and capturable(model) else Eager()


def capturable(model: PreTrainedModel) -> bool:
    """Whether a step never asks the host: no experts that are chosen there, no rotation that follows the length."""
    rope = model.config.get_text_config().to_dict().get("rope_parameters") or {}
    kinds = {str(part.get("rope_type")) for part in (rope, *rope.values()) if isinstance(part, dict)}
    return model._can_compile_fullgraph and not kinds & {"dynamic", "longrope"}
