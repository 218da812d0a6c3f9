"""The size of a request, which is checked before its message is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from headwise.errors import InvalidRequest

# gRPC's own default. Above it, gRPC would answer RESOURCE_EXHAUSTED as if the server were full
MAX_REQUEST_BYTES = 4 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class TooLarge:
    """A request of too many bytes, in place of its message."""

    nbytes: int


def sized(deserializer: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    """Return a deserializer that gives `TooLarge` for a request above the limit."""

    def read(content: bytes) -> Any:
        if len(content) > MAX_REQUEST_BYTES:
            return TooLarge(len(content))
        return content if deserializer is None else deserializer(content)

    return read


def require_size(request: object) -> None:
    """Raise `InvalidRequest` for a request above the limit."""
    if isinstance(request, TooLarge):
        raise InvalidRequest(
            f"the request has {request.nbytes} bytes, at most {MAX_REQUEST_BYTES} are read",
            "REQUEST_TOO_LARGE",
            {"limit": str(MAX_REQUEST_BYTES), "size": str(request.nbytes)},
        )
