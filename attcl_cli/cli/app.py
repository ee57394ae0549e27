"""The Typer app: which commands there are, and how the process ends.

Each command is a file beside this one; a stage, and with it torch, is loaded when its command runs, so that
`attcl --help` answers at once.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from attcl_cli import __version__, run_ends, temporaries
from attcl_cli.cli import (
    complete,
    demo,
    evaluate,
    export,
    info,
    meant,
    options,
    prepare_splits,
    score,
    segment,
    streams,
    terminal,
    train,
    weights,
)
from attcl_cli.errors import EXIT_INTERRUPTED, AttclError, UsageError

# What the parser raises. Recent Typers bring a click of their own, so the class is found, not imported.
ParserError: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)

app = typer.Typer(
    name="attcl",
    help="Complete multi-modal MRI datasets with missing modalities: learn from what is there, synthesise the rest.",
    epilog="Examples:  attcl demo   |   attcl info BraTS2021/",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class _Command(TyperCommand):
    """A command with options whose value may be left out, which Typer does not have."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put in the values that are left out, and parse."""
        return super().parse_args(ctx, with_values(args, options.IF_WITHOUT_VALUE))


def with_values(arguments: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """Return the arguments with the value of each option that stands there without one: `--ray` is `--ray local`.

    Args:
        arguments: of a command.
        values: option -> its value if another option follows, or nothing.
    """
    whole: list[str] = []
    for argument, following in pairwise([*arguments, "-"]):
        whole.append(argument)
        if argument in values and following.startswith("-"):
            whole.append(values[argument])
    return whole


# Command -> its function, and the examples that end its help; in the order of --help.
COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "prepare-splits": (prepare_splits.prepare_splits, prepare_splits.EXAMPLES),
    "train": (train.train, train.EXAMPLES),
    "complete": (complete.complete, complete.EXAMPLES),
    "score": (score.score, score.EXAMPLES),
    "segment": (segment.segment, segment.EXAMPLES),
    "evaluate": (evaluate.evaluate, evaluate.EXAMPLES),
    "export": (export.export, export.EXAMPLES),
    "demo": (demo.demo, demo.EXAMPLES),
    "info": (info.info, info.EXAMPLES),
}
for _name, (_function, _examples) in COMMANDS.items():
    app.command(_name, cls=_Command, epilog=_examples)(_function)
app.add_typer(weights.app, name="weights")


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        terminal.result(f"attcl {__version__}")
        raise typer.Exit


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line, and exit with one of the documented codes.

    Args:
        argv: the arguments; None: those of this process, which then is all ours, to its last moment.
    """
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    ours = argv is None
    if ours:
        streams.occupy_closed()
        atexit.register(run_ends.ignore_signals)  # before what libraries register, so it runs last
    with run_ends.signals():
        try:
            code = _run_watched(arguments)
            if ours:
                run_ends.settle(partial(_leave, code))
        except KeyboardInterrupt:  # before the command began, or while its end was being reported
            with run_ends.last_words():
                with streams.watched():
                    code = _report(run_ends.stopped(), arguments)
                if ours:
                    run_ends.settle(partial(_leave, code))
        if run_ends.is_urgent():
            _leave(code)
        sys.exit(code)


def _leave(code: int) -> None:
    """End the process without waiting for anything, such as a thread that writes."""
    temporaries.discard_all()
    os._exit(code)


def _run_watched(arguments: list[str]) -> int:
    """Run a command as `_run` does; that its results could not be shown is an error, too."""
    try:
        with streams.watched():
            return _run(arguments)
    except AttclError as error:
        return _report(error, ())


def _run(arguments: list[str]) -> int:
    """Run a command and report the error that it ends with, if any; return the exit code.

    Raises:
        Exception: a bug, which is reported before.
    """
    code = 0
    try:
        code = app(args=arguments, prog_name="attcl", standalone_mode=False) or 0
    except AttclError as error:
        if "--debug" in arguments:
            terminal.show_traceback()
        return _report(error, arguments)
    except ParserError as error:
        context = getattr(error, "ctx", None)
        help_of = context.command_path if context else _command_of(arguments)
        message = error.format_message()  # type: ignore[attr-defined]
        hint = f"see: {help_of} --help{meant.for_paths(message, arguments)}"
        return _report(UsageError(message, hint, code="command-line-invalid"), arguments)
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    except Exception as error:
        problem = run_ends.explained(error)
        if problem is None:
            _report(_bug(error), ())
            raise
        if "--debug" in arguments:
            terminal.show_traceback()
        return _report(problem, arguments)
    if code == EXIT_INTERRUPTED:  # Typer turns Ctrl-C, and so each signal, into this code by itself
        return _report(run_ends.stopped(), arguments)
    return code


def _command_of(arguments: Sequence[str]) -> str:
    """Return the command that the parser refused without naming it."""
    known = {*COMMANDS, "weights"}
    return " ".join(["attcl", *(name for name in arguments[:1] if name in known)])


def _bug(error: Exception) -> AttclError:
    """Return what is said before the traceback of an exception that nobody expected."""
    return AttclError(
        f"unexpected {type(error).__name__} ({error}); finished files are kept",
        "this is a bug: please report the lines below; the same command again may continue",
        code="unexpected",
    )


def _report(error: AttclError, arguments: Sequence[str]) -> int:
    """Show an error on stderr, with --json as the document on stdout, too; return its exit code."""
    meant.name_as_typed(error, arguments)
    meant.add_command(error, arguments)
    terminal.show_error(error)
    if "--json" in arguments:
        terminal.document(terminal.describe(error))
    return error.exit_code
