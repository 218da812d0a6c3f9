"""Flags of commands that call a service: its address, TLS, the token and the tenant."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import click

from headwise import Client, HeadwiseError, Tls
from headwise.commands.grouped_options import Flag, grouped
from headwise.connection import Connection, is_token
from headwise.target import target_fault

_FILE = click.Path(exists=True, dir_okay=False, path_type=pathlib.Path)
# the variables of this module's flags; those of certificates would be a service's own
CLIENT_VARIABLES = {
    name: f"HEADWISE_{name.upper()}" for name in ("target", "tenant", "tls_ca", "token_file")
}
_TARGET: Flag = click.option(
    "--target",
    default="127.0.0.1:7080",
    show_default=True,
    envvar=CLIENT_VARIABLES["target"],
    show_envvar=True,
    help="Address of the decode service, as HOST:PORT.",
)
_CREDENTIALS: tuple[Flag, ...] = (
    click.option(
        "--tenant",
        default="",
        envvar=CLIENT_VARIABLES["tenant"],
        show_envvar=True,
        help="Tenant to call for; empty for the default one.",
    ),
    click.option(
        "--tls-ca",
        type=_FILE,
        envvar=CLIENT_VARIABLES["tls_ca"],
        show_envvar=True,
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
    click.option(
        "--token-file",
        type=_FILE,
        envvar=CLIENT_VARIABLES["token_file"],
        show_envvar=True,
        help="File with the token to send.",
    ),
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
        tls, token = self._checked()
        with _usage_errors():
            client = Client(self.target, tls=tls, token=token, tenant=self.tenant)
        try:
            with client:
                yield client
        except HeadwiseError as error:
            raise click.ClickException(str(error)) from error
        except TypeError as error:
            # a value that its field of the request cannot hold
            raise click.UsageError(str(error)) from error

    def connection(self) -> Connection:
        """A connection for calls that `Client` does not make. A failed call is not repeated."""
        tls, token = self._checked()
        with _usage_errors():
            if tls is not None:
                tls.credentials()
            return Connection(self.target, tls=tls, token=token, retries=False, tenant=self.tenant)

    def _checked(self) -> tuple[Tls | None, str | None]:
        """TLS and token. Raises `click.UsageError` naming the flag with an unusable value."""
        fault = target_fault(self.target)
        if fault:
            raise click.UsageError(f"--target {self.target}: {fault}")
        if not (self.tenant.isascii() and (not self.tenant or self.tenant.isprintable())):
            raise click.UsageError("--tenant: a tenant is letters, digits, dots, dashes and _")
        return self._tls(), self._token()

    def _token(self) -> str | None:
        if self.token_file is None:
            return None
        try:
            token = self.token_file.read_bytes().decode("utf-8-sig").strip()
        except OSError as error:
            message = f"--token-file {self.token_file}: {error.strerror}"
            raise click.UsageError(message) from error
        except UnicodeDecodeError:
            token = ""
        if not is_token(token):
            advice = "give a file with one token, of printable ASCII without spaces"
            raise click.UsageError(f"--token-file {self.token_file} holds no token: {advice}")
        return token

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
