"""The threads that compute prompts, one at a time."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from headwise.tracing import annotate, span
from headwise.v1 import prefill_pb2
from kvstore.cache import RaggedLayer
from services.prefill.calibration.calibrations import Calibrations
from services.prefill.compute.prefiller import Prefiller, PrefillStopped
from services.prefill.compute.shipping import Shipping
from services.prefill.job import PrefillJob
from services.runtime.model.served_model import ServedModel
from services.runtime.process import metrics

_STAGES = ("prefill", "profile", "compact", "ship")
_Emit = Callable[[RaggedLayer], None]


class Computation:
    """Computes each prompt in a thread; the caller lets one of them compute at a time."""

    def __init__(
        self, served: ServedModel, calibrations: Calibrations, *, chunk_tokens: int
    ) -> None:
        self._served = served
        self._calibrations = calibrations
        self._chunk_tokens = chunk_tokens
        self._executor = ThreadPoolExecutor(thread_name_prefix="prefill")

    async def run(
        self,
        job: PrefillJob,
        queue_seconds: float,
        *,
        emit: _Emit,
        progress: Callable[[int], None],
        stop: threading.Event,
    ) -> prefill_pb2.PrefillReport | None:
        """Compute the prompt; return the report, or None if `stop` was set before the end.

        `emit` receives the layers in order, in host memory, and `progress` the number of computed
        tokens, both in the computing thread; `progress` may wait there, and that time counts for no
        stage. A cancelled call sets `stop` and returns once the thread has ended, within one layer.
        """
        run = contextvars.copy_context().run
        work = asyncio.get_running_loop().run_in_executor(
            self._executor, run, self._compute, job, queue_seconds, emit, progress, stop
        )
        try:
            # awaiting `work` itself would cancel the future while its thread still runs
            await asyncio.wait((work,))
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait((work,))
            work.exception()
            raise
        seconds = work.result()
        return None if seconds is None else _report(seconds, queue_seconds)

    def _compute(
        self,
        job: PrefillJob,
        queue_seconds: float,
        emit: _Emit,
        progress: Callable[[int], None],
        stop: threading.Event,
    ) -> dict[str, float] | None:
        """Compute in this thread; return the seconds by stage, or None if it was stopped."""
        shipping = Shipping(emit)
        try:
            prefiller = Prefiller(
                self._served,
                job.token_ids,
                job.policy,
                chunk_tokens=self._chunk_tokens,
                emit=lambda _, layer: shipping.add(layer),
                progress=progress,
                stop=stop,
                calibration=self._calibrations.needed_by(job.policy),
                codec=job.codec,
            )
            tokens = len(job.token_ids)
            with span("compute", prompt_tokens=tokens, queue_seconds=queue_seconds):
                with shipping:
                    prefiller.run()
                seconds = {f"{stage}_seconds": prefiller.clock.seconds(stage) for stage in _STAGES}
                annotate({f"headwise.{name}": value for name, value in seconds.items()})
        except PrefillStopped:
            return None
        metrics.PROMPT_TOKENS.inc(tokens)
        return seconds


def _report(seconds: dict[str, float], queue_seconds: float) -> prefill_pb2.PrefillReport:
    for stage in _STAGES:
        metrics.STAGE_SECONDS.labels(stage).observe(seconds[f"{stage}_seconds"])
    metrics.STAGE_SECONDS.labels("queue").observe(queue_seconds)
    report = prefill_pb2.PrefillReport(queue_seconds=queue_seconds)
    for name, value in seconds.items():
        setattr(report, name, value)
    return report
