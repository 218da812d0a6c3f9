"""Transport security of a server's port, with certificates that may change while it serves."""

from __future__ import annotations

import dataclasses
import pathlib
import ssl
from collections.abc import Callable
from typing import cast

import grpc

from headwise.tls import read_authorities, read_pair
from services.runtime.process.serve_error import ServeError
from services.runtime.process.watched_files import WatchedFiles
from services.runtime.security.security_options import SecurityOptions


def server_credentials(options: SecurityOptions) -> grpc.ServerCredentials | None:
    """Return credentials, or None for plain text. Raises `ServeError` for unusable files."""
    if not (options.tls_certificate or options.tls_key or options.tls_client_ca):
        return None
    if not (options.tls_certificate and options.tls_key):
        raise ServeError("--tls-certificate and --tls-key belong together: give both")
    names = (options.tls_certificate, options.tls_key, options.tls_client_ca)
    paths = [pathlib.Path(name) for name in names if name]
    try:
        watched = WatchedFiles(paths, lambda: _read(options))
    except OSError as error:
        raise ServeError(_advice(options, error)) from error
    certificates = _Certificates(watched)
    # a None means that nothing changed; the type stubs of gRPC do not allow it
    changed = cast(Callable[[], grpc.ServerCertificateConfiguration], certificates.changed)
    return grpc.dynamic_ssl_server_credentials(
        certificates.first, changed, require_client_authentication=bool(options.tls_client_ca)
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Pem:
    key: bytes
    chain: bytes
    authorities: bytes | None

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(self.key, self.chain)], self.authorities)


class _Certificates:
    """The certificates for the start, and newer ones, which gRPC requests before handshakes."""

    def __init__(self, watched: WatchedFiles[_Pem]) -> None:
        self._watched = watched
        self._passed = watched.current()
        self.first = self._passed.configuration()

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return certificates that gRPC does not have yet, or None."""
        pem = self._watched.current()
        if pem is self._passed:
            return None
        self._passed = pem
        return pem.configuration()


def _read(options: SecurityOptions) -> _Pem:
    """Read the files. Raises `OSError`, as `ssl.SSLError` where the files are no pair."""
    # while a pair is being replaced, the old one stays in use until the new halves agree
    chain, key = read_pair(options.tls_certificate, options.tls_key)
    authorities = read_authorities(options.tls_client_ca) if options.tls_client_ca else None
    return _Pem(key, chain, authorities)


def _advice(options: SecurityOptions, error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        files = f"{options.tls_certificate} and {options.tls_key}"
        return f"{files} are no certificate and its key in PEM form, or --tls-client-ca is none"
    return f"cannot read {error.filename or 'the TLS files'}: {error.strerror}"
