"""Every RPC that a client has can be called through every way in that deploy/ offers."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from headwise import Client
from headwise.connection import TENANT_KEY
from headwise.v1 import decode_pb2
from tests.conftest import Pair
from tests.deploy.rendered import one
from tests.interop.doors import CLIENT_RPCS, Door, gateway_configuration
from tests.interop.envoy import COMMITTED, descriptors, envoy_program, running_envoy
from tests.observe import wait_until
from tests.parts import require_program

pytestmark = pytest.mark.processes

_LIST = "headwise.v1.DecodeService/ListSessions"


@pytest.fixture(scope="module")
def doors(tiny_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Door]]:
    prefill, decode = ([service.port] for service in tiny_pair)
    [host] = one("production", "GRPCRoute", "headwise")["spec"]["hostnames"]
    with contextlib.ExitStack() as stack:
        envoy = stack.enter_context(
            running_envoy(tmp_path_factory.mktemp("envoy"), decode, prefill)
        )
        gateway = stack.enter_context(
            running_envoy(
                tmp_path_factory.mktemp("gateway"),
                decode,
                prefill,
                gateway_configuration("production"),
            )
        )
        found = {"envoy": Door(envoy.target), "gateway": Door(gateway.target, host)}
        for door in found.values():
            wait_until(lambda door=door: door.call(_LIST) == "OK", 20, "a healthy replica")
        yield found


@pytest.mark.parametrize("rpc", CLIENT_RPCS)
@pytest.mark.parametrize("name", ["envoy", "gateway"])
def test_an_rpc_is_answered_as_without_the_door(
    doors: dict[str, Door], tiny_pair: Pair, name: str, rpc: str
) -> None:
    assert doors[name].call(rpc) == Door(tiny_pair[1].target).call(rpc)


@pytest.mark.parametrize("rpc", CLIENT_RPCS)
def test_an_rpc_is_answered_as_json(doors: dict[str, Door], tiny_pair: Pair, rpc: str) -> None:
    status, _, reason = Door(tiny_pair[1].target).call(rpc).partition(" ")
    code, told = doors["envoy"].post(rpc)
    assert (code == 200) == (status == "OK")
    assert told == reason


@pytest.mark.parametrize("name", ["envoy", "gateway"])
def test_doors_refuse_calls_that_are_not_for_clients(doors: dict[str, Door], name: str) -> None:
    for rpc in ("headwise.v1.PrefillService/Describe", "grpc.health.v1.Health/Check"):
        assert doors[name].call(rpc).startswith("UNIMPLEMENTED")


@pytest.mark.parametrize("name", ["envoy", "gateway"])
def test_a_stranger_cannot_name_a_tenant(
    doors: dict[str, Door], tiny_pair: Pair, name: str
) -> None:
    with Client(tiny_pair[1].target, tenant="victim") as client:
        kept = client.generate("x y", max_tokens=2, session_ttl_seconds=60).result.session_id
        direct = _sessions(Door(tiny_pair[1].target))
        through = _sessions(doors[name])
        client.sessions.release(kept)
    assert kept in direct
    assert kept not in through


def _sessions(door: Door) -> list[str]:
    """The sessions that are listed to a caller who says that the tenant is `victim`."""
    with door.channel() as channel:
        method = channel.unary_unary(
            f"/{_LIST}", response_deserializer=decode_pb2.ListSessionsResponse.FromString
        )
        answer = method(b"", timeout=20, metadata=((TENANT_KEY, "victim"),))
    return [session.session_id for session in answer.sessions]


def test_a_client_of_the_library_does_all_it_can(doors: dict[str, Door]) -> None:
    with Client(doors["envoy"].target) as client:
        assert client.describe().default_policy
        stored = client.caches.keep("a document to be kept", ttl_seconds=60)
        assert client.caches.describe(stored.handle).tokens == stored.tokens
        asked = client.generate("x y", max_tokens=2, cache_handle=stored.handle)
        assert asked.result.usage.context_tokens == stored.tokens
        client.caches.renew(stored.handle, 30)
        client.caches.release(stored.handle)
        kept = client.generate("x y", max_tokens=2, session_ttl_seconds=60).result.session_id
        fork = client.sessions.fork(kept).session_id
        assert {kept, fork} <= {session.session_id for session in client.sessions.list()}
        for session_id in (kept, fork):
            client.sessions.release(session_id)


def test_envoy_accepts_the_committed_file_as_it_is(tmp_path: Path) -> None:
    """The file itself, byte for byte, with the contract where it says."""
    unshare = require_program("unshare", "apt-get install util-linux")
    if subprocess.run([unshare, "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no namespaces for this user: the other tests run the file's text")
    contract = descriptors(tmp_path)
    script = (
        f"mount -t tmpfs tmpfs /etc && mkdir /etc/envoy && cp {contract} /etc/envoy/ && "
        f"exec {envoy_program()} --mode validate -c {COMMITTED}"
    )
    done = subprocess.run([unshare, "-rm", "sh", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
