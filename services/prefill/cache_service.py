"""The servicer of stored caches."""

from __future__ import annotations

from typing import Any

import grpc

from headwise.errors import InvalidRequest, Overloaded
from headwise.v1 import store_pb2, store_pb2_grpc
from kvstore.tiers import PutStatus
from services.prefill.job import PrefillJob
from services.prefill.messages import found_to_proto, lease_to_proto
from services.prefill.options import PrefillOptions
from services.prefill.parts import PrefillParts
from services.prefill.sharing.held_messages import HeldMessages
from services.prefill.store.tenant_limits import new_lease, stored_bytes
from services.runtime.model.model_options import allowed_codecs
from services.runtime.model.served_model import ServedModel
from services.runtime.process import metrics
from services.runtime.security.identity import current_allowance, current_namespace
from services.runtime.serving.cache_formats import require_read
from services.runtime.serving.convert import codec_from_proto, policy_from_proto
from services.runtime.serving.fair_threads import FairThreads
from services.runtime.serving.prompt import check_tokens, context_tokens
from services.runtime.serving.prompt_size import PromptSize, count_prompt
from services.runtime.serving.reader_limit import ReaderLimit
from services.runtime.serving.status import RETRY_AFTER_SECONDS
from services.runtime.serving.unknown_fields import require_known

_Context = grpc.aio.ServicerContext[Any, Any]


class CacheServicer(store_pb2_grpc.CacheServiceServicer):
    """Implements headwise.v1.CacheService on the event loop."""

    def __init__(self, served: ServedModel, parts: PrefillParts, options: PrefillOptions) -> None:
        self._served = served
        self._parts = parts
        self._store = parts.store
        self._default_policy = options.default_policy
        self._stall_seconds = options.server.reader_stall_seconds
        self._messages = HeldMessages(served.shapes)
        self._codecs = allowed_codecs(options.model.codecs)
        self._threads = FairThreads()

    async def KeepCache(  # noqa: N802
        self, request: store_pb2.KeepCacheRequest, context: _Context
    ) -> store_pb2.KeepCacheResponse:
        size, allowance = self._count(request), current_allowance()
        allowance.require_tokens(size.least_tokens)
        seconds = self._store.checked_seconds(request.keep_for_seconds)
        if not seconds:
            message = "keep_for_seconds: must be more than 0"
            field = {"field": "keep_for_seconds"}
            raise InvalidRequest(message, "PARAMETER_OUT_OF_RANGE", field)
        namespace = current_namespace()
        self._store.require_lease_available(namespace)
        with new_lease(self._store, namespace):
            job = await self._read(request, size)
            allowance.take_prompt(len(job.token_ids))
            opened = self._parts.caches.open(job, namespace, context.time_remaining())
            async with opened as (key, shared, subscriber):
                cache = await shared.finished(subscriber)
                with stored_bytes(self._store, namespace, cache.nbytes):
                    kept = await self._store.keep(key, cache, seconds)
        if isinstance(kept, PutStatus):
            raise _refusal(kept)
        return store_pb2.KeepCacheResponse(
            cache=lease_to_proto(kept, self._store),
            reused=shared.report is not None and shared.report.reused,
        )

    async def FetchCache(  # noqa: N802
        self, request: store_pb2.FetchCacheRequest, context: _Context
    ) -> None:
        namespace = current_namespace()
        found = await self._store.find(request.handle, namespace, context.time_remaining())
        require_read(found.cache.fingerprint.format_version, request.cache_formats)
        reader = ReaderLimit(context, self._stall_seconds)
        sent = metrics.WIRE_BYTES.labels("sent")
        for message in self._messages.of(found.cache):
            await reader.write(message)
            sent.inc(len(message))
        if request.release:
            self._store.release(request.handle, namespace)

    async def DescribeCache(  # noqa: N802
        self, request: store_pb2.DescribeCacheRequest, context: _Context
    ) -> store_pb2.DescribeCacheResponse:
        namespace = current_namespace()
        lease = self._store.lease(request.handle, namespace)
        if lease is not None:
            cache = lease_to_proto(lease, self._store)
        else:
            remaining = context.time_remaining()
            cache = found_to_proto(await self._store.find(request.handle, namespace, remaining))
        return store_pb2.DescribeCacheResponse(cache=cache)

    async def RenewLease(  # noqa: N802
        self, request: store_pb2.RenewLeaseRequest, context: _Context
    ) -> store_pb2.RenewLeaseResponse:
        seconds, namespace = request.keep_for_seconds, current_namespace()
        lease = await self._store.renew(request.handle, namespace, seconds)
        return store_pb2.RenewLeaseResponse(cache=lease_to_proto(lease, self._store))

    async def ReleaseLease(  # noqa: N802
        self, request: store_pb2.ReleaseLeaseRequest, context: _Context
    ) -> store_pb2.ReleaseLeaseResponse:
        self._store.release(request.handle, current_namespace())
        return store_pb2.ReleaseLeaseResponse()

    def _count(self, request: store_pb2.KeepCacheRequest) -> PromptSize:
        longest = self._served.tokenizer.longest_token
        return count_prompt(request, longest, self._parts.max_prompt_tokens)

    async def _read(self, request: store_pb2.KeepCacheRequest, size: PromptSize) -> PrefillJob:
        """Return the checked job; a prompt that is not small is tokenized in a thread."""
        if size.small:
            return self._job(request)
        return await self._threads.run(current_namespace(), lambda: self._job(request))

    def _job(self, request: store_pb2.KeepCacheRequest) -> PrefillJob:
        require_known(request)
        tokens, field = context_tokens(request, self._served.tokenizer)
        limit = self._parts.max_prompt_tokens
        check_tokens(tokens, field, self._served.vocabulary_size, limit)
        policy = policy_from_proto(request.policy, self._default_policy)
        return PrefillJob(tokens, policy, codec_from_proto(request.codec, self._codecs))


def _refusal(status: PutStatus) -> Overloaded:
    return Overloaded(
        f"the cache was computed, but no store took it: {status}",
        f"STORE_{status.upper()}",
        retry_after_seconds=RETRY_AFTER_SECONDS,
    )
