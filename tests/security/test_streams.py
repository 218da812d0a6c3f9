"""The streams of a connection are bounded, and calls that have ended give their place back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from headwise.channel import server_options
from headwise.errors import InvalidRequest
from headwise.v1 import decode_pb2, decode_pb2_grpc
from services.runtime.security.security_options import SecurityOptions
from services.runtime.serving import server as server_module
from tests.security.small_server import SmallServer, serving
from tests.security.tokens import entry, write

_STREAMS = 4


def _few_streams(_: int = 0) -> Any:
    return server_options(_STREAMS)


async def _refused(channel: grpc.aio.Channel) -> None:
    stub = decode_pb2_grpc.DecodeServiceStub(channel)
    await stub.Describe(decode_pb2.DecodeServiceDescribeRequest(), timeout=10)


async def _unknown(channel: grpc.aio.Channel) -> None:
    request = health_pb2.HealthCheckRequest(service="nothing")
    # grpc_health's stub has no annotations
    stub: Any = health_pb2_grpc.HealthStub(channel)
    await stub.Check(request, timeout=10)


async def _failing(channel: grpc.aio.Channel) -> None:
    stub = decode_pb2_grpc.DecodeServiceStub(channel)
    async for _ in stub.Generate(decode_pb2.GenerateRequest(), timeout=10, metadata=_GOOD):
        pass


async def _left(channel: grpc.aio.Channel) -> None:
    stub = decode_pb2_grpc.DecodeServiceStub(channel)
    call = stub.Generate(decode_pb2.GenerateRequest(), timeout=10, metadata=_GOOD)
    await call.read()
    call.cancel()
    await call.code()


_GOOD = (("authorization", "Bearer good"),)


@pytest.mark.parametrize("ending", ["refused", "unknown", "invalid", "fault", "left"])
async def test_failed_calls_give_their_stream_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr(server_module, "server_options", _few_streams)
    # pytest keeps the log's errors, and with them their frames
    monkeypatch.setattr(logging.getLogger("headwise.calls"), "disabled", True)
    tokens = write(tmp_path / "tokens.toml", entry("good", "acme"))
    calls: dict[str, Callable[[grpc.aio.Channel], Awaitable[None]]] = {
        "refused": _refused,
        "unknown": _unknown,
        "invalid": _failing,
        "fault": _failing,
        "left": _left,
    }
    expected = {"refused": "UNAUTHENTICATED", "unknown": "NOT_FOUND"}
    expected |= {"invalid": "INVALID_ARGUMENT", "fault": "INTERNAL"}
    async with serving(tmp_path, SecurityOptions(tokens=str(tokens))) as server:
        _fail(server, ending)
        async with grpc.aio.insecure_channel(server.target) as channel:
            for _ in range(10 * _STREAMS):
                if ending == "left":
                    await calls[ending](channel)
                    continue
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await calls[ending](channel)
                assert caught.value.code().name == expected[ending], caught.value.details()
            server.echo.hold.set()
            async with asyncio.timeout(10):
                stub = decode_pb2_grpc.DecodeServiceStub(channel)
                await stub.Describe(decode_pb2.DecodeServiceDescribeRequest(), metadata=_GOOD)


def _fail(server: SmallServer, ending: str) -> None:
    """Have Generate fail, or hold until its caller leaves."""

    async def wait() -> None:
        if ending == "left":
            await asyncio.sleep(60)
        # a variable that holds the error makes a circle of error and frame
        error = InvalidRequest("wrong", "EMPTY_PROMPT") if ending == "invalid" else KeyError("x")
        raise error

    server.echo.hold.wait = wait  # type: ignore[method-assign,assignment]
