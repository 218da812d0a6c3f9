"""The client with blocking calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from headwise.caches import CacheCalls
from headwise.connection import Connection, Token
from headwise.descriptions import ServiceDescription, description_from_proto
from headwise.errors import InternalError, from_rpc_error
from headwise.replicas import RoutedChannel
from headwise.requests import GenerateOptions, Prompt, generate_request
from headwise.results import Answers, Delta, Result
from headwise.sessions import SessionCalls
from headwise.tls import Tls
from headwise.tracing import begin_call
from headwise.v1 import decode_pb2, decode_pb2_grpc, store_pb2_grpc

_GENERATE = "headwise.v1.DecodeService/Generate"


class Generation:
    """A running generation: iterate over its deltas, or read its `result`, which has the text.

    `cancel`, or the end of a `with` block, stops the work in both services.
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self._answers = Answers()

    def __iter__(self) -> Iterator[Delta]:
        try:
            for response in self._call:
                delta = self._answers.take(response)
                if delta is not None:
                    yield delta
        except grpc.RpcError as rpc_error:
            raise from_rpc_error(rpc_error) from rpc_error
        finally:
            self._call.cancel()

    @property
    def result(self) -> Result:
        """The first answer's result. Reads the rest of the stream first if need be."""
        return self.results[0]

    @property
    def results(self) -> tuple[Result, ...]:
        """Results of all answers, by index. Reads the rest of the stream first if need be."""
        if not self._answers.results:
            for _ in self:
                pass
        if not self._answers.results:
            raise InternalError("the stream ended without a result", "NO_RESULT")
        return self._answers.results

    def text(self) -> str:
        """The first answer's whole text. Reads the rest of the stream first if need be."""
        return self.result.text

    def cancel(self) -> None:
        """Stop the generation; does nothing if it has ended."""
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()


class Client:
    """Generates text through a Headwise decode service at `target` ("host:port").

    - `target`: several targets are replicas of one service. Calls go to them by turns, and those
      for a session to the replica that has it. A decode with `--peers` needs one target only.
    - `tls`, or `credentials` for gRPC's other ways: encrypt the channel; without both, the channel
      is plain text.
    - `token`: the bearer token, or a callable that returns one and is called before each call. A
      token on a plain-text channel to another machine raises `ValueError`.
    - `retries`: let gRPC repeat a call up to twice on UNAVAILABLE, as long as nothing of the answer
      has arrived.
    - `tenant`: the tenant that calls belong to. Sessions and stored caches of other tenants are
      never found.

    Every call raises the errors of `headwise.errors`.
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
        channels = [connection.open() for connection in connections]
        if not channels:
            raise ValueError("no target")
        self._connection = connections[0]
        self._channel: Any = channels[0]
        if len(channels) > 1:
            self._channel = RoutedChannel(channels, self._connection.metadata)
        self._stub = decode_pb2_grpc.DecodeServiceStub(self._channel)
        replicas = [decode_pb2_grpc.DecodeServiceStub(channel) for channel in channels]
        self.sessions = SessionCalls(self._stub, self._connection, replicas)
        caches = store_pb2_grpc.CacheServiceStub(self._channel)
        self.caches = CacheCalls(caches, self._connection)

    def generate(
        self,
        prompt: Prompt,
        *,
        timeout_seconds: float | None = None,
        request_id: str | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generation:
        """Continue `prompt`: text, token ids, or messages for the model's chat template.

        `timeout_seconds` limits the whole call. `request_id` names the call in the services' logs.
        `GenerateOptions` lists the other keywords.
        """
        request = generate_request(prompt, **options)
        traced, end = begin_call(_GENERATE, request_id)
        metadata = (*self._connection.metadata(request_id), *traced)
        call = self._stub.Generate(request, timeout=timeout_seconds, metadata=metadata)
        if end is not None:
            call.add_done_callback(lambda ended: end(ended.code().name))
        return Generation(call)

    def describe(self, timeout_seconds: float | None = 10.0) -> ServiceDescription:
        """Describe the service: its model, policies, limits and versions."""
        try:
            response: decode_pb2.DecodeServiceDescribeResponse = self._stub.Describe(
                decode_pb2.DecodeServiceDescribeRequest(),
                timeout=timeout_seconds,
                metadata=self._connection.metadata(),
            )
        except grpc.RpcError as rpc_error:
            raise from_rpc_error(rpc_error) from rpc_error
        return description_from_proto(response)

    def close(self) -> None:
        """Close the channel. Running generations are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
