"""Calls of hostile clients, by gRPC's own client."""

from __future__ import annotations

from typing import Any

import grpc

from headwise.errors import HeadwiseError, from_rpc_error


def unread(call: Any) -> Any:
    """Read the first message of a stream and no other."""
    next(call)
    return call


def error_of(call: Any) -> HeadwiseError | None:
    """Read a stream to its end; return the error that ended it, or None."""
    try:
        for _ in call:
            pass
    except grpc.RpcError as error:
        return from_rpc_error(error)
    return None
