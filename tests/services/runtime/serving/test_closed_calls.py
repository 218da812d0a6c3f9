"""Calls that their clients close just as they end leave no error in the log."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest

from headwise.errors import NotFound
from services.runtime.process.logs import GRPC_LOGGER, NoClosedCalls
from services.runtime.security.authentication import Authentication
from services.runtime.security.security_options import SecurityOptions
from services.runtime.serving.interceptor import StatusInterceptor

# some four of a second meet in the critical moment, on two cores
_SECONDS, _CALLERS = 5.0, 40


class Echo:
    """Ends each call within a millisecond or two of its deadline."""

    def __init__(self, ending: str) -> None:
        self._ending = ending

    async def stream(self, request: bytes, context: Any) -> None:
        if random.random() < 0.3:
            await context.write(b"first")
        remaining = context.time_remaining() or 0.0
        await asyncio.sleep(max(0.0, remaining + random.uniform(-0.0015, 0.0005)))
        if self._ending == "write":
            await context.write(b"last")
        elif self._ending == "error":
            raise NotFound("gone", "LEASE_RELEASED")


@contextlib.asynccontextmanager
async def _serving(echo: Echo) -> AsyncIterator[str]:
    server = grpc.aio.server(interceptors=[StatusInterceptor(Authentication(SecurityOptions()))])
    handlers = {"Stream": grpc.unary_stream_rpc_method_handler(echo.stream)}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("headwise.v1.Echo", handlers),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


@pytest.fixture
def as_a_service() -> Iterator[None]:
    """The filter that every process of ours has."""
    filtering = NoClosedCalls()
    logging.getLogger(GRPC_LOGGER).addFilter(filtering)
    yield
    logging.getLogger(GRPC_LOGGER).removeFilter(filtering)


@pytest.mark.usefixtures("as_a_service")
@pytest.mark.parametrize("ending", ["error", "write", "answer"])
async def test_a_call_that_closes_while_it_ends_is_no_error(
    ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    codes: set[str] = set()

    async def call_again_and_again(method: Any, until: float) -> None:
        while time.monotonic() < until:
            call = method(b"", timeout=random.uniform(0.002, 0.03))
            with contextlib.suppress(grpc.aio.AioRpcError):
                async for _ in call:
                    pass
            codes.add((await call.code()).name)

    with caplog.at_level(logging.ERROR):
        async with _serving(Echo(ending)) as target, grpc.aio.insecure_channel(target) as channel:
            method = channel.unary_stream("/headwise.v1.Echo/Stream")
            until = time.monotonic() + _SECONDS
            await asyncio.gather(*(call_again_and_again(method, until) for _ in range(_CALLERS)))
    assert "DEADLINE_EXCEEDED" in codes
    assert [record.getMessage() for record in caplog.records] == []


def test_other_errors_of_grpc_are_logged() -> None:
    try:
        raise RuntimeError("unexpected")
    except RuntimeError as error:
        exc_info = (type(error), error, error.__traceback__)
    record = logging.LogRecord(GRPC_LOGGER, logging.ERROR, "", 0, "no", (), exc_info)
    assert NoClosedCalls().filter(record)
