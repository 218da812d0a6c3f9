"""Turns of a session and calls for a lease reach the replica that has it, by every way in."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
import secrets
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from headwise import AsyncClient, Cancelled, Client, HeadwiseError, NotFound, Result, Unavailable
from headwise.errors import from_rpc_error
from headwise.v1 import decode_pb2, decode_pb2_grpc
from services.demo.processes import Service
from services.runtime.replicas.routing import PASSED_ON_KEY
from tests.conftest import Pair
from tests.interop.envoy import Envoy, free_ports, running_envoy
from tests.interop.replicas import running_replicas, tag_of
from tests.observe import wait_until

# five processes are started for the first test
pytestmark = [pytest.mark.processes, pytest.mark.timeout(900)]

_TURNS = 6


@dataclasses.dataclass(frozen=True, slots=True)
class Fleet:
    """Two prefills, three decodes, and an Envoy before so many of the decodes."""

    prefills: list[Service]
    decodes: list[Service]
    envoys: dict[int, Envoy]

    def targets(self, count: int) -> list[str]:
        return [service.target for service in self.decodes[:count]]


@pytest.fixture(scope="module")
def fleet(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    ports = free_ports(5)
    prefill_ports, decode_ports = ports[:2], ports[2:]
    model = ["--model", str(tiny_model)]
    with contextlib.ExitStack() as stack:
        envoys = {
            number: stack.enter_context(
                running_envoy(
                    tmp_path_factory.mktemp("envoy"), decode_ports[:number], prefill_ports
                )
            )
            for number in (2, 3)
        }
        prefills = stack.enter_context(running_replicas("prefill", prefill_ports, model))
        link = ["--prefill", envoys[3].prefill_target]
        decodes = stack.enter_context(running_replicas("decode", decode_ports, [*model, *link]))
        for number, envoy in envoys.items():
            wait_until(lambda envoy=envoy, number=number: _sends_to(envoy, number), 60, "replicas")
        yield Fleet(prefills, decodes, envoys)


def _sends_to(envoy: Envoy, number: int) -> bool:
    """Whether Envoy sends calls to that many decodes, and these to both prefills.

    Envoy tells its workers of healthy replicas up to a second later than its statistics.
    """
    with Client(envoy.target, retries=False) as client, contextlib.suppress(HeadwiseError):
        client.describe(timeout_seconds=2)
    return envoy.reached("decode") == number


def _turn(client: Client, number: int, session_id: str = "") -> Result:
    prompt = [2 + (7 * n + 13 * number) % 500 for n in range(12)]
    kept = {"session_id": session_id} if session_id else {"session_ttl_seconds": 300}
    asked = client.generate(prompt, max_tokens=4, ignore_eos=True, timeout_seconds=30, **kept)
    tokens = [token for delta in asked for token in delta.token_ids]
    assert len(tokens) == 4
    return asked.result


def _conversation(client: Client) -> list[int]:
    """Begin a session and go on with it; returns the tokens that each turn found there."""
    session_id = _turn(client, 0).session_id
    found = []
    for number in range(1, _TURNS + 1):
        result = _turn(client, number, session_id)
        assert result.session_id == session_id
        found.append(result.usage.session_tokens)
    client.sessions.release(session_id)
    return found


@pytest.mark.parametrize("replicas", [2, 3])
def test_every_turn_through_envoy_reaches_its_session(
    fleet: Fleet, tiny_pair: Pair, replicas: int
) -> None:
    with Client(tiny_pair[1].target) as alone:
        expected = _conversation(alone)
    before = sum(map(_passed_on, fleet.decodes))
    with Client(fleet.envoys[replicas].target) as client:
        for _ in range(3):
            assert _conversation(client) == expected
    # Envoy knows nothing of sessions, so some of the turns came to another replica
    assert sum(map(_passed_on, fleet.decodes)) > before


@pytest.mark.parametrize("replicas", [2, 3])
def test_a_client_that_knows_the_replicas_sends_a_turn_to_the_right_one(
    fleet: Fleet, tiny_pair: Pair, replicas: int
) -> None:
    with Client(tiny_pair[1].target) as alone:
        expected = _conversation(alone)
    before = [_passed_on(service) for service in fleet.decodes]
    with Client(fleet.targets(replicas)) as client, Client(fleet.targets(replicas)) as later:
        sessions = [_turn(client, 0).session_id for _ in range(replicas)]
        assert len({session_id[-12:] for session_id in sessions}) == replicas
        assert {info.session_id for info in client.sessions.list()} >= set(sessions)
        assert _conversation(client) == expected
        for session_id in sessions:
            assert _turn(later, 1, session_id).session_id == session_id
            later.sessions.release(session_id)
    assert [_passed_on(service) for service in fleet.decodes] == before


def _passed_on(service: Service) -> int:
    """The calls that a decode had other ones answer."""
    with urllib.request.urlopen(service.metrics_url, timeout=10) as answer:
        page = answer.read().decode()
    counts = re.findall(r"^headwise_calls_passed_on_total{.*} (.*)$", page, re.MULTILINE)
    return sum(int(float(count)) for count in counts)


async def test_the_asyncio_client_routes_turns_to_their_replica(fleet: Fleet) -> None:
    before = [_passed_on(service) for service in fleet.decodes]
    async with AsyncClient(fleet.targets(3)) as client, AsyncClient(fleet.targets(3)) as later:
        for _ in range(3):
            asked = client.generate([5, 6], max_tokens=2, session_ttl_seconds=60)
            session_id = (await asked.result()).session_id
            for _ in range(_TURNS):
                turn = later.generate([7], max_tokens=2, session_id=session_id)
                assert (await turn.result()).session_id == session_id
            left = later.generate([7], max_tokens=400, ignore_eos=True, session_id=session_id)
            left.cancel()
            with pytest.raises(Cancelled):
                await left.text()
            assert session_id in {info.session_id for info in await client.sessions.list()}
    assert [_passed_on(service) for service in fleet.decodes] == before


def test_a_turn_sent_to_any_replica_is_answered_as_by_its_own(
    fleet: Fleet,
) -> None:
    clients = [Client(service.target) for service in fleet.decodes]
    for first, other in itertools.permutations(clients, 2):
        session_id = _turn(first, 0).session_id
        assert _turn(other, 1, session_id).session_id == session_id
        assert other.sessions.describe(session_id).tokens == 32
        fork = other.sessions.fork(session_id).session_id
        other.sessions.release(session_id)
        with pytest.raises(NotFound) as caught:
            first.sessions.describe(session_id)
        assert caught.value.reason == "SESSION_RELEASED"
        with pytest.raises(NotFound) as caught:
            other.sessions.describe(session_id)
        assert caught.value.reason == "SESSION_RELEASED"
        first.sessions.release(fork)
    for client in clients:
        client.close()


def test_a_call_is_passed_on_once_and_made_up_tags_end_at_once(fleet: Fleet) -> None:
    owner, other = (service.target for service in fleet.decodes[:2])
    with Client(owner) as client, grpc.insecure_channel(other) as channel:
        session_id = _turn(client, 0).session_id
        describe = decode_pb2_grpc.DecodeServiceStub(channel).DescribeSession
        request = decode_pb2.DescribeSessionRequest(session_id=session_id)
        assert describe(request, timeout=10).session.session_id == session_id
        # a stranger who sends the mark of a replica gets what a replica gets
        with pytest.raises(grpc.RpcError) as caught:
            describe(request, timeout=10, metadata=((PASSED_ON_KEY, "1"),))
        assert from_rpc_error(caught.value).reason == "SESSION_ELSEWHERE"
        reasons = set()
        # fewer at once than the streams of a connection
        for _ in range(3):
            made_up = [secrets.token_hex(22) for _ in range(60)]
            calls = [
                describe.future(decode_pb2.DescribeSessionRequest(session_id=one), timeout=30)
                for one in made_up
            ]
            reasons |= {from_rpc_error(call.exception()).reason for call in calls}
        assert reasons == {"SESSION_REPLICA_GONE"}
        assert describe(request, timeout=10).session.session_id == session_id
        client.sessions.release(session_id)


def test_a_lease_is_renewed_and_released_by_any_way(
    fleet: Fleet,
) -> None:
    with Client(fleet.envoys[3].target) as client:
        for number in range(4):
            stored = client.caches.keep([number + 2] * 40, ttl_seconds=60)
            for _ in range(_TURNS):
                assert client.caches.renew(stored.handle, 60).tokens == stored.tokens
                assert client.caches.describe(stored.handle).handle == stored.handle
                asked = client.generate([5, 6], max_tokens=2, cache_handle=stored.handle)
                assert asked.result.usage.context_tokens == stored.tokens
            client.caches.release(stored.handle)
            for _ in range(3):
                with pytest.raises(NotFound) as caught:
                    client.caches.renew(stored.handle, 60)
                assert caught.value.reason == "LEASE_RELEASED"


def test_a_frozen_replica_is_unavailable_and_not_gone(fleet: Fleet) -> None:
    frozen = fleet.decodes[1]
    with Client(frozen.target) as owner, Client(fleet.decodes[0].target, retries=False) as other:
        session_id = _turn(owner, 0).session_id
        frozen.process.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(Unavailable) as caught:
                _turn(other, 1, session_id)
        finally:
            frozen.process.send_signal(signal.SIGCONT)
        assert caught.value.reason == "REPLICA_UNREACHABLE"
        assert "127.0.0.1" not in caught.value.message
        wait_until(lambda: _goes_on(other, session_id), 30, "the session")


def _goes_on(client: Client, session_id: str) -> bool:
    with contextlib.suppress(Unavailable):
        return _turn(client, 1, session_id).session_id == session_id
    return False


def test_what_a_killed_replica_had_is_gone_by_name(
    fleet: Fleet,
) -> None:
    with (
        Client(fleet.decodes[2].target) as owner,
        Client(fleet.decodes[0].target) as other,
        Client(fleet.envoys[3].target) as client,
        contextlib.ExitStack() as stack,
    ):
        session_id = _turn(owner, 0).session_id
        assert _turn(other, 1, session_id).session_id == session_id
        stored = client.caches.keep([9] * 40, ttl_seconds=60)
        for killed in (fleet.decodes[2], _granted(stored.handle, fleet.prefills)):
            killed.process.kill()
            killed.process.wait()
        knows_all = stack.enter_context(Client(fleet.targets(3)))
        for asked in (other, client, client, client, knows_all, knows_all):
            with pytest.raises(NotFound) as caught:
                _turn(asked, 2, session_id)
            assert caught.value.reason == "SESSION_REPLICA_GONE"
        with pytest.raises(NotFound) as caught:
            other.caches.renew(stored.handle, 60)
        assert caught.value.reason == "LEASE_REPLICA_GONE"
        # the others go on
        assert _conversation(client)


def _granted(handle: str, prefills: list[Service]) -> Service:
    """The prefill whose tag the lease ends in."""
    [found] = [service for service in prefills if tag_of(service.target) == handle[-12:]]
    return found
