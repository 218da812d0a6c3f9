"""A bare Python gRPC server stream of byte chunks: what shipping a cache is held against."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc

from headwise.channel import server_options

METHOD = "/bench.Bytes/Stream"


async def _serve() -> None:
    """A request names the bytes of each message; nothing is checked, numbered or serialized."""

    async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        sizes = [int(size) for size in request.split()]
        messages = {size: bytes(size) for size in set(sizes)}
        for size in sizes:
            yield messages[size]

    server = grpc.aio.server(options=server_options())
    handler = grpc.unary_stream_rpc_method_handler(stream)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("bench.Bytes", {"Stream": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


@contextlib.contextmanager
def byte_server() -> Iterator[str]:
    """Run a server in a process of its own until the block ends; yields its target."""
    command = [sys.executable, "-m", "benchmarks.byte_stream", "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true", required=True)
    parser.parse_args()
    asyncio.run(_serve())
