"""Errors of calls to prefill, translated for decode's own clients."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator

import grpc

from headwise.errors import (
    Cancelled,
    Forbidden,
    HeadwiseError,
    InternalError,
    Unauthenticated,
    Unavailable,
    from_rpc_error,
)

log = logging.getLogger("headwise.decode")

# between two lines about one prefill, however many calls fail
_PAUSE_SECONDS = 10.0


class _Failures:
    """Logs why calls to prefill fail; clients are told neither its address nor gRPC's words."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}

    def tell(self, target: str, text: str) -> None:
        """Log the text, unless a line about this target was written a moment ago."""
        now = time.monotonic()
        if now >= self._next.get(target, 0.0):
            self._next[target] = now + _PAUSE_SECONDS
            log.error("%s", text)


_FAILURES = _Failures()


@contextlib.contextmanager
def prefill_errors(target: str) -> Iterator[None]:
    """Raise the typed error for a gRPC error of a call to prefill at `target`."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise _for_clients(error, target) from error


def _for_clients(error: grpc.aio.AioRpcError, target: str) -> HeadwiseError:
    typed = from_rpc_error(error)
    match typed:
        case Unavailable() | Cancelled():
            reason = typed.reason if typed.reason != typed.code.name else "PREFILL_UNAVAILABLE"
            _FAILURES.tell(target, f"prefill at {target} is unavailable: {typed.message}")
            return Unavailable("prefill is unavailable", reason)
        case Unauthenticated() | Forbidden():
            # the credentials are decode's: its client has sent others and cannot change these
            _FAILURES.tell(target, f"prefill at {target} refuses decode: {typed}")
            return Unavailable("prefill is unavailable", "PREFILL_REFUSES_DECODE")
        case InternalError():
            return InternalError("prefill failed", "PREFILL_FAILED")
        case _:
            return typed
