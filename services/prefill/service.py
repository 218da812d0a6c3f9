"""The servicer of prompts: check the request, open its prefill, write the messages."""

from __future__ import annotations

import contextlib
from typing import Any

import grpc

from headwise.errors import Overloaded
from headwise.v1 import prefill_pb2, prefill_pb2_grpc
from kvstore.cache import CompactCache
from services.prefill.job import parse_job
from services.prefill.messages import kept_to_proto
from services.prefill.options import PrefillOptions
from services.prefill.parts import PrefillParts
from services.prefill.sharing.stream import prefill_messages
from services.prefill.store.tenant_limits import new_lease, stored_bytes
from services.runtime.model.model_options import allowed_codecs
from services.runtime.model.served_model import ServedModel
from services.runtime.security.identity import current_allowance, current_namespace
from services.runtime.serving.convert import describe_model, describe_policies, describe_versions
from services.runtime.serving.reader_limit import ReaderLimit
from services.runtime.serving.wire_watch import WireWatch


class PrefillServicer(prefill_pb2_grpc.PrefillServiceServicer):
    """Implements headwise.v1.PrefillService on the event loop."""

    def __init__(self, served: ServedModel, parts: PrefillParts, options: PrefillOptions) -> None:
        self._served = served
        self._parts = parts
        self._options = options
        self._codecs = allowed_codecs(options.model.codecs)

    async def Prefill(  # noqa: N802
        self,
        request: prefill_pb2.PrefillRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        job = parse_job(
            request,
            self._served,
            default_policy=self._options.default_policy,
            max_prompt_tokens=self._parts.max_prompt_tokens,
            codecs=self._codecs,
        )
        current_allowance().take_prompt(len(job.token_ids))
        store, namespace = self._parts.store, current_namespace()
        seconds = store.checked_seconds(request.keep_for_seconds)
        opened = self._parts.caches.open(job, namespace, context.time_remaining())
        async with opened as (key, shared, subscriber):

            async def keep(cache: CompactCache) -> prefill_pb2.KeptCache:
                try:
                    with new_lease(store, namespace), stored_bytes(store, namespace, cache.nbytes):
                        return kept_to_proto(await store.keep(key, cache, seconds), store)
                except Overloaded as error:
                    # the refusal is part of the answer: the receiver gets the cache in any case
                    return prefill_pb2.KeptCache(refusal=error.reason.lower())

            reader = ReaderLimit(context, self._options.server.reader_stall_seconds)
            subscriber.on_failure = reader.end
            stream = prefill_messages(shared, subscriber, keep if seconds else None)
            async with contextlib.aclosing(stream) as messages:
                watch = WireWatch("sent")
                async for response in messages:
                    watch.begin()
                    await reader.write(response)
                    # only frames count as bytes of the cache
                    watch.moved(response.ByteSize() if response.HasField("frame") else 0)

    async def Describe(  # noqa: N802
        self,
        request: prefill_pb2.PrefillServiceDescribeRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> prefill_pb2.PrefillServiceDescribeResponse:
        return prefill_pb2.PrefillServiceDescribeResponse(
            model=describe_model(self._served),
            policies=describe_policies(),
            default_policy=self._options.default_policy,
            limits=prefill_pb2.PrefillLimits(
                max_prompt_tokens=self._parts.max_prompt_tokens,
                max_queued_requests=self._options.max_queued,
                max_keep_seconds=self._parts.store.max_keep_seconds,
                codecs=self._codecs,
            ),
            versions=describe_versions(),
        )
