"""Errors survive the way over the wire with class, reason, metadata and retry delay."""

from __future__ import annotations

import grpc
import pytest

from headwise.errors import BY_CODE, HeadwiseError, InternalError, Unavailable, from_rpc_error
from headwise.errors import to_trailing_metadata as to_trailing

_CLASSES = HeadwiseError.__subclasses__()


class Failed(grpc.RpcError):
    """An error as gRPC raises it in a client, with the parts that the client reads."""

    def __init__(
        self,
        code: grpc.StatusCode,
        details: str | None,
        trailing: tuple[tuple[str, bytes], ...] | None,
    ) -> None:
        self._parts = (code, details, trailing)

    def code(self) -> grpc.StatusCode:
        return self._parts[0]

    def details(self) -> str | None:
        return self._parts[1]

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...] | None:
        return self._parts[2]


@pytest.mark.parametrize("kind", _CLASSES)
@pytest.mark.parametrize("retry", [None, 0.0, 0.25, 90.0])
def test_every_class_makes_the_round_trip(kind: type[HeadwiseError], retry: float | None) -> None:
    sent = kind("what happened", "SOME_REASON", {"field": "a.b", "limit": "3"}, retry)
    got = from_rpc_error(Failed(kind.code, sent.message, to_trailing(sent)))
    assert type(got) is kind
    assert (got.message, got.reason, got.metadata) == (sent.message, sent.reason, sent.metadata)
    assert got.retry_after_seconds == retry
    assert got.field == "a.b"
    assert str(got) == f"what happened [{kind.code.name}, SOME_REASON]"


def test_no_two_classes_share_a_status() -> None:
    assert set(BY_CODE.values()) == set(_CLASSES)
    assert len(BY_CODE) == len(_CLASSES)


@pytest.mark.parametrize(
    "trailing",
    [None, (), (("other", b"x"),), (("grpc-status-details-bin", b"\xff\xff not a status"),)],
)
def test_without_readable_details_the_status_itself_is_the_reason(
    trailing: tuple[tuple[str, bytes], ...] | None,
) -> None:
    got = from_rpc_error(Failed(grpc.StatusCode.INTERNAL, None, trailing))
    assert isinstance(got, InternalError)
    assert (got.message, got.reason) == ("internal", "INTERNAL")
    assert got.field is None


def test_an_unknown_status_is_a_headwise_error() -> None:
    got = from_rpc_error(Failed(grpc.StatusCode.ALREADY_EXISTS, "no", None))
    assert type(got) is HeadwiseError
    assert got.reason == "ALREADY_EXISTS"


def test_a_stream_that_a_proxy_resets_is_a_lost_connection() -> None:
    reset = Failed(grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2", None)
    assert type(from_rpc_error(reset)) is Unavailable
    assert from_rpc_error(reset).reason == "STREAM_RESET"
    assert type(from_rpc_error(Failed(grpc.StatusCode.INTERNAL, "bug", None))) is InternalError
