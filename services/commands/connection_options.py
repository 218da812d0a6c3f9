"""Flags of commands that call a service: its address, TLS, the token and the tenant."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import click

from headwise import Client, HeadwiseError, Tls
from headwise.connection import Connection
from services.commands.grouped_options import Flag, grouped

_FILE = click.Path(exists=True, dir_okay=False, path_type=pathlib.Path)
_TARGET: Flag = click.option(
    "--target",
    default="127.0.0.1:7080",
    show_default=True,
    help="Address of the decode service, as HOST:PORT.",
)
_CREDENTIALS: tuple[Flag, ...] = (
    click.option("--tenant", default="", help="Tenant to call for; empty for the default one."),
    click.option(
        "--tls-ca",
        type=_FILE,
        help="PEM file with the authorities that the service's certificate must come from.",
    ),
    click.option(
        "--tls-certificate",
        type=_FILE,
        help="PEM file with the certificate to show to the service.",
    ),
    click.option(
        "--tls-key", type=_FILE, help="PEM file with the private key of --tls-certificate."
    ),
    click.option("--token-file", type=_FILE, help="File with the token to send."),
)


@dataclasses.dataclass(frozen=True, slots=True)
class ConnectionFlags:
    """The values of the flags."""

    target: str
    tenant: str
    tls_ca: pathlib.Path | None
    tls_certificate: pathlib.Path | None
    tls_key: pathlib.Path | None
    token_file: pathlib.Path | None

    @contextlib.contextmanager
    def client(self) -> Iterator[Client]:
        """A client until the block ends; an error of a call ends the command with its message."""
        tls = self._tls()
        with _usage_errors():
            client = Client(self.target, tls=tls, token=self._token(), tenant=self.tenant)
        try:
            with client:
                yield client
        except HeadwiseError as error:
            raise click.ClickException(str(error)) from error

    def connection(self) -> Connection:
        """A connection for calls that `Client` does not make. A failed call is not repeated."""
        tls, token = self._tls(), self._token()
        with _usage_errors():
            if tls is not None:
                tls.credentials()
            connection = Connection(
                self.target, tls=tls, token=token, retries=False, tenant=self.tenant
            )
        try:
            connection.metadata()
        except ValueError as error:
            raise click.UsageError(f"--token-file: {error}") from error
        return connection

    def _token(self) -> str | None:
        return None if self.token_file is None else self.token_file.read_text().strip()

    def _tls(self) -> Tls | None:
        """The TLS files, or None for plain text. Raises `click.UsageError` at half a pair."""
        files = self.tls_ca, self.tls_certificate, self.tls_key
        if files == (None, None, None):
            return None
        try:
            return Tls(*files)
        except ValueError as error:
            raise click.UsageError(f"--tls-certificate, --tls-key: {error}") from error


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    """Turn an error about a token or a file into a `click.UsageError`."""
    try:
        yield
    except ValueError as error:
        raise click.UsageError(f"{error}: --tls-ca") from error
    except OSError as error:
        raise click.UsageError(f"a file of --tls-… cannot be used: {error.strerror}") from error


def connection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that adds all flags and gives the command their values as `connection`."""
    return grouped("connection", ConnectionFlags, (_TARGET, *_CREDENTIALS))(command)


def credential_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator for commands with targets of their own; the target of `connection` is empty."""
    return grouped("connection", ConnectionFlags, _CREDENTIALS)(command)
