"""The credentials of calls between replicas: those that the service has as a server."""

from __future__ import annotations

import pathlib

import grpc

from headwise.connection import Connection
from headwise.tls import Tls
from services.runtime.process.host_address import host_and_port
from services.runtime.process.serve_error import ServeError
from services.runtime.process.watched_files import WatchedFiles
from services.runtime.replicas.addresses import PeerNames
from services.runtime.security.security_options import SecurityOptions


class PeerCredentials:
    """TLS with the server's own certificate where it has one, else plain text.

    The authorities of `--tls-client-ca` sign the certificates of all replicas; without that option
    they are the ones that gRPC knows. Raises `ServeError` for files that cannot be used, and where
    callers' tokens would go to another machine in plain text.
    """

    def __init__(self, names: PeerNames, security: SecurityOptions) -> None:
        self._watched: WatchedFiles[grpc.ChannelCredentials] | None = None
        files = [security.tls_certificate, security.tls_key, security.tls_client_ca]
        if security.tls_certificate:
            tls = Tls(security.tls_client_ca or None, security.tls_certificate, security.tls_key)
            paths = [pathlib.Path(file) for file in files if file]
            try:
                self._watched = WatchedFiles(paths, tls.credentials)
            except OSError as error:
                raise ServeError(f"--peers: cannot use the TLS files: {error.strerror}") from error
        elif security.tokens or security.jwt_keys:
            _require_local(names)

    def current(self) -> grpc.ChannelCredentials | None:
        """Return the credentials of new channels, the same object until the files change."""
        return self._watched.current() if self._watched else None


def _require_local(names: PeerNames) -> None:
    for host, port in names.names:
        try:
            Connection(host_and_port(host, port), token="any")
        except ValueError as error:
            message = f"--peers: {host} would get tokens in plain text: give --tls-certificate"
            raise ServeError(message) from error
