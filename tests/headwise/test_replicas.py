"""A client of several targets: turns, a target that is down, and servers that know no tags."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import grpc
import pytest

from headwise import AsyncClient, Client, Unavailable
from headwise.replicas import session_tag
from headwise.v1 import decode_pb2
from headwise.v1.decode_pb2 import GenerateResponse
from tests.headwise.fake_service import delta, result, serving
from tests.interop.envoy import free_ports
from tests.observe import wait_until

_SESSION = "0" * 32 + "0123456789ab"


def _good(call: int, context: grpc.ServicerContext) -> Iterator[GenerateResponse]:
    yield from (delta("a"), result())


def test_calls_without_a_session_go_by_turns() -> None:
    with serving(_good) as (first, one), serving(_good) as (second, other):
        with Client([one, other]) as client:
            for _ in range(6):
                assert client.generate("x").text() == "a"
        assert (len(first.calls), len(second.calls)) == (3, 3)


def test_a_target_that_is_down_is_passed_over() -> None:
    down = f"127.0.0.1:{free_ports(1)[0]}"
    with serving(_good) as (fake, up), Client([down, up], retries=False) as client:
        # until the failed connection is known, a call may still go there
        wait_until(lambda: _answered(client, 4), 20, "the target that is up")
        assert len(fake.calls) >= 4


def _answered(client: Client, times: int) -> bool:
    with contextlib.suppress(Unavailable):
        return all(client.generate("x").text() == "a" for _ in range(times))
    return False


def test_a_session_of_servers_that_know_no_tags_is_asked_for_all_the_same() -> None:
    with serving(_good) as (_, one), serving(_good) as (_, other), Client([one, other]) as client:
        assert client.generate("x", session_id=_SESSION).text() == "a"


async def test_the_asyncio_client_goes_by_turns_too() -> None:
    with serving(_good) as (first, one), serving(_good) as (second, other):
        async with AsyncClient([one, other]) as client:
            for _ in range(4):
                assert await client.generate("x").text() == "a"
            assert await client.generate("x", session_id=_SESSION).text() == "a"
        assert len(first.calls) + len(second.calls) == 5
        assert min(len(first.calls), len(second.calls)) >= 2


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_no_target_is_refused(kind: type[Client] | type[AsyncClient]) -> None:
    with pytest.raises(ValueError, match="no target"):
        kind([])


def test_a_token_goes_to_no_target_in_plain_text() -> None:
    with pytest.raises(ValueError, match="plain text"):
        Client(["127.0.0.1:7080", "decode.example:7080"], token="secret")


def test_only_an_id_that_ends_in_a_tag_has_one() -> None:
    named = decode_pb2.GenerateRequest(session_id=_SESSION)
    assert session_tag(named) == "0123456789ab"
    for text in ("", "x", "0" * 32, _SESSION + "0", _SESSION.upper()):
        assert session_tag(decode_pb2.GenerateRequest(session_id=text)) == ""
    assert session_tag(decode_pb2.ListSessionsRequest()) == ""
