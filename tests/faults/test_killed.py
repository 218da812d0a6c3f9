"""A process that is killed, or told to end: what its peers and their callers see."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from headwise import Unavailable
from headwise.v1 import prefill_pb2, prefill_pb2_grpc
from services.demo.processes import Service
from services.runtime.serving.frames import assemble_cache
from tests.faults.asking import Asking, prompt_of
from tests.faults.conftest import DECODE_ARGUMENTS, PREFILL_ARGUMENTS
from tests.faults.fragile import FragilePair
from tests.faults.phases import (
    CHUNK,
    PROMPT_TOKENS,
    Phase,
    clean_after,
    reach,
    serving,
)

pytestmark = pytest.mark.processes

# a killed process closes its sockets at once
NOTICED_SECONDS = 2.0

_STATUS = health_pb2.HealthCheckResponse


@pytest.fixture(scope="module")
def fragile(slow_model: Path) -> Iterator[FragilePair]:
    with FragilePair(str(slow_model), PREFILL_ARGUMENTS, DECODE_ARGUMENTS) as fragile:
        yield fragile


def test_prefill_killed_after_its_trailer_is_not_missed(fragile: FragilePair) -> None:
    prefill, decode = fragile.pair()
    with Asking(decode.target, prompt_of(CHUNK), max_tokens=60) as asking:
        reach((prefill, decode), Phase.DECODE)
        prefill.process.kill()
        made = len(asking.tokens)
        asking.ended(60)
    assert made < len(asking.tokens) == 60
    assert asking.error is None


def test_prefill_killed_before_its_trailer_is_unavailable_until_it_is_back(
    fragile: FragilePair,
) -> None:
    prefill, decode = fragile.pair()
    # a prefill that was started again is found within a second, by who tries again
    require_answer(decode, prompt_tokens=9)
    with Asking(decode.target, prompt_of(PROMPT_TOKENS[Phase.TRANSFER])) as asking:
        reach((prefill, decode), Phase.TRANSFER)
        prefill.process.kill()
        clean_after(decode, within_seconds=NOTICED_SECONDS)
        asking.ended(NOTICED_SECONDS)
    with Asking(decode.target, prompt_of(9)) as another:
        another.ended(NOTICED_SECONDS)
    for refused in (asking, another):
        assert isinstance(refused.error, Unavailable)
        assert refused.error.reason == "PREFILL_UNAVAILABLE"
        # a client of decode is not told the address of prefill
        assert refused.error.message == "prefill is unavailable"
    assert serving(decode)
    # an answer that needs no prefill is not touched by all this
    require_answer(decode, prompt_tokens=1)
    assert fragile.prefill.port == prefill.port
    require_answer(decode, prompt_tokens=50)


def test_decode_killed_is_unavailable_and_prefill_stops_computing(fragile: FragilePair) -> None:
    prefill, decode = fragile.pair()
    require_answer(decode, prompt_tokens=9)
    with Asking(decode.target, prompt_of(PROMPT_TOKENS[Phase.PREFILL])) as asking:
        reach((prefill, decode), Phase.PREFILL)
        decode.process.kill()
        clean_after(prefill, within_seconds=NOTICED_SECONDS)
        asking.ended(NOTICED_SECONDS)
    assert isinstance(asking.error, Unavailable)
    assert serving(prefill)
    require_answer(fragile.decode, prompt_tokens=50)


def test_decode_told_to_end_finishes_its_answers(fragile: FragilePair) -> None:
    decode = fragile.decode
    with watched_health(decode) as seen:
        with Asking(decode.target, [5], max_tokens=60) as asking:
            reach(fragile.pair(), Phase.DECODE)
            decode.process.terminate()
            asking.ended(60)
        # the watch is still open, and does not hold the process
        assert decode.process.wait(10) == 0
    assert len(asking.tokens) == 60
    assert seen == [_STATUS.SERVING, _STATUS.NOT_SERVING]


def test_prefill_told_to_end_finishes_its_caches(fragile: FragilePair) -> None:
    prefill = fragile.prefill
    with watched_health(prefill) as seen, grpc.insecure_channel(prefill.target) as channel:
        stub = prefill_pb2_grpc.PrefillServiceStub(channel)
        stream = stub.Prefill(prefill_pb2.PrefillRequest(token_ids=prompt_of(CHUNK)))
        header = next(stream)
        prefill.process.terminate()
        cache = assemble_cache([header, *stream])
        assert prefill.process.wait(10) == 0
    assert cache.next_position == CHUNK
    assert seen == [_STATUS.SERVING, _STATUS.NOT_SERVING]


def require_answer(decode: Service, prompt_tokens: int) -> None:
    with Asking(decode.target, prompt_of(prompt_tokens), max_tokens=3, retries=True) as asking:
        asking.ended(20)
    assert asking.error is None
    assert len(asking.tokens) == 3


@contextlib.contextmanager
def watched_health(service: Service) -> Iterator[list[int]]:
    """The states that a watch of the health service has been told so far."""
    seen: list[int] = []
    first = threading.Event()

    def follow() -> None:
        with contextlib.suppress(grpc.RpcError):
            for answer in watch:
                seen.append(answer.status)
                first.set()

    with grpc.insecure_channel(service.target) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        thread = threading.Thread(target=follow)
        thread.start()
        assert first.wait(10)
        yield seen
        watch.cancel()
        thread.join()
