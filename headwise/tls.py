"""How a client makes its channel private."""

from __future__ import annotations

import dataclasses
import errno
import os
import pathlib
import ssl
from collections.abc import Callable

import grpc

from headwise.channel import ChannelOptions

_File = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True, slots=True)
class Tls:
    """Whom to trust and who to be; files in PEM form, read when a channel is opened.

    `ca`: authorities that servers are checked against; None means those gRPC knows. `certificate`
    and `key`: the client's own, where the server asks for them (mutual TLS). `server_name`: what
    the server's certificate must be for, if not for the target.
    """

    ca: _File | None = None
    certificate: _File | None = None
    key: _File | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together: give both or none")

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises `OSError`, as `ssl.SSLError` where a file has not what it should."""
        chain = key = None
        if self.certificate is not None and self.key is not None:
            chain, key = read_pair(self.certificate, self.key)
        authorities = None if self.ca is None else read_authorities(self.ca)
        return grpc.ssl_channel_credentials(authorities, key, chain)

    def channel_options(self) -> ChannelOptions:
        if self.server_name is None:
            return ()
        return (("grpc.ssl_target_name_override", self.server_name),)


def read_pair(certificate: _File, key: _File) -> tuple[bytes, bytes]:
    """A certificate's chain and its key. Raises `OSError`, as `ssl.SSLError` where they don't fit.

    gRPC itself finds that out only at a handshake, and an empty file ends its process.
    """

    def load() -> None:
        # without a password it would ask for one on the terminal
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")

    chain, secret = _checked((certificate, key), load)
    return chain, secret


def read_authorities(file: _File) -> bytes:
    """Raises `OSError`, as `ssl.SSLError` where there is no certificate in it."""

    def load() -> None:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)

    return _checked((file,), load)[0]


def _checked(files: tuple[_File, ...], check: Callable[[], None]) -> list[bytes]:
    """What is in the files, the same before and after a check that reads them by itself."""
    before = [pathlib.Path(file).read_bytes() for file in files]
    check()
    if before != [pathlib.Path(file).read_bytes() for file in files]:
        raise OSError(errno.EAGAIN, "changed while being read")
    return before
