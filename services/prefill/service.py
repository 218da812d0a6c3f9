"""The servicer: check, take a turn, compute in a thread, write what comes out."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from headwise.tracing import annotate, span
from headwise.v1 import prefill_pb2, prefill_pb2_grpc
from kvstore.cache import RaggedLayer
from kvstore.policies import known_policies
from kvstore.wire import CacheEncoder, Frame
from services.prefill.calibration.calibrations import Calibrations
from services.prefill.job import PrefillJob, parse_job
from services.prefill.options import PrefillOptions
from services.prefill.outbox import Outbox
from services.prefill.prefiller import Prefiller
from services.prefill.stopped import PrefillStopped
from services.prefill.turns import Turns
from services.runtime import metrics
from services.runtime.convert import (
    allowed_codecs,
    describe_model,
    describe_policies,
    describe_versions,
    frame_to_proto,
)
from services.runtime.identity import current_allowance
from services.runtime.model import ServedModel
from services.runtime.wire_watch import WireWatch

_STAGES = ("prefill", "profile", "compact", "ship")


class PrefillServicer(prefill_pb2_grpc.PrefillServiceServicer):
    """Implements headwise.v1.PrefillService on the event loop; one thread computes."""

    def __init__(self, served: ServedModel, options: PrefillOptions) -> None:
        self._served = served
        self._options = options
        self._codecs = allowed_codecs(options.model.codecs)
        self._calibrations = Calibrations(served, options.model.model_cache.expanduser())
        self._max_prompt_tokens = min(
            options.max_prompt_tokens or served.context_tokens, served.context_tokens
        )
        self._turns = Turns(options.max_queued_requests)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="prefill")

    async def Prefill(  # noqa: N802
        self,
        request: prefill_pb2.PrefillRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        job = parse_job(
            request,
            self._served,
            default_policy=self._options.default_policy,
            max_prompt_tokens=self._max_prompt_tokens,
            codecs=self._codecs,
        )
        current_allowance().take_prompt(len(job.token_ids))
        async with self._turns.turn() as queue_seconds:
            await self._stream(job, queue_seconds, context)

    async def _stream(
        self,
        job: PrefillJob,
        queue_seconds: float,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        outbox = Outbox(self._options.outbox_bytes)
        run = contextvars.copy_context().run
        work = asyncio.get_running_loop().run_in_executor(
            self._executor, run, self._compute, job, outbox, queue_seconds
        )
        try:
            async with contextlib.aclosing(outbox.messages()) as messages:
                watch = WireWatch("sent")
                async for response in messages:
                    watch.begin()
                    await context.write(response)
                    # reports of progress are no part of the cache
                    watch.moved(response.ByteSize() if response.HasField("frame") else 0)
            await work
        finally:
            # the turn ends only when the thread has: nothing computes for a caller who left
            outbox.stop()
            await asyncio.wait([work])
            work.exception()

    def _compute(self, job: PrefillJob, outbox: Outbox, queue_seconds: float) -> None:
        """In the computing thread: everything from the header to the trailer."""
        encoder = CacheEncoder(job.header(self._served))

        def send(frame: Frame) -> None:
            outbox.put(prefill_pb2.PrefillResponse(frame=frame_to_proto(frame)))

        def emit(index: int, layer: RaggedLayer) -> None:
            for frame in encoder.layer(index, layer):
                send(frame)

        def progress(done: int) -> None:
            report = prefill_pb2.PrefillProgress(tokens_done=done, tokens_total=total)
            outbox.put(prefill_pb2.PrefillResponse(progress=report))

        total = len(job.token_ids)
        try:
            prefiller = Prefiller(
                self._served,
                job.token_ids,
                job.policy,
                chunk_tokens=self._options.chunk_tokens,
                emit=emit,
                progress=progress,
                stop=outbox.stopped,
                calibration=self._calibrations.needed_by(job.policy),
                codec=job.codec,
            )
            send(encoder.header())
            with span("compute", prompt_tokens=total, queue_seconds=queue_seconds):
                prefiller.run()
                report = _report(prefiller, queue_seconds)
            outbox.put(report)
            send(encoder.trailer())
            metrics.PROMPT_TOKENS.inc(total)
        except PrefillStopped:
            pass
        finally:
            outbox.close()

    async def Describe(  # noqa: N802
        self,
        request: prefill_pb2.PrefillServiceDescribeRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> prefill_pb2.PrefillServiceDescribeResponse:
        return prefill_pb2.PrefillServiceDescribeResponse(
            model=describe_model(self._served),
            policies=describe_policies(known_policies()),
            default_policy=self._options.default_policy,
            limits=prefill_pb2.PrefillLimits(
                max_prompt_tokens=self._max_prompt_tokens,
                max_queued_requests=self._options.max_queued_requests,
                codecs=self._codecs,
            ),
            versions=describe_versions(),
        )


def _report(prefiller: Prefiller, queue_seconds: float) -> prefill_pb2.PrefillResponse:
    seconds = {f"{stage}_seconds": prefiller.clock.seconds(stage) for stage in _STAGES}
    for stage in _STAGES:
        metrics.STAGE_SECONDS.labels(stage).observe(seconds[f"{stage}_seconds"])
    metrics.STAGE_SECONDS.labels("queue").observe(queue_seconds)
    annotate({f"headwise.{stage}_seconds": seconds[f"{stage}_seconds"] for stage in _STAGES})
    report = prefill_pb2.PrefillReport(queue_seconds=queue_seconds, **seconds)
    return prefill_pb2.PrefillResponse(report=report)
