"""A warm process that forks a child for each command line it reads, so that a start costs no imports.

One order a line on stdin, as JSON: `arguments`, `log` (a file for both outputs), `cache` (a folder), and what strikes
the child: `operation` (a fault of `lite_align.train.files`, such as "rename:3") or `call` ("module:name", and the `nth`
call before which the child sends itself `signal` or raises `error`, the name and the text of an error of torch).
Answers: the pid of the child, and after one more line, whatever it says, its exit code (-9 after SIGKILL). The first
line of all says what the imports loaded of torch's compiler.
"""

import functools
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

# Imported here once, so that no child spends its time on it.
import matplotlib.figure  # noqa: F401 (loaded for the children)
import torch
import transformers.models.llama.modeling_llama  # noqa: F401 (loaded for the children)

import lite_align.evaluate.curves
import lite_align.flywheel.sample  # before any stage: it reaches peft by another way
import lite_align.stages.training  # noqa: F401 (loaded for the children)
from lite_align import cli
from lite_align.stages import answers
from lite_align.train import files

answers.PROBES, answers.PROBE_TOKENS = 2, 8


def strike_before(call: str, nth: int, strike: Callable[[], None]) -> None:
    """Do something before the n-th call of a function or method."""
    module, _, dotted = call.partition(":")
    *parents, name = dotted.split(".")
    owner: Any = functools.reduce(getattr, parents, importlib.import_module(module))
    function, calls = getattr(owner, name), iter(range(1, sys.maxsize))

    @functools.wraps(function)
    def wrapper(*args: Any, **keywords: Any) -> Any:
        if next(calls) == nth:
            strike()
        return function(*args, **keywords)

    setattr(owner, name, wrapper)


def strike(order: dict[str, Any]) -> None:
    """Send this process a signal, or raise an error of torch."""
    if "signal" in order:
        os.kill(os.getpid(), order["signal"])
    else:
        name, text = order["error"]
        raise getattr(torch, name)(text)


def obey(order: dict[str, Any]) -> int:
    """What the child does: run the command line, struck as ordered, and return its exit code."""
    # A shell starts background jobs with SIGINT ignored, and children inherit that: Ctrl-C would do nothing here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["LITE_ALIGN_CACHE"] = order["cache"]
    if "call" in order:
        strike_before(order["call"], order["nth"], functools.partial(strike, order))
    fault = files.Fault.parse(order["operation"]) if "operation" in order else None
    with files.observed(fault) if fault else nullcontext():
        code = cli.run(order["arguments"])
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def main() -> None:
    """Serve until stdin ends."""
    print(json.dumps([name for name in sys.modules if name.startswith("torch._inductor")]), flush=True)
    while line := sys.stdin.readline():
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            code = 99
            try:
                code = obey(order)
            finally:
                os._exit(code)
        print(child, flush=True)
        sys.stdin.readline()  # the child is not reaped before this, so its pid belongs to no one else
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
