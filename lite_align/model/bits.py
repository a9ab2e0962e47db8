"""The one door to bitsandbytes: imported without the compiler that it would load, and without what it says on import.

bitsandbytes (0.50) decorates functions with `torch.compile` as it is imported, for devices that have no kernels of
their own. `torch.compile` imports the whole compiler (torch._inductor) at once, a fifth of the start of every command,
and a run on a CPU or on CUDA calls none of these functions. So what is decorated during this import is compiled when it
is first called, by the same `torch.compile` with the same options. To be deleted once bitsandbytes compiles at the
first call itself, or torch imports its compiler there:
https://github.com/bitsandbytes-foundation/bitsandbytes/blob/main/bitsandbytes/backends/default/ops.py
"""

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["Linear4bit", "Linear8bitLt", "compiled_at_first_call", "functional", "version"]

_KNOWN = {
    # Said on import where a hub kernel for CPU inference is not installed; `load` switches that path off anyway.
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    # Said by every int8 layer in every forward pass; it is how int8 works.
    "bitsandbytes.autograd._functions": "MatMul8bitLt: inputs will be cast",
}
"""Loggers of bitsandbytes (0.50) and the one message of each that says nothing to a user."""

for _name, _start in _KNOWN.items():
    logging.getLogger(_name).addFilter(lambda record, start=_start: not str(record.msg).startswith(start))


@contextmanager
def compiled_at_first_call() -> Iterator[None]:
    """Let functions that are decorated with `torch.compile` in the block be compiled when they are first called."""
    original = torch.compile

    def postponed(model: Callable[..., Any] | None = None, **options: Any) -> Any:
        if model is None:
            return functools.partial(postponed, **options)
        if not inspect.isfunction(model):
            return original(model, **options)
        compiled = functools.cache(functools.partial(original, model, **options))

        @functools.wraps(model)
        def call(*arguments: Any, **keywords: Any) -> Any:
            # In a graph that is being traced, a compiled function is the function itself, as for torch.compile.
            function = model if torch.compiler.is_compiling() else compiled()
            return function(*arguments, **keywords)

        return call

    torch.compile = postponed
    try:
        yield
    finally:
        torch.compile = original


with compiled_at_first_call():
    import bitsandbytes.functional as functional
    from bitsandbytes import __version__ as version
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
