"""Pulls caches from the prefill service, whose response stream is the lease on them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc

from headwise.errors import Unavailable
from headwise.reading import read_message
from headwise.v1 import cache_pb2, prefill_pb2, prefill_pb2_grpc, store_pb2
from kvstore.cache import FORMAT_VERSIONS
from kvstore.errors import CorruptCache
from kvstore.pool import SequencePages
from kvstore.row_codecs import MODEL_ROWS
from kvstore.tiers.content_key import ContentKey
from kvstore.wire import CacheDecoder, WireLimits
from services.decode.link.link_options import LinkOptions
from services.decode.link.prefill_errors import prefill_errors
from services.decode.link.prefill_link import PrefillLink
from services.decode.link.reception import ExpectedCache, Reception
from services.decode.link.stored_cache_calls import StoredCacheCalls
from services.decode.memory.intake import Intake
from services.decode.observations import watched_call, watched_transfer
from services.decode.report import TransferReport
from services.runtime.model.served_model import ServedModel
from services.runtime.serving.cache_formats import require_common
from services.runtime.serving.convert import codec_to_proto, model_from_proto, model_to_proto
from services.runtime.serving.handles import Handle

_METHOD = "/headwise.v1.PrefillService/Prefill"
_FETCH_METHOD = "/headwise.v1.CacheService/FetchCache"
# how long to wait for the end of a call after the trailer, which a prefill that froze never sends
_END_SECONDS = 0.5

_UNENCRYPTED = LinkOptions()


class PrefillSource:
    """Pulls caches from one prefill target; `stored_caches` makes the calls about stored ones."""

    def __init__(
        self,
        target: str,
        served: ServedModel,
        *,
        limits: WireLimits,
        stall_seconds: float,
        link: LinkOptions = _UNENCRYPTED,
    ) -> None:
        self._target = target
        self._served = served
        self._limits = limits
        self._stall_seconds = stall_seconds
        self._link = PrefillLink(target, link)
        self.stored_caches = StoredCacheCalls(target, self._link)

    async def describe(self) -> prefill_pb2.PrefillServiceDescribeResponse:
        """Return prefill's model, policies and versions.

        Raises `FingerprintMismatch` if prefill serves another model, and `Refused` if prefill
        writes no cache format that decode reads.
        """
        stub = prefill_pb2_grpc.PrefillServiceStub(self._link.channel)
        with watched_call(self._target), prefill_errors(self._target):
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
        """Fill `pages` with the cache of exactly these tokens; return once the trailer agrees.

        `intake` reserves the pages of each layer before it is loaded, and rests after it. While
        `intake` waits, nothing is read from the stream, and flow control makes prefill wait.

        An error or a cancellation cancels the call, which stops the computation at prefill. The
        pages then hold a part of the cache and must be released.
        """
        request = prefill_pb2.PrefillRequest(
            token_ids=token_ids,
            policy=policy,
            expected_model=model_to_proto(self._served.fingerprint),
            codec=None if pages.codec == MODEL_ROWS else codec_to_proto(pages.codec),
            cache_formats=FORMAT_VERSIONS,
        )
        call = self._call(_METHOD, request, namespace, timeout_seconds)
        return await self._fill(call, ExpectedCache.of(token_ids), pages, intake)

    async def fetch(
        self,
        handle: str,
        stored: cache_pb2.StoredCache,
        pages: SequencePages,
        namespace: str,
        intake: Intake,
    ) -> TransferReport:
        """Fill `pages` with a stored cache, as `pull` does with a new cache.

        The cache must be the one that `handle` names in this namespace, whatever `stored` says.
        """
        key = ContentKey(namespace, Handle.parse(handle).digest)
        expected = ExpectedCache(stored.tokens, key=key)
        request = store_pb2.FetchCacheRequest(handle=handle, cache_formats=FORMAT_VERSIONS)
        call = self._call(_FETCH_METHOD, request, namespace, None)
        report = await self._fill(call, expected, pages, intake)
        return dataclasses.replace(report, context_tokens=stored.tokens)

    async def _fill(
        self, call: Any, expected: ExpectedCache, pages: SequencePages, intake: Intake
    ) -> TransferReport:
        try:
            with watched_transfer(self._target), prefill_errors(self._target):
                return await self._receive(call, expected, pages, intake)
        finally:
            call.cancel()

    def _call(self, name: str, request: Any, namespace: str, timeout_seconds: float | None) -> Any:
        # messages are parsed by `Reception`: gRPC would report a damaged one as INTERNAL, where
        # DATA_LOSS is due
        method: grpc.aio.UnaryStreamMultiCallable[Any, bytes] = self._link.channel.unary_stream(
            name, request_serializer=type(request).SerializeToString
        )
        metadata = self._link.metadata(namespace)
        return method(request, timeout=timeout_seconds, metadata=metadata)

    async def _receive(
        self, call: Any, expected: ExpectedCache, pages: SequencePages, intake: Intake
    ) -> TransferReport:
        decoder = CacheDecoder(
            self._limits, self._served.fingerprint, self._served.shapes, pages.codec
        )
        reception = Reception(decoder, expected, pages)
        worked_seconds = 0.0
        async for message in self._messages(call):
            began = time.perf_counter()
            layer = reception.take(message)
            worked_seconds += time.perf_counter() - began
            if layer is not None:
                await intake.reserve(pages, pages.need(layer))
                began = time.perf_counter()
                reception.load(layer)
                await intake.pause(worked_seconds + time.perf_counter() - began)
                worked_seconds = 0.0
            if reception.complete:
                await _await_end(call)
                break
        return reception.finish()

    async def _messages(self, call: Any) -> AsyncIterator[bytes]:
        """Yield the stream's messages. Raises `Unavailable` if the next one takes too long."""
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

    async def close(self) -> None:
        await self._link.close()


async def _await_end(call: Any) -> None:
    """Wait for the end of a call whose trailer has come, so that prefill counts it as completed.

    The cache is complete, so a failure of prefill does not matter at this point. A further message
    raises `CorruptCache`.
    """
    with contextlib.suppress(grpc.aio.AioRpcError, TimeoutError):
        async with asyncio.timeout(_END_SECONDS):
            if await read_message(call) is not grpc.aio.EOF:
                raise CorruptCache("a message came after the trailer")
