"""The `headwise` command. Each subcommand imports what it needs only when it runs."""

from __future__ import annotations

import importlib
import os
import sys

import click

# of the distribution headwise-server
_SERVING = "services.commands"


def main() -> None:
    """Entry point of the distribution's console script."""
    # idle OpenMP threads that spin take the cores from the other process: on two busy cores a
    # decode step took 385 ms with them and 87 ms without. torch reads this when it is loaded
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        # None where it is closed. An answer may hold any character, a terminal may not
        if stream is not None:
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    command_line()()


def command_line() -> click.Group:
    """All commands, or the client's alone in an installation without headwise-server."""
    try:
        group: click.Group = importlib.import_module(_SERVING).command_line
    except (ImportError, AttributeError):
        # the second for another package of this name
        from headwise.commands import client_command_line

        return client_command_line
    return group


if __name__ == "__main__":
    main()
