"""The client for asyncio; the calls of `headwise.client` as coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from headwise.caches import AsyncCacheCalls
from headwise.connection import Connection, Token
from headwise.descriptions import ServiceDescription, description_from_proto
from headwise.errors import Cancelled, InternalError, from_rpc_error
from headwise.loop_channel import LoopChannel
from headwise.reading import messages
from headwise.replicas import AsyncRoutedChannel
from headwise.requests import GenerateOptions, Prompt, generate_request
from headwise.results import Answers, Delta, Result
from headwise.sessions import AsyncSessionCalls
from headwise.tls import Tls
from headwise.tracing import begin_call
from headwise.v1 import decode_pb2, decode_pb2_grpc, store_pb2_grpc

_GENERATE = "headwise.v1.DecodeService/Generate"


class AsyncGeneration:
    """A running generation: iterate over its deltas with `async for`, then await `result()`."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._answers = Answers()

    async def __aiter__(self) -> AsyncIterator[Delta]:
        try:
            async for response in messages(self._call):
                delta = self._answers.take(response)
                if delta is not None:
                    yield delta
        except grpc.RpcError as rpc_error:
            raise from_rpc_error(rpc_error) from rpc_error
        except asyncio.CancelledError as error:
            # gRPC raises this for a call cancelled by `cancel` too, when the task goes on
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise Cancelled("the generation was cancelled", "CANCELLED") from error
        finally:
            self._call.cancel()

    async def result(self) -> Result:
        """The first answer's result. Reads the rest of the stream first if need be."""
        return (await self.results())[0]

    async def results(self) -> tuple[Result, ...]:
        """Results of all answers, by index. Reads the rest of the stream first if need be."""
        if not self._answers.results:
            async for _ in self:
                pass
        if not self._answers.results:
            raise InternalError("the stream ended without a result", "NO_RESULT")
        return self._answers.results

    async def text(self) -> str:
        """The first answer's whole text. Reads the rest of the stream first if need be."""
        return (await self.result()).text

    def cancel(self) -> None:
        """Stop the generation; does nothing if it has ended."""
        self._call.cancel()


class AsyncClient:
    """Generates text through a Headwise decode service at `target` ("host:port").

    The arguments are those of `headwise.Client`. A client may be used in one event loop after
    another: each loop gets a channel of its own.
    """

    def __init__(
        self,
        target: str | Sequence[str],
        *,
        tls: Tls | None = None,
        token: Token | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        retries: bool = True,
        tenant: str = "",
    ) -> None:
        targets = [target] if isinstance(target, str) else list(target)
        connections = [
            Connection(each, tls, credentials, token, retries, tenant) for each in targets
        ]
        channels = [LoopChannel(connection.open_async) for connection in connections]
        if not channels:
            raise ValueError("no target")
        self._connection = connections[0]
        self._channel: Any = channels[0]
        if len(channels) > 1:
            self._channel = AsyncRoutedChannel(channels, self._connection.metadata)
        self._stub = decode_pb2_grpc.DecodeServiceStub(self._channel)
        replicas = [decode_pb2_grpc.DecodeServiceStub(channel) for channel in channels]
        self.sessions = AsyncSessionCalls(self._stub, self._connection, replicas)
        caches = store_pb2_grpc.CacheServiceStub(self._channel)
        self.caches = AsyncCacheCalls(caches, self._connection)

    def generate(
        self,
        prompt: Prompt,
        *,
        timeout_seconds: float | None = None,
        request_id: str | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncGeneration:
        """Continue `prompt`; see `headwise.Client.generate`."""
        request = generate_request(prompt, **options)
        traced, end = begin_call(_GENERATE, request_id)
        metadata = (*self._connection.metadata(request_id), *traced)
        call = self._stub.Generate(request, timeout=timeout_seconds, metadata=metadata)
        if end is not None:
            call.add_done_callback(lambda ended: _end_span(ended, end))
        return AsyncGeneration(call)

    async def describe(self, timeout_seconds: float | None = 10.0) -> ServiceDescription:
        """Describe the service: its model, policies, limits and versions."""
        try:
            response: decode_pb2.DecodeServiceDescribeResponse = await self._stub.Describe(
                decode_pb2.DecodeServiceDescribeRequest(),
                timeout=timeout_seconds,
                metadata=self._connection.metadata(),
            )
        except grpc.RpcError as rpc_error:
            raise from_rpc_error(rpc_error) from rpc_error
        return description_from_proto(response)

    async def close(self) -> None:
        """Close the channel. Running generations are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


def _end_span(call: Any, end: Callable[[str], None]) -> None:
    """Call `end` with the name of an ended call's status, which can only be awaited."""
    code: asyncio.Task[grpc.StatusCode] = asyncio.ensure_future(call.code())
    code.add_done_callback(lambda ended: end(ended.result().name))
