"""Earlier spellings of the client's flags, which work for one release with a warning."""

from __future__ import annotations

import functools
from typing import Any

import click
from click.core import ParameterSource

from headwise.commands.grouped_options import Flag


def former_flag(former: str, name: str, flag: str) -> Flag:
    """A decorator that adds the hidden flag `--former` in place of `flag`, the parameter `name`."""

    def decorate(command: Any) -> Any:
        @functools.wraps(command)
        def translated(**values: Any) -> Any:
            given = values.pop(former)
            if given is not None:
                source = click.get_current_context().get_parameter_source(name)
                if source is ParameterSource.COMMANDLINE:
                    raise click.UsageError(
                        f"--{former} and {flag} are two spellings of one option: give {flag} alone"
                    )
                values[name] = given
                click.echo(
                    f"Warning: --{former} works until the next release: use {flag} instead",
                    err=True,
                )
            return command(**values)

        return click.option(f"--{former}", former, type=float, hidden=True)(translated)

    return decorate
