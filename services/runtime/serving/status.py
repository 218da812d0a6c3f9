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


def to_headwise_error(error: Exception) -> HeadwiseError:
    """Return the caller's typed error; INTERNAL with a fixed text for errors not in the table."""
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
