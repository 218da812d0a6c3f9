"""Health is asked without a token: callers that take no answer must not hold it up."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.demo.processes import running_service
from services.runtime.security.security_options import SecurityOptions
from services.runtime.serving import server as server_module
from services.runtime.serving.health_service import HealthService
from tests.observe import wait_until
from tests.security.http2_peer import Http2Peer, http2_peer
from tests.security.small_server import SERVICE, SmallServer, serving

_WATCH = "/grpc.health.v1.Health/Watch"
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@contextlib.contextmanager
def _shut_watchers(port: int, watchers: int) -> Iterator[Http2Peer]:
    """Watchers that open no window, once the server has begun to answer them."""
    request = health_pb2.HealthCheckRequest(service=SERVICE).SerializeToString()
    with http2_peer(port, window=0) as peer:
        streams = [peer.call(_WATCH, request) for _ in range(watchers)]
        wait_until(lambda: all(peer.answer(s).headers for s in streams), 10, "answers to begin")
        yield peer


@contextlib.asynccontextmanager
async def _connected(port: int) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield health_pb2_grpc.HealthStub(channel)


async def _status(port: int) -> int:
    async with _connected(port) as stub:
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        return int((await stub.Check(request, timeout=5)).status)


async def test_a_watcher_that_reads_nothing_delays_neither_a_change_nor_the_end(
    tmp_path: Path,
) -> None:
    def hostile(server: SmallServer) -> contextlib.ExitStack:
        stack = contextlib.ExitStack()
        for port in (server.port, server.health_port):
            stack.enter_context(_shut_watchers(port, 2))
        return stack

    shell = serving(tmp_path, SecurityOptions(health_port=0))
    async with contextlib.AsyncExitStack() as later, asyncio.timeout(20):
        server = await shell.__aenter__()
        held = await asyncio.to_thread(hostile, server)
        later.push_async_callback(asyncio.to_thread, held.close)
        async with _connected(server.port) as stub:
            watching = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
            assert (await watching.read()).status == _SERVING
            server.server.set_serving(False)
            assert (await watching.read()).status == _NOT_SERVING
        for port in (server.port, server.health_port):
            assert await _status(port) == _NOT_SERVING
        server.server.set_serving(True)
        assert await _status(server.port) == _SERVING
        # the server ends while the watchers are still there
        await shell.__aexit__(None, None, None)


async def test_watchers_are_bounded_and_a_place_is_free_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def few() -> HealthService:
        return HealthService(max_watchers=3, take_seconds=0.5)

    monkeypatch.setattr(server_module, "HealthService", few)
    async with serving(tmp_path, SecurityOptions()) as server, _connected(server.port) as stub:
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        watching = [stub.Watch(request) for _ in range(3)]
        for watch in watching:
            assert (await watch.read()).status == _SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Watch(request).read()
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await _status(server.port) == _SERVING
        watching.pop().cancel()
        async with asyncio.timeout(10):
            # a watcher that takes nothing gets the free place, and loses it again
            shut = _shut_watchers(server.port, 1)
            await asyncio.to_thread(shut.__enter__)
            while not await _may_watch(stub):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            await asyncio.to_thread(shut.__exit__, None, None, None)


async def _may_watch(stub: Any) -> bool:
    watching = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
    try:
        return bool((await watching.read()).status == _SERVING)
    except grpc.aio.AioRpcError:
        return False
    finally:
        watching.cancel()


@pytest.mark.processes
def test_a_process_ends_within_its_drain_while_a_watcher_reads_nothing(tiny_model: Path) -> None:
    arguments = ["--model", str(tiny_model), "--drain-seconds", "3", "--health-port", "0"]
    with (
        running_service("prefill", arguments) as prefill,
        _shut_watchers(prefill.port, 1),
        _shut_watchers(prefill.health_port, 1),
    ):
        prefill.process.send_signal(signal.SIGTERM)
        # the drain, and what Python and torch take to end
        assert prefill.process.wait(15) == 0
