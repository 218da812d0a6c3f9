"""Computes one context in a thread, layer by layer into its flight."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from headwise.tracing import annotate, span
from headwise.v1 import prefill_pb2
from kvstore.cache import RaggedLayer
from services.prefill.calibration.calibrations import Calibrations
from services.prefill.compute.prefiller import Prefiller
from services.prefill.compute.stopped import PrefillStopped
from services.prefill.job import PrefillJob
from services.prefill.sharing.shared_prefill import Flight
from services.runtime.model.served_model import ServedModel
from services.runtime.process import metrics

_STAGES = ("prefill", "profile", "compact", "ship")


class Computation:
    """One thread computes; its caller takes turns."""

    def __init__(
        self, served: ServedModel, calibrations: Calibrations, *, chunk_tokens: int
    ) -> None:
        self._served = served
        self._calibrations = calibrations
        self._chunk_tokens = chunk_tokens
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="prefill")

    async def run(self, job: PrefillJob, flight: Flight, queue_seconds: float) -> None:
        """Fill the flight. Cancelled, it ends when the thread has, within one layer."""
        run = contextvars.copy_context().run
        work = asyncio.get_running_loop().run_in_executor(
            self._executor, run, self._compute, job, flight, queue_seconds
        )
        try:
            # a plain await would let a cancellation take the result away from the thread
            await asyncio.wait((work,))
        except asyncio.CancelledError:
            flight.stop()
            await asyncio.wait((work,))
            work.exception()
            raise
        seconds = work.result()
        if seconds is not None:
            flight.finish(_report(seconds, queue_seconds))

    def _compute(
        self, job: PrefillJob, flight: Flight, queue_seconds: float
    ) -> dict[str, float] | None:
        """In the computing thread; seconds by stage, or None if it was stopped."""

        def emit(index: int, layer: RaggedLayer) -> None:
            flight.publish(_in_host_memory(layer))

        try:
            prefiller = Prefiller(
                self._served,
                job.token_ids,
                job.policy,
                chunk_tokens=self._chunk_tokens,
                emit=emit,
                progress=flight.progress,
                stop=flight.stopped,
                calibration=self._calibrations.needed_by(job.policy),
                codec=job.codec,
            )
            tokens = len(job.token_ids)
            with span("compute", prompt_tokens=tokens, queue_seconds=queue_seconds):
                prefiller.run()
                seconds = {f"{stage}_seconds": prefiller.clock.seconds(stage) for stage in _STAGES}
                annotate({f"headwise.{name}": value for name, value in seconds.items()})
        except PrefillStopped:
            return None
        metrics.PROMPT_TOKENS.inc(tokens)
        return seconds


def _in_host_memory(layer: RaggedLayer) -> RaggedLayer:
    """The layer as readers and stores take it; copied only where it is on a device."""
    if layer.keys.device.type == "cpu":
        return layer
    tensors: dict[str, Any] = {
        field.name: value.cpu()
        for field in dataclasses.fields(layer)
        if isinstance(value := getattr(layer, field.name), torch.Tensor)
    }
    return dataclasses.replace(layer, **tensors)


def _report(seconds: dict[str, float], queue_seconds: float) -> prefill_pb2.PrefillReport:
    for stage in _STAGES:
        metrics.STAGE_SECONDS.labels(stage).observe(seconds[f"{stage}_seconds"])
    metrics.STAGE_SECONDS.labels("queue").observe(queue_seconds)
    report = prefill_pb2.PrefillReport(queue_seconds=queue_seconds)
    for name, value in seconds.items():
        setattr(report, name, value)
    return report
