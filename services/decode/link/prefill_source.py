"""Where caches come from: the prefill service, whose response stream is the lease."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import grpc

from headwise.errors import (
    Cancelled,
    Forbidden,
    HeadwiseError,
    InternalError,
    Unauthenticated,
    Unavailable,
    from_rpc_error,
)
from headwise.reading import read_message
from headwise.v1 import (
    cache_pb2,
    prefill_pb2,
    prefill_pb2_grpc,
    store_pb2,
    store_pb2_grpc,
)
from kvstore.cache import FORMAT_VERSIONS
from kvstore.errors import CorruptCache
from kvstore.pool import SequencePages
from kvstore.row_codecs import MODEL_ROWS
from kvstore.wire import CacheDecoder, WireLimits
from services.decode.link.link_options import LinkOptions
from services.decode.link.prefill_link import PrefillLink
from services.decode.link.reception import ExpectedTokens, Reception
from services.decode.memory.intake import Intake
from services.decode.observations import watched_call, watched_transfer
from services.decode.report import TransferReport
from services.runtime.model.served_model import ServedModel
from services.runtime.serving.cache_formats import require_common
from services.runtime.serving.convert import codec_to_proto, model_from_proto, model_to_proto

_METHOD = "/headwise.v1.PrefillService/Prefill"
_FETCH_METHOD = "/headwise.v1.CacheService/FetchCache"
# prefill ends its call right after the trailer; one that froze there must not cost more
_END_SECONDS = 0.5

_PLAIN = LinkOptions()

log = logging.getLogger("headwise.decode")


class PrefillSource:
    """Pulls caches from one prefill target."""

    def __init__(
        self,
        target: str,
        served: ServedModel,
        *,
        limits: WireLimits,
        stall_seconds: float,
        link: LinkOptions = _PLAIN,
    ) -> None:
        self._target = target
        self._served = served
        self._limits = limits
        self._stall_seconds = stall_seconds
        self._link = PrefillLink(target, link)

    async def ask(
        self, method: str, request: Any, namespace: str, timeout_seconds: float | None
    ) -> Any:
        """The answer of one of CacheService's methods but FetchCache."""
        call = getattr(store_pb2_grpc.CacheServiceStub(self._link.channel), method)
        with self._typed_errors():
            return await call(
                request, timeout=timeout_seconds, metadata=self._link.metadata(namespace)
            )

    async def describe(self) -> prefill_pb2.PrefillServiceDescribeResponse:
        """What prefill offers.

        Raises `FingerprintMismatch` if it serves another model, `Refused` if it writes no format
        that is read here.
        """
        stub = prefill_pb2_grpc.PrefillServiceStub(self._link.channel)
        with watched_call(self._target), self._typed_errors():
            answer: prefill_pb2.PrefillServiceDescribeResponse = await stub.Describe(
                prefill_pb2.PrefillServiceDescribeRequest(),
                timeout=10,
                metadata=self._link.metadata(),
            )
        theirs = model_from_proto(answer.model.fingerprint)
        self._served.fingerprint.require_same(theirs)
        require_common(answer.versions.cache_formats)
        return answer

    async def pull(
        self,
        token_ids: Sequence[int],
        policy: cache_pb2.Policy,
        pages: SequencePages,
        timeout_seconds: float | None,
        namespace: str,
        intake: Intake,
    ) -> TransferReport:
        """Fill `pages` with the cache of exactly these tokens; returns once the trailer agreed.

        Before each layer `intake` has its pages promised, and rests after it; while that waits
        nothing is read, and flow control holds prefill up.

        Leaving early, by an error or a cancellation, cancels the call, which stops the computation.
        The pages then hold a part and must be released.
        """
        request = prefill_pb2.PrefillRequest(
            token_ids=token_ids,
            policy=policy,
            expected_model=model_to_proto(self._served.fingerprint),
            codec=None if pages.codec == MODEL_ROWS else codec_to_proto(pages.codec),
            cache_formats=FORMAT_VERSIONS,
        )
        call = self._call(_METHOD, request, namespace, timeout_seconds)
        return await self._fill(call, ExpectedTokens.of(token_ids), pages, intake)

    async def fetch(
        self,
        handle: str,
        stored: cache_pb2.StoredCache,
        pages: SequencePages,
        namespace: str,
        intake: Intake,
    ) -> TransferReport:
        """Fill `pages` with a stored cache, as `pull` does with a new one."""
        request = store_pb2.FetchCacheRequest(handle=handle, cache_formats=FORMAT_VERSIONS)
        call = self._call(_FETCH_METHOD, request, namespace, None)
        received = await self._fill(call, ExpectedTokens(stored.tokens, None), pages, intake)
        return dataclasses.replace(received, context_tokens=stored.tokens)

    async def _fill(
        self, call: Any, wanted: ExpectedTokens, pages: SequencePages, intake: Intake
    ) -> TransferReport:
        try:
            with watched_transfer(self._target), self._typed_errors():
                return await self._receive(call, wanted, pages, intake)
        finally:
            call.cancel()

    def _call(self, name: str, request: Any, namespace: str, timeout_seconds: float | None) -> Any:
        # bytes as they are: a message that does not parse is corruption, not gRPC's own failure
        method: grpc.aio.UnaryStreamMultiCallable[Any, bytes] = self._link.channel.unary_stream(
            name, request_serializer=type(request).SerializeToString
        )
        metadata = self._link.metadata(namespace)
        return method(request, timeout=timeout_seconds, metadata=metadata)

    async def _receive(
        self, call: Any, wanted: ExpectedTokens, pages: SequencePages, intake: Intake
    ) -> TransferReport:
        decoder = CacheDecoder(
            self._limits, self._served.fingerprint, self._served.shapes, pages.codec
        )
        reception = Reception(decoder, wanted, pages)
        worked = 0.0
        async for message in self._messages(call):
            began = time.perf_counter()
            layer = reception.take(message)
            worked += time.perf_counter() - began
            if layer is not None:
                await intake.claim(pages, pages.need(layer))
                began = time.perf_counter()
                reception.load(layer)
                await intake.rest(worked + time.perf_counter() - began)
                worked = 0.0
            if reception.complete:
                await _let_end(call)
                break
        return reception.finish()

    async def _messages(self, call: Any) -> AsyncIterator[bytes]:
        """The stream's messages, as long as each comes in time."""
        while True:
            try:
                async with asyncio.timeout(self._stall_seconds):
                    message = await read_message(call)
            except TimeoutError as error:
                raise Unavailable(
                    f"no sign of life from prefill in {self._stall_seconds:g} s", "PREFILL_STALLED"
                ) from error
            if message is grpc.aio.EOF:
                return
            yield message

    @contextlib.contextmanager
    def _typed_errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise self._typed(error) from error

    def _typed(self, error: grpc.aio.AioRpcError) -> HeadwiseError:
        """What a failed prefill call means to our own caller."""
        typed = from_rpc_error(error)
        match typed:
            case Unavailable() | Cancelled():
                reason = typed.reason if typed.reason != typed.code.name else "PREFILL_UNAVAILABLE"
                return Unavailable(
                    f"prefill at {self._target} is unavailable: {typed.message}", reason
                )
            case Unauthenticated() | Forbidden():
                # decode's credentials, not those of its caller, who can do nothing about it
                log.error("prefill at %s refuses decode: %s", self._target, typed)
                return Unavailable("prefill is unavailable", "PREFILL_REFUSES_DECODE")
            case InternalError():
                return InternalError("prefill failed", "PREFILL_FAILED")
            case _:
                return typed

    async def close(self) -> None:
        await self._link.close()


async def _let_end(call: Any) -> None:
    """Let a call whose trailer came end by itself: prefill counts it as done, not as cancelled.

    The cache is whole, so nothing that happens to prefill from here on matters; only a further
    message is refused, as in any stream.
    """
    with contextlib.suppress(grpc.aio.AioRpcError, TimeoutError):
        async with asyncio.timeout(_END_SECONDS):
            if await read_message(call) is not grpc.aio.EOF:
                raise CorruptCache("a message came after the trailer")
