"""Every error of kvstore has a status, a reason, and the field at fault."""

from __future__ import annotations

import grpc
import pytest

from headwise.errors import HeadwiseError, InternalError, InvalidRequest, Overloaded
from kvstore.errors import (
    CorruptCache,
    FingerprintMismatch,
    InvalidParameter,
    KVStoreError,
    LimitExceeded,
    PoolExhausted,
    UnknownPolicy,
)
from services.runtime.model.model_errors import ChatTemplateMissing
from services.runtime.serving.status import to_headwise_error

_CODE = grpc.StatusCode
_ERRORS = [
    (InvalidParameter("a.b", "is bad"), _CODE.INVALID_ARGUMENT, "PARAMETER_OUT_OF_RANGE", "a.b"),
    (ChatTemplateMissing(), _CODE.INVALID_ARGUMENT, "PARAMETER_OUT_OF_RANGE", "messages"),
    (UnknownPolicy("x", ("full",)), _CODE.INVALID_ARGUMENT, "UNKNOWN_POLICY", "policy.name"),
    (CorruptCache("torn"), _CODE.DATA_LOSS, "CORRUPT_STREAM", None),
    (LimitExceeded("rows", 9, 4), _CODE.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED", None),
    (
        FingerprintMismatch("dtype", "float32", "float16"),
        _CODE.FAILED_PRECONDITION,
        "FINGERPRINT_MISMATCH",
        "dtype",
    ),
    (PoolExhausted(3, 1), _CODE.RESOURCE_EXHAUSTED, "POOL_EXHAUSTED", None),
]


@pytest.mark.parametrize(("error", "code", "reason", "field"), _ERRORS)
def test_an_error_of_kvstore_becomes_a_typed_error(
    error: KVStoreError, code: grpc.StatusCode, reason: str, field: str | None
) -> None:
    typed = to_headwise_error(error)
    assert (typed.code, typed.reason, typed.field) == (code, reason, field)
    assert typed.message == str(error)
    assert (typed.retry_after_seconds is not None) == isinstance(typed, Overloaded)


def test_every_error_of_kvstore_is_in_the_table() -> None:
    assert {type(error) for error, *_ in _ERRORS} >= set(KVStoreError.__subclasses__())


def test_a_typed_error_passes_as_it_is() -> None:
    error = InvalidRequest("no", "EMPTY_PROMPT", {"field": "text"})
    assert to_headwise_error(error) is error


def test_the_text_of_an_unknown_error_is_hidden() -> None:
    typed: HeadwiseError = to_headwise_error(ValueError("secret prompt"))
    assert isinstance(typed, InternalError)
    assert "secret" not in typed.message
    assert typed.metadata == {}
