"""Typed errors, one class a gRPC status, used both ways: services raise them, clients catch them.

    HeadwiseError
    ├── InvalidRequest     INVALID_ARGUMENT     a value of the request is invalid; `field` names it
    ├── NotFound           NOT_FOUND            no session, lease or cache by that name
    ├── NotSupported       UNIMPLEMENTED        the server does not support the call
    ├── Unauthenticated    UNAUTHENTICATED      no token, or an invalid one
    ├── Forbidden          PERMISSION_DENIED    a valid token that does not permit the call
    ├── Refused            FAILED_PRECONDITION  another model, tokenizer, dtype or format
    ├── Overloaded         RESOURCE_EXHAUSTED   no room; `retry_after_seconds` says when to retry
    ├── CorruptStream      DATA_LOSS            bytes that do not match their checksums
    ├── Unavailable        UNAVAILABLE          a service is down, draining or unreachable: retry
    ├── DeadlineExceeded   DEADLINE_EXCEEDED    the caller's deadline has passed
    ├── Cancelled          CANCELLED            the call was cancelled
    └── InternalError      INTERNAL             a fault of the service; its log has the details

Every error has a `reason` in upper case, which programs may rely on, and `metadata`.
Both are sent as google.rpc.ErrorInfo beside the status.
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

from headwise.proxies import proxy_hint

DOMAIN = "headwise"
# how gRPC tells that something else than gRPC answers
_OTHER_PROTOCOL = ("http1.x server", "unexpected HTTP status", "Failed parsing HTTP/2")
_DETAILS_KEY = "grpc-status-details-bin"


class HeadwiseError(Exception):
    """Base class of all errors that a Headwise call can raise."""

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
        """The dotted name of the field at fault in the request or fingerprint, if there is one."""
        return self.metadata.get("field")

    def __str__(self) -> str:
        return f"{self.message} [{self.code.name}, {self.reason}]"


class InvalidRequest(HeadwiseError):
    """A value of the request is invalid; `field` names it."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(HeadwiseError):
    """The session, lease or cache does not exist; the reason says why."""

    code = grpc.StatusCode.NOT_FOUND


class NotSupported(HeadwiseError):
    """The server does not support the call."""

    code = grpc.StatusCode.UNIMPLEMENTED


class Unauthenticated(HeadwiseError):
    """The call has no token, or an invalid one."""

    code = grpc.StatusCode.UNAUTHENTICATED


class Forbidden(HeadwiseError):
    """The token is valid and does not permit the call."""

    code = grpc.StatusCode.PERMISSION_DENIED


class Refused(HeadwiseError):
    """The call does not fit the state: another model, a busy session, an unread format."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class Overloaded(HeadwiseError):
    """The server has no room; `retry_after_seconds` says when to retry."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class CorruptStream(HeadwiseError):
    """Received bytes do not match their checksums."""

    code = grpc.StatusCode.DATA_LOSS


class Unavailable(HeadwiseError):
    """A service is down, draining or unreachable; the call can be repeated."""

    code = grpc.StatusCode.UNAVAILABLE


class DeadlineExceeded(HeadwiseError):
    """The caller's deadline has passed."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Cancelled(HeadwiseError):
    """The call was cancelled."""

    code = grpc.StatusCode.CANCELLED


class InternalError(HeadwiseError):
    """A fault of the service; its log has the details."""

    code = grpc.StatusCode.INTERNAL


BY_CODE: dict[grpc.StatusCode, type[HeadwiseError]] = {
    kind.code: kind for kind in HeadwiseError.__subclasses__()
}


def to_trailing_metadata(error: HeadwiseError) -> tuple[tuple[str, bytes], ...]:
    """Return an error's rich status as a server's trailing metadata."""
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
    """Return the typed error of a failed call, blocking or asyncio."""
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
        # a proxy whose server has gone away sends this; a Headwise server would give a reason
        return Unavailable("the connection was lost on the way", "STREAM_RESET")
    if reason == code.name:
        message, kind, reason = _in_plain_words(code, message)
        if kind is Unavailable and proxy_hint():
            # gRPC's words name the proxy's address alone
            message = f"{message}; {proxy_hint()}"
        return kind(message, reason, metadata, retry)
    return BY_CODE.get(code, HeadwiseError)(message, reason, metadata, retry)


def _in_plain_words(code: grpc.StatusCode, message: str) -> tuple[str, type[HeadwiseError], str]:
    """Message, class and reason of a status that no Headwise service has given."""
    kind = BY_CODE.get(code, HeadwiseError)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        advice = "another service answers at this address: give that of a Headwise decode"
        return f"{advice} ({message})", kind, code.name
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in message:
        return f"the request is too large: {message}", InvalidRequest, "REQUEST_TOO_LARGE"
    if any(text in message for text in _OTHER_PROTOCOL):
        return f"no gRPC service answers at this address ({message})", kind, code.name
    return message, kind, code.name


def _details(trailing: Iterable[tuple[str, bytes]]) -> list[Any]:
    for key, value in trailing:
        if key == _DETAILS_KEY:
            try:
                return list(Status.FromString(value).details)
            except DecodeError:
                return []
    return []
