"""A server without calls returns freed memory to the kernel."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from services.runtime.process.options import ServerOptions
from services.runtime.security.security_options import SecurityOptions
from services.runtime.serving import server as module
from services.runtime.serving.server import Server

_SERVICE = "headwise.v1.Echo"


async def _echo(request: bytes, context: object) -> bytes:
    return request


async def test_memory_is_given_back_once_after_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, once = asyncio.get_running_loop(), asyncio.Event()
    times: list[float] = []

    def give_back() -> None:
        times.append(loop.time())
        loop.call_soon_threadsafe(once.set)

    monkeypatch.setattr(module, "give_back_freed_memory", give_back)
    monkeypatch.setattr(module, "_QUIET_SECONDS", 0.1)
    server = Server(ServerOptions(), SecurityOptions(), 0, _SERVICE)
    method = grpc.unary_unary_rpc_method_handler(_echo)
    handler = grpc.method_handlers_generic_handler(_SERVICE, {"Say": method})
    server.add(lambda wire: wire.add_generic_rpc_handlers((handler,)))
    running = asyncio.create_task(server.run())
    async with asyncio.timeout(20):
        await asyncio.sleep(0.5)
        assert not times, "nothing has run yet"
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server._port}") as channel:
            say = channel.unary_unary(f"/{_SERVICE}/Say")
            for _ in range(3):
                assert await say(b"hello", wait_for_ready=True) == b"hello"
        await once.wait()
        await asyncio.sleep(0.3)
        assert len(times) == 1, "nothing has run since"
        server.stop()
        await running
