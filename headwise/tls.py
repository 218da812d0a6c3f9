"""TLS of a client's channel."""

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
    """Files of a TLS channel, in PEM form, read when a channel is opened.

    - `ca`: certificate authorities for the server's certificate; None means those that gRPC knows.
    - `certificate`, `key`: the client's own, for servers that require them (mutual TLS).
    - `server_name`: the name in the server's certificate, if it is not the target's host.
    """

    ca: _File | None = None
    certificate: _File | None = None
    key: _File | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together: give both or none")

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files. Raises `OSError`; `ssl.SSLError` for a file with the wrong content."""
        chain = key = None
        if self.certificate is not None and self.key is not None:
            chain, key = read_pair(self.certificate, self.key)
        authorities = None if self.ca is None else read_authorities(self.ca)
        return grpc.ssl_channel_credentials(authorities, key, chain)

    def channel_options(self) -> ChannelOptions:
        """Return the channel options that TLS needs."""
        if self.server_name is None:
            return ()
        return (("grpc.ssl_target_name_override", self.server_name),)


def read_pair(certificate: _File, key: _File) -> tuple[bytes, bytes]:
    """Read a certificate chain and its key.

    Raises `OSError`; `ssl.SSLError` if the two do not belong together. gRPC finds a mismatch only
    at a handshake, and an empty file ends its process.
    """

    def load() -> None:
        # without a password OpenSSL would ask for one on the terminal
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")

    chain, secret = _checked((certificate, key), load)
    return chain, secret


def read_authorities(file: _File) -> bytes:
    """Read certificate authorities. Raises `OSError`; `ssl.SSLError` if the file has none."""

    def load() -> None:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)

    return _checked((file,), load)[0]


def _checked(files: tuple[_File, ...], check: Callable[[], None]) -> list[bytes]:
    """Return the files' bytes. Raises `OSError` if they change while `check` reads the files."""
    before = [pathlib.Path(file).read_bytes() for file in files]
    check()
    if before != [pathlib.Path(file).read_bytes() for file in files]:
        raise OSError(errno.EAGAIN, "changed while being read")
    return before
