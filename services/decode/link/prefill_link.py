"""The channel to prefill, opened again when its certificates change."""

from __future__ import annotations

import asyncio
import pathlib

import grpc

from headwise.connection import TENANT_KEY, Connection, Metadata, is_token
from headwise.tls import Tls
from headwise.tracing import outgoing
from services.decode.link.link_options import LinkOptions
from services.runtime.process.logs import request_id
from services.runtime.process.serve_error import ServeError
from services.runtime.process.watched_files import WatchedFiles

# the longest that calls on a channel with old certificates may run before it is closed
_OLD_CHANNEL_SECONDS = 600.0


class PrefillLink:
    """A connection to prefill, for use on the event loop.

    Raises `ServeError` for a certificate or token file that cannot be used.
    """

    def __init__(self, target: str, options: LinkOptions) -> None:
        self._target = target
        self._options = options
        self._token = _token(options)
        self._tls = _tls(options)
        self._closing: set[asyncio.Task[None]] = set()
        self._connection = self._connect()
        self._channel = self._connection.open_async()

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel for one call; a later call may get another one."""
        current = self._tls.current() if self._tls else None
        if current is not self._connection.credentials:
            closing = asyncio.create_task(self._channel.close(_OLD_CHANNEL_SECONDS))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            self._connection = self._connect()
            self._channel = self._connection.open_async()
        return self._channel

    def metadata(self, tenant: str = "") -> Metadata:
        """Return decode's token, the request id, the trace and the tenant as gRPC metadata."""
        pairs = (*self._connection.metadata(request_id.get()), *outgoing())
        return (*pairs, (TENANT_KEY, tenant)) if tenant else pairs

    async def close(self) -> None:
        """Close all channels; running calls are cancelled."""
        for closing in self._closing:
            closing.cancel()
        await self._channel.close()

    def _connect(self) -> Connection:
        credentials = self._tls.current() if self._tls else None
        token = self._token.current if self._token else None
        try:
            return Connection(self._target, credentials=credentials, token=token, retries=False)
        except ValueError as error:
            raise ServeError(f"--prefill-token: {error}: --prefill-ca") from error


def _token(options: LinkOptions) -> WatchedFiles[str] | None:
    if not options.prefill_token:
        return None
    path = pathlib.Path(options.prefill_token)

    def read() -> str:
        token = path.read_text().strip()
        if not is_token(token):
            raise ValueError("no token")
        return token

    try:
        return WatchedFiles([path], read)
    except (OSError, ValueError) as error:
        raise ServeError(f"--prefill-token: {path} is no file with one token") from error


def _tls(options: LinkOptions) -> WatchedFiles[grpc.ChannelCredentials] | None:
    certificate, key = options.prefill_certificate, options.prefill_key
    if bool(certificate) != bool(key):
        raise ServeError("--prefill-certificate and --prefill-key belong together: give both")
    if not options.prefill_ca:
        if certificate:
            raise ServeError("--prefill-certificate needs --prefill-ca")
        return None
    tls = Tls(options.prefill_ca, certificate or None, key or None)
    names = [name for name in (options.prefill_ca, certificate, key) if name]
    try:
        return WatchedFiles([pathlib.Path(name) for name in names], tls.credentials)
    except OSError as error:
        raise ServeError(f"cannot use {' or '.join(names)}: {error.strerror}") from error
