"""A group of commands in which no error ends in a traceback."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

import click

# where it is set, errors that were not foreseen keep their tracebacks
TRACEBACK_VARIABLE = "HEADWISE_TRACEBACK"

_PASSED = (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError)
_OUTPUT_FAILS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}
_MOST_CHARACTERS = 300


class OneLineErrors(click.Group):
    """A group whose commands end with one line for each error, also for unforeseen ones."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Run the command line, as click does."""
        try:
            return super().main(*arguments, **options)
        except OSError as error:
            # click prints the help before any command is invoked
            click.ClickException(_line(error)).show()
            sys.exit(1)

    def invoke(self, ctx: click.Context) -> Any:
        """Invoke the command. Raises `click.ClickException` for any error."""
        try:
            return super().invoke(ctx)
        except _PASSED:
            raise
        except Exception as error:
            if os.environ.get(TRACEBACK_VARIABLE):
                raise
            raise click.ClickException(_line(error)) from error


def _line(error: Exception) -> str:
    match error:
        case UnicodeEncodeError():
            return "a value is not valid UTF-8: give text in UTF-8"
        case UnicodeDecodeError():
            return "a file is not valid UTF-8: give text in UTF-8"
        case OSError(filename=None, errno=code) if code in _OUTPUT_FAILS:
            _drop_output()
            return f"standard output cannot be written: {error.strerror}"
        case OSError(filename=str() as name):
            return f"{name}: {error.strerror}"
    lines = str(error).splitlines()
    text = lines[0][:_MOST_CHARACTERS] if lines else "no message"
    kind = type(error).__name__
    return f"{text} ({kind}); {TRACEBACK_VARIABLE}=1 shows where it happened"


def _drop_output() -> None:
    """Let the rest of standard output go nowhere.

    At the end of the process Python would try to write it again, and print an error of its own.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
