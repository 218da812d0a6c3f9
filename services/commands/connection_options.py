"""Flags of commands that call a service: whom to trust, and as whom to call."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any, TypeVar

import click

from headwise import Tls

Command = TypeVar("Command", bound=Callable[..., Any])

_FILE = click.Path(exists=True, dir_okay=False, path_type=pathlib.Path)
_FLAGS = (
    click.option("--tls-ca", type=_FILE, help="Authorities to check the service by (PEM)."),
    click.option("--tls-certificate", type=_FILE, help="Own certificate (PEM)."),
    click.option("--tls-key", type=_FILE, help="The certificate's private key (PEM)."),
    click.option("--token-file", type=_FILE, help="File with the token to call with."),
)


def connection_options(command: Command) -> Command:
    """A decorator that adds the flags which `tls_of` and `token_of` take."""
    for flag in reversed(_FLAGS):
        command = flag(command)
    return command


def tls_of(
    ca: pathlib.Path | None, certificate: pathlib.Path | None, key: pathlib.Path | None
) -> Tls | None:
    """None for plain text. Raises `click.UsageError` where one of a pair is missing."""
    if ca is None and certificate is None and key is None:
        return None
    try:
        return Tls(ca, certificate, key)
    except ValueError as error:
        raise click.UsageError(f"--tls-certificate, --tls-key: {error}") from error


def token_of(file: pathlib.Path | None) -> str | None:
    return None if file is None else file.read_text().strip()
