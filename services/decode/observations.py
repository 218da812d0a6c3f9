"""Metrics of calls to prefill, of arrived caches and of tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import grpc

from kvstore.pool import SequencePages
from services.decode.report import Clock, TransferReport
from services.runtime.process import metrics
from services.runtime.serving.status import to_headwise_error


@contextlib.contextmanager
def watched_call(target: str) -> Iterator[None]:
    """Record whether the call to prefill within the block reached it.

    A call that passed its deadline or was cancelled leaves the record as it was.
    """
    reachable = metrics.PREFILL_REACHABLE.labels(target)
    try:
        yield
    except Exception as error:
        code = to_headwise_error(error).code
        if code is not grpc.StatusCode.DEADLINE_EXCEEDED:
            reachable.set(code is not grpc.StatusCode.UNAVAILABLE)
        raise
    reachable.set(1)


@contextlib.contextmanager
def watched_transfer(target: str) -> Iterator[None]:
    """Count the transfer of a cache within the block by the status that it ends with."""
    outcome = "CANCELLED"
    try:
        with watched_call(target):
            yield
        outcome = "OK"
    except Exception as error:
        outcome = to_headwise_error(error).code.name
        raise
    finally:
        metrics.TRANSFERS.labels(outcome).inc()


def observe_cache(report: TransferReport, pages: SequencePages) -> None:
    """Record a cache that has arrived in `pages`, before any token is fed to it."""
    for head in report.heads:
        by_layer = f"{head.layer:02d}", head.head_class
        metrics.HEADS_RECEIVED.labels(head.head_class).inc()
        metrics.ROWS_RECEIVED.labels(*by_layer).inc(head.rows)
        shape = pages.shapes[head.layer]
        dense = shape.dense_rows(pages.length) // shape.kv_heads
        metrics.DENSE_ROWS_RECEIVED.labels(*by_layer).inc(dense)
    metrics.WIRE_DENSE_EQUIVALENT_BYTES.inc(pages.dense_bytes)
    if report.profiled:
        metrics.RECOVERED_MASS.observe(report.recovered_mass)
    metrics.STAGE_SECONDS.labels("receive").observe(report.receive_seconds)


def observe_token(clock: Clock, answer: int) -> None:
    """Record a token of one of a request's answers."""
    first, since = clock.token(answer)
    if first:
        metrics.TIME_TO_FIRST_TOKEN.observe(clock.first_token_seconds)
    elif since is not None:
        metrics.TIME_PER_OUTPUT_TOKEN.observe(since)
