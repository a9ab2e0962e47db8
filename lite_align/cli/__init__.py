"""The command line: one place parses, one place turns errors into text and exit codes. Imports no torch."""

import difflib
import io
import os
import re
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer
from typer.main import get_command

from lite_align import __version__
from lite_align.cli import chat, data, evaluate, export, flywheel, inspect, train
from lite_align.errors import LiteAlignError, UserError

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"lite-align {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Align a language model on one GPU: preferences in, adapter, verdict and report out.

    First run: lite-align dpo data.jsonl
    """


for _verb in (
    train.sft,
    train.dpo,
    train.reward,
    train.ppo,
    train.run,
    data.check,
    evaluate.eval_,
    evaluate.compare,
    evaluate.promote,
    evaluate.rollback,
    evaluate.sample,
    inspect.report,
    chat.chat,
    export.export,
    flywheel.label,
    flywheel.agreement,
    flywheel.judge,
    flywheel.loop,
    inspect.doctor,
    inspect.losses,
    inspect.runs,
):
    app.command(_verb.__name__.rstrip("_"))(_verb)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the console script: run one command and exit with its code."""
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; every error becomes one block of text on stderr."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Threads that wait by spinning make torch ten times slower where another program runs on the same cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # oneDNN keeps what it compiled for 1,024 products, of which a step needs some forty: half a GB in bf16.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without UTF-8 shows `?`, it stops no run
            stream.reconfigure(errors="replace")
    try:
        result = get_command(app)(arguments or ["--help"], prog_name="lite-align", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except LiteAlignError as error:
        return _tell(error, arguments)
    except typer.TyperException as error:
        return _tell(_usage_error(error, arguments), arguments)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:  # the reader of our output went away, as in `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # the last resort: a bug must still end in one line and exit code 1
        return _tell(_unexpected(error, arguments), arguments)


def _tell(error: LiteAlignError, arguments: Sequence[str]) -> int:
    from lite_align.view import View

    if "--debug" in arguments:
        import traceback

        from lite_align.view import clean

        sys.stderr.write(clean(traceback.format_exc()))
    View("--quiet" in arguments, "--json" in arguments).error(error)
    return error.exit_code


def _unexpected(error: Exception, arguments: Sequence[str]) -> LiteAlignError:
    first_line = next(iter(str(error).splitlines()), "")
    verb = arguments[0] if arguments else ""
    return LiteAlignError(
        f"{type(error).__name__}: {first_line}".rstrip(": "),
        details=["This was not expected: a bug here, or in a library that is used."],
        remedy=f"lite-align {verb} … --debug shows the traceback.",
    )


def _usage_error(error: typer.TyperException, arguments: Sequence[str]) -> UserError:
    """A wrong flag or verb in our words, with the nearest one that exists."""
    commands = vars(get_command(app))["commands"]
    verb = next((word for word in arguments if word in commands), None)
    text = error.format_message()
    remedy = (
        f"lite-align {verb} --help lists the options." if verb else "lite-align --help lists the commands."
    )
    if wrong := re.search(r"No such option: (--?[^\s=]+)", text):
        known = ["--help", *(name for param in commands[verb].params for name in param.opts)] if verb else []
        near = difflib.get_close_matches(wrong[1], known or ["--help", "--version"], n=1)
        of = f"lite-align {verb}" if verb else "lite-align"
        text = f"{wrong[1]} is not an option of {of}." + (f" Did you mean {near[0]}?" if near else "")
    elif wrong := re.search(r"No such command '([^']+)'", text):
        near = difflib.get_close_matches(wrong[1], list(commands), n=1)
        text = f"{wrong[1]} is not a command." + (f" Did you mean {near[0]}?" if near else "")
    elif missing := re.search(r"Missing argument '?([A-Z]+)", text):
        text = f"{missing[1]} is missing."
        remedy = f"lite-align {verb} {missing[1]}; {remedy}"
    return UserError(text, remedy=remedy)
