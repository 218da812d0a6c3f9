"""Errors of calls to prefill, translated for decode's own clients."""

from __future__ import annotations

import contextlib
import logging
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
            return Unavailable(f"prefill at {target} is unavailable: {typed.message}", reason)
        case Unauthenticated() | Forbidden():
            # the credentials are decode's: its client has sent others and cannot change these
            log.error("prefill at %s refuses decode: %s", target, typed)
            return Unavailable("prefill is unavailable", "PREFILL_REFUSES_DECODE")
        case InternalError():
            return InternalError("prefill failed", "PREFILL_FAILED")
        case _:
            return typed
