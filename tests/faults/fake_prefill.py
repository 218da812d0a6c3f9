"""A prefill service that sends whatever it is told to send."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import grpc


class FakePrefill:
    """Answers Describe with recorded bytes, and every Prefill and FetchCache with `messages`.

    `described` answers DescribeCache.

    With `hangs` a stream stays open after its last message until the caller leaves.
    """

    def __init__(self, description: bytes) -> None:
        self.messages: Sequence[bytes] = ()
        self.described = b""
        self.hangs = False
        self._description = description
        self._server = grpc.server(ThreadPoolExecutor(4))
        handlers = {
            "Describe": grpc.unary_unary_rpc_method_handler(lambda *_: self._description),
            "Prefill": grpc.unary_stream_rpc_method_handler(self._prefill),
        }
        caches = {
            "DescribeCache": grpc.unary_unary_rpc_method_handler(lambda *_: self.described),
            "FetchCache": grpc.unary_stream_rpc_method_handler(self._prefill),
        }
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler("headwise.v1.PrefillService", handlers),
                grpc.method_handlers_generic_handler("headwise.v1.CacheService", caches),
            )
        )
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def _prefill(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        left = threading.Event()
        context.add_callback(left.set)
        yield from self.messages
        if self.hangs:
            left.wait(60)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.stop(0)
