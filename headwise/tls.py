"""How a client makes its channel private."""

from __future__ import annotations

import dataclasses
import os
import pathlib

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
        """Raises `OSError` where a file cannot be read."""
        return grpc.ssl_channel_credentials(
            root_certificates=_read(self.ca),
            private_key=_read(self.key),
            certificate_chain=_read(self.certificate),
        )

    def channel_options(self) -> ChannelOptions:
        if self.server_name is None:
            return ()
        return (("grpc.ssl_target_name_override", self.server_name),)


def _read(file: _File | None) -> bytes | None:
    return None if file is None else pathlib.Path(file).read_bytes()
