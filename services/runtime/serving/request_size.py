"""Requests that are too large, which is seen before they are read, or that do not parse."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError

from headwise.errors import InvalidRequest

# gRPC's own default. Above it, gRPC would answer RESOURCE_EXHAUSTED as if the server were full
MAX_REQUEST_BYTES = 4 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class TooLarge:
    """A request of too many bytes, in place of its message."""

    nbytes: int


class Malformed:
    """A request that does not parse, in place of its message."""


def sized(deserializer: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    """Return a deserializer that gives `TooLarge` or `Malformed` where there is no message."""

    def read(content: bytes) -> Any:
        if len(content) > MAX_REQUEST_BYTES:
            return TooLarge(len(content))
        try:
            return content if deserializer is None else deserializer(content)
        except DecodeError:
            return Malformed()

    return read


def require_size(request: object) -> None:
    """Raise `InvalidRequest` for a request above the limit, or one that does not parse."""
    if isinstance(request, Malformed):
        raise InvalidRequest("the request does not parse as its message", "MALFORMED_REQUEST")
    if isinstance(request, TooLarge):
        raise InvalidRequest(
            f"the request has {request.nbytes} bytes, at most {MAX_REQUEST_BYTES} are read",
            "REQUEST_TOO_LARGE",
            {"limit": str(MAX_REQUEST_BYTES), "size": str(request.nbytes)},
        )
