"""The synchronous client."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from headwise.caches import CacheCalls
from headwise.channel import channel_options
from headwise.errors import InternalError, from_rpc_error
from headwise.requests import GenerateOptions, Prompt, generate_request
from headwise.results import Delta, Result, delta_from_proto, result_from_proto
from headwise.sessions import SessionCalls
from headwise.tenant import tenant_metadata
from headwise.v1 import decode_pb2, decode_pb2_grpc, store_pb2_grpc


class Generation:
    """A running generation: iterate over its deltas, then read `result`.

    Leaving early (`cancel`, or the `with` block's end) stops the work in both services.
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self._results: dict[int, Result] = {}

    def __iter__(self) -> Iterator[Delta]:
        try:
            for response in self._call:
                if response.WhichOneof("part") == "result":
                    result = result_from_proto(response.result)
                    self._results[result.index] = result
                else:
                    yield delta_from_proto(response.delta)
        except grpc.RpcError as rpc_error:
            raise from_rpc_error(rpc_error) from rpc_error
        finally:
            self._call.cancel()

    @property
    def result(self) -> Result:
        """How the first answer ended. Reads the rest of the stream if that has not happened yet."""
        return self.results[0]

    @property
    def results(self) -> tuple[Result, ...]:
        """How every answer ended, by index; likewise."""
        if not self._results:
            for _ in self:
                pass
        if not self._results:
            raise InternalError("the stream ended without a result", "NO_RESULT")
        return tuple(self._results[index] for index in sorted(self._results))

    def text(self) -> str:
        """The whole remaining text of the first answer."""
        return "".join(delta.text for delta in self if delta.index == 0)

    def cancel(self) -> None:
        """Stop the generation; harmless when it has ended."""
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

    Errors are `headwise.errors`. With `retries`, gRPC begins a call again on UNAVAILABLE, up to
    twice, as long as nothing of the answer has arrived. `credentials` None means plain text.
    `tenant` is on whose behalf it asks: no other tenant's stored caches are ever found.
    """

    def __init__(
        self,
        target: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        retries: bool = True,
        tenant: str = "",
    ) -> None:
        options = channel_options(retries=retries)
        self._channel = (
            grpc.secure_channel(target, credentials, options)
            if credentials
            else grpc.insecure_channel(target, options)
        )
        self._stub = decode_pb2_grpc.DecodeServiceStub(self._channel)
        self._metadata = tenant_metadata(tenant)
        self.sessions = SessionCalls(self._stub)
        self.caches = CacheCalls(store_pb2_grpc.CacheServiceStub(self._channel), self._metadata)

    def generate(
        self,
        prompt: Prompt,
        *,
        timeout_seconds: float | None = None,
        request_id: str | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generation:
        """Continue `prompt`: text, token ids, or `Message`s put into the model's chat template.

        `timeout_seconds` bounds the whole call, `request_id` names it in the services' logs; the
        rest is in `GenerateOptions`.
        """
        request = generate_request(prompt, **options)
        named = (("x-request-id", request_id),) if request_id else ()
        metadata = (*self._metadata, *named)
        return Generation(self._stub.Generate(request, timeout=timeout_seconds, metadata=metadata))

    def describe(
        self, timeout_seconds: float | None = 10.0
    ) -> decode_pb2.DecodeServiceDescribeResponse:
        """What the service serves, and within which limits."""
        try:
            response: decode_pb2.DecodeServiceDescribeResponse = self._stub.Describe(
                decode_pb2.DecodeServiceDescribeRequest(), timeout=timeout_seconds
            )
        except grpc.RpcError as rpc_error:
            raise from_rpc_error(rpc_error) from rpc_error
        return response

    def close(self) -> None:
        """Close the channel; running generations are cancelled."""
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
