"""The table from errors of kvstore to errors of the API."""

from __future__ import annotations

from headwise.errors import (
    CorruptStream,
    HeadwiseError,
    InternalError,
    InvalidRequest,
    Overloaded,
    Refused,
)
from kvstore.errors import (
    CorruptCache,
    FingerprintMismatch,
    InvalidParameter,
    KVStoreError,
    LimitExceeded,
    PoolExhausted,
    UnknownPolicy,
)

# retry delay that a caller receives when the pool or the queue is full
RETRY_AFTER_SECONDS = 1.0

_TABLE: dict[type[KVStoreError], tuple[type[HeadwiseError], str]] = {
    InvalidParameter: (InvalidRequest, "PARAMETER_OUT_OF_RANGE"),
    UnknownPolicy: (InvalidRequest, "UNKNOWN_POLICY"),
    CorruptCache: (CorruptStream, "CORRUPT_STREAM"),
    LimitExceeded: (Overloaded, "LIMIT_EXCEEDED"),
    FingerprintMismatch: (Refused, "FINGERPRINT_MISMATCH"),
    PoolExhausted: (Overloaded, "POOL_EXHAUSTED"),
}


# an error repeats the caller's own values, and must fit into the 8 KiB of trailing metadata that
# clients take: the message goes out twice, once with every byte outside of ASCII as three
_MAX_MESSAGE_BYTES = 1024
_MAX_VALUE_BYTES = 512
_MAX_VALUES = 4


def to_headwise_error(error: Exception) -> HeadwiseError:
    """Return the caller's typed error, cut to a bounded size.

    Errors that are not in the table are INTERNAL, with a fixed text.
    """
    typed = _typed(error)
    metadata = {
        _cut(key, _MAX_VALUE_BYTES): _cut(value, _MAX_VALUE_BYTES)
        for key, value in list(typed.metadata.items())[:_MAX_VALUES]
    }
    message, retry = _cut(typed.message, _MAX_MESSAGE_BYTES), typed.retry_after_seconds
    if (message, metadata) == (typed.message, typed.metadata):
        return typed
    return type(typed)(message, typed.reason, metadata, retry)


def _cut(text: str, most: int) -> str:
    coded = text.encode(errors="replace")
    return text if len(coded) <= most else coded[: most - 3].decode(errors="ignore") + "…"


def _typed(error: Exception) -> HeadwiseError:
    if isinstance(error, HeadwiseError):
        return error
    # a subclass has the entry of its nearest base class in the table
    entries = (_TABLE[base] for base in type(error).__mro__ if base in _TABLE)
    kind, reason = next(entries, (InternalError, "INTERNAL"))
    if kind is InternalError:
        return InternalError("internal error; the server's log has the details", reason)
    retry = RETRY_AFTER_SECONDS if kind is Overloaded else None
    return kind(str(error), reason, _metadata(error), retry)


def _metadata(error: Exception) -> dict[str, str]:
    match error:
        case InvalidParameter():
            return {"field": error.field}
        case UnknownPolicy():
            return {"field": "policy.name", "known": ",".join(error.known)}
        case FingerprintMismatch():
            return {"field": error.field, "ours": error.ours, "theirs": error.theirs}
        case LimitExceeded():
            return {"limit": str(error.limit), "size": str(error.size)}
        case _:
            return {}
