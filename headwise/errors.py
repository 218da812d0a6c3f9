"""Typed errors, one class a gRPC status, used both ways: services raise them, clients catch them.

    HeadwiseError
    ├── InvalidRequest     INVALID_ARGUMENT     what was asked is wrong; `field` names it
    ├── NotFound           NOT_FOUND            nothing here by that name
    ├── NotSupported       UNIMPLEMENTED        understood, not served
    ├── Unauthenticated    UNAUTHENTICATED      no token, or one that is not good
    ├── Forbidden          PERMISSION_DENIED    a good token, for something else
    ├── Refused            FAILED_PRECONDITION  another model, tokenizer, dtype or format
    ├── Overloaded         RESOURCE_EXHAUSTED   full; `retry_after_seconds` says when to come again
    ├── CorruptStream      DATA_LOSS            bytes that disagree with their checksums
    ├── Unavailable        UNAVAILABLE          a service is gone, going or unreachable: retry
    ├── DeadlineExceeded   DEADLINE_EXCEEDED    the caller's own deadline
    ├── Cancelled          CANCELLED            the caller went away
    └── InternalError      INTERNAL             our fault; the log has the rest

Every error carries a `reason` in upper case that programs may rely on, and `metadata`.
On the wire both travel as google.rpc.ErrorInfo beside the status.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, cast

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

DOMAIN = "headwise"
_DETAILS_KEY = "grpc-status-details-bin"


class HeadwiseError(Exception):
    """Root of all errors a Headwise call can end in."""

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        message: str,
        reason: str = "UNKNOWN",
        metadata: Mapping[str, str] | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.retry_after_seconds = retry_after_seconds

    @property
    def field(self) -> str | None:
        """The dotted name of the request's or fingerprint's field at fault, where there is one."""
        return self.metadata.get("field")

    def __str__(self) -> str:
        return f"{self.message} [{self.code.name}, {self.reason}]"


class InvalidRequest(HeadwiseError):
    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(HeadwiseError):
    code = grpc.StatusCode.NOT_FOUND


class NotSupported(HeadwiseError):
    code = grpc.StatusCode.UNIMPLEMENTED


class Unauthenticated(HeadwiseError):
    code = grpc.StatusCode.UNAUTHENTICATED


class Forbidden(HeadwiseError):
    code = grpc.StatusCode.PERMISSION_DENIED


class Refused(HeadwiseError):
    code = grpc.StatusCode.FAILED_PRECONDITION


class Overloaded(HeadwiseError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class CorruptStream(HeadwiseError):
    code = grpc.StatusCode.DATA_LOSS


class Unavailable(HeadwiseError):
    code = grpc.StatusCode.UNAVAILABLE


class DeadlineExceeded(HeadwiseError):
    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Cancelled(HeadwiseError):
    code = grpc.StatusCode.CANCELLED


class InternalError(HeadwiseError):
    code = grpc.StatusCode.INTERNAL


BY_CODE: dict[grpc.StatusCode, type[HeadwiseError]] = {
    kind.code: kind for kind in HeadwiseError.__subclasses__()
}


def to_trailing_metadata(error: HeadwiseError) -> tuple[tuple[str, bytes], ...]:
    """The rich status of an error, ready for a server's trailing metadata."""
    status = Status(code=error.code.value[0], message=error.message)
    status.details.add().Pack(
        ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    )
    if error.retry_after_seconds is not None:
        delay = Duration()
        delay.FromMilliseconds(round(error.retry_after_seconds * 1000))
        status.details.add().Pack(RetryInfo(retry_delay=delay))
    return ((_DETAILS_KEY, status.SerializeToString()),)


def from_rpc_error(rpc_error: grpc.RpcError) -> HeadwiseError:
    """The typed error behind a failed call, whoever raised it."""
    # both the sync and the asyncio error offer these three
    code: grpc.StatusCode = rpc_error.code()
    message: str = rpc_error.details() or code.name.lower().replace("_", " ")
    reason, metadata, retry = code.name, dict[str, str](), None
    # an iterable of pairs for either kind of error, whatever the annotations say
    for detail in _details(cast(Iterable[tuple[str, bytes]], rpc_error.trailing_metadata() or ())):
        if detail.Is(ErrorInfo.DESCRIPTOR):
            info = ErrorInfo()
            detail.Unpack(info)
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Is(RetryInfo.DESCRIPTOR):
            retry_info = RetryInfo()
            detail.Unpack(retry_info)
            retry = retry_info.retry_delay.ToMilliseconds() / 1000
    if code is grpc.StatusCode.INTERNAL and reason == code.name and "RST_STREAM" in message:
        # a proxy's way to say that the server behind it has gone; ours would have a reason
        return Unavailable("the connection was lost on the way", "STREAM_RESET")
    return BY_CODE.get(code, HeadwiseError)(message, reason, metadata, retry)


def _details(trailing: Iterable[tuple[str, bytes]]) -> list[Any]:
    for key, value in trailing:
        if key == _DETAILS_KEY:
            try:
                return list(Status.FromString(value).details)
            except DecodeError:
                return []
    return []
