"""The services' own server shell around a decode service of a few lines: no model, no process."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from headwise.v1 import decode_pb2, decode_pb2_grpc
from services.runtime.process.options import ServerOptions
from services.runtime.security.identity import current_tenant
from services.runtime.security.security_options import SecurityOptions
from services.runtime.serving.server import Server

SERVICE = "headwise.v1.DecodeService"
_STOPPED = decode_pb2.Result(finish_reason=decode_pb2.FINISH_REASON_STOP)


class Echo(decode_pb2_grpc.DecodeServiceServicer):
    """Answers with the tenant it was called for, a delta at a time, until `hold` is set."""

    def __init__(self) -> None:
        self.hold = asyncio.Event()
        self.hold.set()
        self.calls = 0

    async def Generate(  # noqa: N802
        self, request: decode_pb2.GenerateRequest, context: Any
    ) -> None:
        self.calls += 1
        text = decode_pb2.Delta(text=current_tenant())
        await context.write(decode_pb2.GenerateResponse(delta=text))
        await self.hold.wait()
        await context.write(decode_pb2.GenerateResponse(result=_STOPPED))

    async def Describe(  # noqa: N802
        self, request: decode_pb2.DecodeServiceDescribeRequest, context: Any
    ) -> decode_pb2.DecodeServiceDescribeResponse:
        self.calls += 1
        return decode_pb2.DecodeServiceDescribeResponse(default_policy=current_tenant())


@dataclasses.dataclass(frozen=True, slots=True)
class SmallServer:
    """The address of a running server."""

    port: int
    metrics_port: int
    health_port: int
    echo: Echo
    server: Server

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"


@contextlib.asynccontextmanager
async def serving(folder: Path, security: SecurityOptions) -> AsyncIterator[SmallServer]:
    """The server, until the block ends."""
    ready = folder / "ready.json"
    ready.unlink(missing_ok=True)
    server = Server(ServerOptions(ready_file=str(ready), drain_seconds=5.0), security, 0, SERVICE)
    echo = Echo()
    server.add(lambda shell: decode_pb2_grpc.add_DecodeServiceServicer_to_server(echo, shell))
    server.set_serving(True)
    running = asyncio.create_task(server.run())
    try:
        while not ready.exists():
            assert not running.done(), running
            await asyncio.sleep(0.01)
        ports = json.loads(ready.read_text())
        health = ports.get("health_port", 0)
        yield SmallServer(ports["port"], ports["metrics_port"], health, echo, server)
    finally:
        echo.hold.set()
        server.stop()
        await running
