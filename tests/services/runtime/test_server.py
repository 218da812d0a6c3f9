"""A server that nobody asks anything gives back what a burst has left."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import grpc
import pytest

from services.runtime import server as module
from services.runtime.options import ServerOptions
from services.runtime.security_options import SecurityOptions
from services.runtime.server import Server

_SERVICE = "headwise.v1.Echo"


async def _echo(request: bytes, context: object) -> bytes:
    return request


async def test_memory_is_given_back_once_after_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[float] = []
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(module, "give_back_freed_memory", lambda: given_back.append(loop.time()))
    monkeypatch.setattr(module, "_QUIET_SECONDS", 0.1)
    ready = tmp_path / "ready.json"
    server = Server(ServerOptions(ready_file=str(ready)), SecurityOptions(), 0, _SERVICE)
    method = grpc.unary_unary_rpc_method_handler(_echo)
    handler = grpc.method_handlers_generic_handler(_SERVICE, {"Say": method})
    server.add(lambda wire: wire.add_generic_rpc_handlers((handler,)))
    running = asyncio.create_task(server.run())
    async with asyncio.timeout(20):
        while not ready.exists():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        assert not given_back, "nothing has run yet"
        address = f"127.0.0.1:{json.loads(ready.read_text())['port']}"
        async with grpc.aio.insecure_channel(address) as channel:
            say = channel.unary_unary(f"/{_SERVICE}/Say")
            for _ in range(3):
                assert await say(b"hello") == b"hello"
        while not given_back:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        assert len(given_back) == 1, "nothing has run since"
        server.stop()
        await running
