"""A decode service of a few lines, whose every call does what a script says."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from headwise.errors import HeadwiseError, to_trailing_metadata
from headwise.v1 import decode_pb2, decode_pb2_grpc

# one call's answer, given its number from 0 and its context
Script = Callable[[int, grpc.ServicerContext], Iterator[decode_pb2.GenerateResponse]]


class FakeDecode(decode_pb2_grpc.DecodeServiceServicer):
    """Counts its calls and keeps the contexts of all of them."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.calls: list[grpc.ServicerContext] = []

    def Generate(  # noqa: N802
        self, request: decode_pb2.GenerateRequest, context: Any
    ) -> Iterator[decode_pb2.GenerateResponse]:
        self.calls.append(context)
        try:
            yield from self._script(len(self.calls) - 1, context)
        except HeadwiseError as error:
            context.set_trailing_metadata(to_trailing_metadata(error))
            context.abort(error.code, error.message)


@contextlib.contextmanager
def serving(script: Script) -> Iterator[tuple[FakeDecode, str]]:
    """The fake and its target, until the block ends."""
    fake = FakeDecode(script)
    server = grpc.server(ThreadPoolExecutor(4))
    decode_pb2_grpc.add_DecodeServiceServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield fake, f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def delta(text: str) -> decode_pb2.GenerateResponse:
    return decode_pb2.GenerateResponse(delta=decode_pb2.Delta(text=text, token_ids=[1]))


def result() -> decode_pb2.GenerateResponse:
    return decode_pb2.GenerateResponse(
        result=decode_pb2.Result(
            finish_reason=decode_pb2.FINISH_REASON_LENGTH,
            usage=decode_pb2.Usage(prompt_tokens=3, completion_tokens=2),
        )
    )
