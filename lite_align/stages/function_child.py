"""The process in which a function of the user's own runs: a script of the standard library alone.

    python function_child.py KIND FILE NAME SECONDS SECONDS_TO_START

KIND is one of `CONTRACTS`. It reads one JSON object a line (what the function can ask for) and writes one:
`{"ready": true}` or `{"refused": …}` at the start, then `{"value": 0.5}` or `{"error": kind, "message": …}` for each.
What the function prints goes to standard error. A call that takes longer than SECONDS ends the process with a
traceback that shows where it hung.
"""

import faulthandler
import inspect
import json
import math
import numbers
import os
import sys
import traceback
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_origin

Arguments = Mapping[str, tuple[str, tuple[type, ...]]]
"""What a function can ask for by name: meaning, and the types that an annotation may say."""

PLAIN = (
    str,
    int,
    float,
    bool,
    list,
    dict,
    tuple,
    set,
    bytes,
)  # annotations that are compared with `Arguments`


class Refused(Exception):
    """The function cannot be used at all."""


class WrongValue(Exception):
    """What the function returned is not what it is asked for."""


@dataclass(frozen=True)
class Contract:
    """What a kind of function is given, and what it gives back.

    Attributes:
        arguments: that it can ask for.
        checked: turns what it returned into what JSON can hold; WrongValue where that is impossible.
        returns: types that its annotation may name.
        wanted: those in words.
        wrong: what an error is counted as when it returned something else.
    """

    arguments: Arguments
    checked: Callable[[object], object]
    returns: tuple[type, ...]
    wanted: str
    wrong: str


def load(file: str, name: str) -> Callable[..., Any]:
    """Run the file as `python FILE` would find its imports, and take a function from it; Refused with file:line."""
    module = types.ModuleType("function_file")
    module.__file__ = os.path.abspath(file)
    sys.modules["function_file"] = module
    sys.path.insert(0, os.path.dirname(module.__file__))
    sys.argv = [file]
    try:
        with open(file, "rb") as opened:
            exec(compile(opened.read(), file, "exec"), module.__dict__)
    except OSError as error:
        raise Refused(f"{place(error, file)}: {first_line(error)}") from error
    except SyntaxError as error:
        raise Refused(f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}") from error
    except BaseException as error:  # sys.exit() in a file without `if __name__ == …` too
        raise Refused(f"{place(error, file)}: {first_line(error)}") from error
    if not hasattr(module, name):
        functions = [n for n, v in vars(module).items() if inspect.isfunction(v) and not n.startswith("_")]
        raise Refused(f"{file} has no {name}; its functions are: {', '.join(functions) or 'none'}.")
    return getattr(module, name)


def wanted(function: Any, name: str, contract: Contract) -> list[str]:
    """The arguments that a function asks for; Refused where it asks for others, or returns something else."""
    if not callable(function):
        raise Refused(f"{name} is no function: {type(function).__name__}.")
    if inspect.iscoroutinefunction(function):
        raise Refused(f"{name} is async; a plain function returns its value.")
    try:
        signature = inspect.signature(function)
    except ValueError as error:
        raise Refused(f"the arguments of {name} cannot be read: {error}") from error
    arguments, names = contract.arguments, list[str]()
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            return list(arguments)
        if parameter.name in arguments and parameter.kind in (
            parameter.POSITIONAL_OR_KEYWORD,
            parameter.KEYWORD_ONLY,
        ):
            check_annotation(parameter.annotation, parameter.name, name, arguments)
            names.append(parameter.name)
        elif parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL:
            known = "; ".join(f"{k} ({meaning})" for k, (meaning, _) in arguments.items())
            raise Refused(f"{name} asks for {parameter.name}. There is, by name: {known}.")
    returns = named(signature.return_annotation)
    if returns is not signature.empty and not (
        isinstance(returns, type) and issubclass(returns, contract.returns)
    ):
        raise Refused(f"{name} says that it returns {shown(signature.return_annotation)}; {contract.wanted}.")
    return names


def check_annotation(annotation: Any, argument: str, name: str, arguments: Arguments) -> None:
    """Refuse a plain type that the argument never has; whatever else an annotation says is the user's own."""
    meaning, allowed = arguments[argument]
    plain = named(get_origin(annotation) or annotation)
    if plain in PLAIN and plain not in allowed:
        raise Refused(
            f"{name} says that {argument} is {shown(annotation)}; it is {allowed[0].__name__} ({meaning})."
        )


def named(annotation: Any) -> Any:
    """The plain type that an annotation in quotes (or under `from __future__ import annotations`) names."""
    if isinstance(annotation, str):
        return {kind.__name__: kind for kind in PLAIN}.get(annotation.partition("[")[0], annotation)
    return annotation


def shown(annotation: Any) -> str:
    """An annotation as it is written."""
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def number(value: object) -> float:
    """Any real number that is finite, as a float; WrongValue otherwise, so for texts, None and tensors."""
    if not isinstance(value, numbers.Real):
        raise WrongValue(f"returned {value!r:.60} ({type(value).__name__}), not a number")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise WrongValue(f"returned {found}")
    return found


VERDICTS = ("a", "b", "tie")


def verdict(value: object) -> str | float:
    """One of `VERDICTS`, or the probability that `a` is better; WrongValue otherwise, so for True and 2."""
    if isinstance(value, str) and value in VERDICTS:
        return str(value)
    if isinstance(value, bool | str):
        raise WrongValue(f'returned {value!r:.60}, not "a", "b", "tie" or a probability')
    probability = number(value)
    if not 0 <= probability <= 1:
        raise WrongValue(f"returned {probability:g}, which is no probability")
    return probability


_CONVERSATION: Arguments = {
    "prompt": ("text of the last user turn", (str,)),
    "messages": ('turns before the answer, each {"role": …, "content": …}', (list,)),
}
CONTRACTS: Mapping[str, Contract] = {
    "reward": Contract(
        {
            **_CONVERSATION,
            "answer": ("text of the answer", (str,)),
            "row": ("columns of the prompt's row in the file", (dict,)),
            "stopped": ("whether the answer ended by itself", (bool, int)),
            "tokens": ("length of the answer in tokens", (int, float)),
        },
        number,
        (numbers.Real,),
        "a reward is a float, an int or a bool",
        "without a number",
    ),
    "judge": Contract(
        {
            **_CONVERSATION,
            "a": ("text of one answer", (str,)),
            "b": ("text of the other answer", (str,)),
            "row": ("the comparison as a row of a file", (dict,)),
        },
        verdict,
        (str, numbers.Real),
        'a verdict is "a", "b", "tie", or the probability that a is better',
        "without a verdict",
    ),
}


def first_line(error: BaseException) -> str:
    """Type and first line of an error."""
    line = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {line[:200]}" if line else type(error).__name__


def place(error: BaseException, file: str) -> str:
    """The last line of the user's file that an error passed through, as file:line; of any file where it did not."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == file] or list(frames[-1:])
    return f"{own[-1].filename}:{own[-1].lineno}" if own else file


def answer(
    function: Callable[..., Any], arguments: Mapping[str, object], file: str, contract: Contract
) -> dict[str, object]:
    """The reply to one request."""
    try:
        return {"value": contract.checked(function(**arguments))}
    except WrongValue as error:
        return {"error": contract.wrong, "message": str(error)}
    except BaseException as error:  # sys.exit() in the function ends a call, not the process
        return {"error": "raised an error", "message": f"{first_line(error)} ({place(error, file)})"}


def main(kind: str, file: str, name: str, seconds: float, start_seconds: float) -> None:
    """Serve requests until standard input ends."""
    contract = CONTRACTS[kind]
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what the function and its libraries print does not stand between replies
    process = os.getpid()

    def reply(message: dict[str, object]) -> None:
        line = json.dumps(message).encode() + b"\n"
        while line:
            line = line[os.write(replies, line) :]

    try:
        faulthandler.dump_traceback_later(start_seconds, exit=True, file=2)
        function = load(file, name)
        names = wanted(function, name, contract)
    except Refused as refused:
        reply({"refused": str(refused)})
        return
    finally:
        faulthandler.cancel_dump_traceback_later()
    reply({"ready": True})
    for request in requests:
        given = json.loads(request)
        faulthandler.dump_traceback_later(seconds, exit=True, file=2)
        message = answer(function, {key: given[key] for key in names}, file, contract)
        if os.getpid() != process:  # the function forked, and this is the copy: it has nobody to answer to
            os._exit(0)
        faulthandler.cancel_dump_traceback_later()
        reply(message)


if __name__ == "__main__":
    kind, file, name, seconds, start_seconds = sys.argv[1:]
    main(kind, file, name, float(seconds), float(start_seconds))
