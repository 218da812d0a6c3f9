"""What the handling of a request tells the metrics."""

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
    """A call to prefill: tells whether it could be reached.

    A deadline that passed or a cancellation says nothing about that.
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
    """A call that pulls a cache: counted by the status it ends with."""
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


def observe_cache(received: TransferReport, pages: SequencePages) -> None:
    """A cache has arrived whole in `pages`, and nothing has been fed yet."""
    for head in received.heads:
        by_layer = f"{head.layer:02d}", head.head_class
        metrics.HEADS_RECEIVED.labels(head.head_class).inc()
        metrics.ROWS_RECEIVED.labels(*by_layer).inc(head.rows)
        metrics.DENSE_ROWS_RECEIVED.labels(*by_layer).inc(pages.length)
    metrics.WIRE_DENSE_EQUIVALENT_BYTES.inc(pages.dense_bytes)
    if received.profiled:
        metrics.RECOVERED_MASS.observe(received.recovered_mass)
    metrics.STAGE_SECONDS.labels("receive").observe(received.receive_seconds)


def observe_token(clock: Clock, answer: int) -> None:
    """A token of one of a request's answers is there."""
    first, since = clock.token(answer)
    if first:
        metrics.TIME_TO_FIRST_TOKEN.observe(clock.first_token_seconds)
    elif since is not None:
        metrics.TIME_PER_OUTPUT_TOKEN.observe(since)
