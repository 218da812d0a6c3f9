"""The channel of a client, and the metadata that its calls carry."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import grpc

from headwise.channel import ChannelOptions, channel_options
from headwise.proxies import is_local, note_target
from headwise.target import target_fault
from headwise.tls import Tls

# a token, or a callable that returns one for each call, so that tokens can be renewed
Token = str | Callable[[], str]
Metadata = tuple[tuple[str, str], ...]

AUTHORIZATION_KEY = "authorization"
REQUEST_ID_KEY = "x-request-id"
# the tenant that a call belongs to; an authenticated caller may only name its own tenant
TENANT_KEY = "x-headwise-tenant"


@dataclasses.dataclass(frozen=True, slots=True)
class Connection:
    """Target, encryption and identity of a client's calls.

    Raises `ValueError` for a target that is not HOST:PORT, and for a token that would cross a
    network in plain text.
    """

    target: str
    tls: Tls | None = None
    credentials: grpc.ChannelCredentials | None = None
    token: Token | None = dataclasses.field(default=None, repr=False)
    retries: bool = True
    tenant: str = ""

    def __post_init__(self) -> None:
        fault = target_fault(self.target)
        if fault is not None:
            raise ValueError(f"target {self.target!r}: {fault}")
        if self.tls is not None and self.credentials is not None:
            raise ValueError("give tls or credentials, not both")
        plain_text = self.tls is None and self.credentials is None
        if self.token is not None and plain_text and not is_local(self.target):
            raise ValueError(f"a token would go to {self.target} in plain text: give tls")
        # files that cannot be used are told here, before any call
        self._credentials()
        note_target(self.target)

    def open(self) -> grpc.Channel:
        """Open a channel for blocking calls."""
        credentials, options = self._credentials(), self._options()
        if credentials is None:
            return grpc.insecure_channel(self.target, options)
        return grpc.secure_channel(self.target, credentials, options)

    def open_async(self) -> grpc.aio.Channel:
        """Open a channel for asyncio."""
        credentials, options = self._credentials(), self._options()
        if credentials is None:
            return grpc.aio.insecure_channel(self.target, options)
        return grpc.aio.secure_channel(self.target, credentials, options)

    def metadata(self, request_id: str | None = None) -> Metadata:
        """Return the metadata of one call: token, tenant and request id.

        Raises whatever the token's callable raises, and `ValueError` for an invalid token.
        """
        pairs: Metadata = ()
        if self.token is not None:
            token = self.token if isinstance(self.token, str) else self.token()
            if not is_token(token):
                # gRPC would refuse the token too, and its message would quote the token
                raise ValueError("the token is not printable ASCII without spaces")
            pairs = ((AUTHORIZATION_KEY, f"Bearer {token}"),)
        if self.tenant:
            pairs = (*pairs, (TENANT_KEY, self.tenant))
        return (*pairs, (REQUEST_ID_KEY, request_id)) if request_id else pairs

    def _credentials(self) -> grpc.ChannelCredentials | None:
        return self.credentials if self.tls is None else self.tls.credentials()

    def _options(self) -> ChannelOptions:
        return (
            *channel_options(retries=self.retries, proxy=not is_local(self.target)),
            *(self.tls.channel_options() if self.tls else ()),
        )


def is_token(text: str) -> bool:
    """Whether `text` can be a token: printable ASCII without spaces, and not empty."""
    return bool(text) and text.isascii() and text.isprintable() and " " not in text
