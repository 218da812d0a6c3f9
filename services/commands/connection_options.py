"""Flags of commands that call a service: where it is, whom to trust, and as whom to call."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click

from headwise import Client, HeadwiseError, Tls
from headwise.connection import Connection

_FILE = click.Path(exists=True, dir_okay=False, path_type=pathlib.Path)
_Flag = Callable[[Callable[..., Any]], Callable[..., Any]]
_TARGET: _Flag = click.option(
    "--target", default="127.0.0.1:7080", show_default=True, help="Decode service."
)
_CREDENTIALS: tuple[_Flag, ...] = (
    click.option("--tenant", default="", help="On whose behalf; empty for the default."),
    click.option("--tls-ca", type=_FILE, help="Authorities to check the service by (PEM)."),
    click.option("--tls-certificate", type=_FILE, help="Own certificate (PEM)."),
    click.option("--tls-key", type=_FILE, help="The certificate's private key (PEM)."),
    click.option("--token-file", type=_FILE, help="File with the token to call with."),
)


@dataclasses.dataclass(frozen=True, slots=True)
class ConnectionFlags:
    """What the flags said."""

    target: str
    tenant: str
    tls_ca: pathlib.Path | None
    tls_certificate: pathlib.Path | None
    tls_key: pathlib.Path | None
    token_file: pathlib.Path | None

    @contextlib.contextmanager
    def client(self) -> Iterator[Client]:
        """A client until the block ends; its errors end the command with their message."""
        tls = self._tls()
        with _usage_errors():
            client = Client(self.target, tls=tls, token=self._token(), tenant=self.tenant)
        try:
            with client:
                yield client
        except HeadwiseError as error:
            raise click.ClickException(str(error)) from error

    def connection(self) -> Connection:
        """For calls that `Client` does not make; nothing is tried twice."""
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
        """None for plain text. Raises `click.UsageError` where one of a pair is missing."""
        files = self.tls_ca, self.tls_certificate, self.tls_key
        if files == (None, None, None):
            return None
        try:
            return Tls(*files)
        except ValueError as error:
            raise click.UsageError(f"--tls-certificate, --tls-key: {error}") from error


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    """What is wrong with a token or a file becomes the caller's mistake."""
    try:
        yield
    except ValueError as error:
        raise click.UsageError(f"{error}: --tls-ca") from error
    except OSError as error:
        raise click.UsageError(f"a file of --tls-… cannot be used: {error.strerror}") from error


def connection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that adds the flags, and gives the command `connection`, what they said."""
    return _with_flags(command, (_TARGET, *_CREDENTIALS))


def credential_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The same for a command with targets of its own: that of `connection` is empty."""
    return _with_flags(command, _CREDENTIALS)


def _with_flags(command: Callable[..., Any], flags: Sequence[_Flag]) -> Callable[..., Any]:
    @functools.wraps(command)
    def with_connection(**arguments: Any) -> Any:
        names = [field.name for field in dataclasses.fields(ConnectionFlags)]
        said = ConnectionFlags(**{name: arguments.pop(name, "") for name in names})
        return command(connection=said, **arguments)

    decorated: Callable[..., Any] = with_connection
    for flag in reversed(flags):
        decorated = flag(decorated)
    return decorated
