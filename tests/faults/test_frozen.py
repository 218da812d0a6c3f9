"""A peer that is stopped, not dead: its sockets stay open, and only pings tell.

Each is noticed within 15 s, the other side lets go of everything and serves on; what resumes finds
its calls gone and serves on too.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from headwise import Unavailable
from services.demo.processes import Service
from tests.conftest import Pair
from tests.faults.asking import Asking, client_process, prompt_of
from tests.faults.phases import (
    CHUNK,
    LONG_ANSWER,
    PROMPT_TOKENS,
    Phase,
    clean_after,
    leftovers,
    reach,
    serving,
)
from tests.observe import scrape, wait_until

pytestmark = pytest.mark.processes

NOTICED_SECONDS = 15.0
# two chunks, so that more is left to send than buffers and windows on the way can hold
TWO_CHUNKS = 2 * CHUNK
# keys and values of two heads of 16 float32
LAYER_BYTES = TWO_CHUNKS * 2 * 2 * 16 * 4

Report = Callable[[str, object], None]


@contextlib.contextmanager
def frozen(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """The process stands still while the block runs."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def test_prefill_and_a_client_freeze_at_once(slow_pair: Pair, record_property: Report) -> None:
    prefill, decode = slow_pair
    with client_process(decode.target, PROMPT_TOKENS[Phase.DECODE], LONG_ANSWER) as client:
        assert client.stdout is not None
        client.stdout.readline()
        arrived = received_bytes(decode)
        with Asking(decode.target, prompt_of(TWO_CHUNKS), max_tokens=2) as asking:
            wait_until(lambda: received_bytes(decode) > arrived + LAYER_BYTES, 30, "some layers")
            held = leftovers(prefill)
            assert "headwise_prefill_computing" in held or "headwise_prefill_unread_bytes" in held
            with frozen(prefill.process), frozen(client):
                began = time.monotonic()
                asking.ended(NOTICED_SECONDS + 60)
                record_property("prefill_noticed_seconds", time.monotonic() - began)
                clean_after(decode, within_seconds=NOTICED_SECONDS)
                record_property("both_noticed_seconds", time.monotonic() - began)
                assert time.monotonic() - began < NOTICED_SECONDS
                assert serving(decode)
                require_unavailable(asking)
                # the kernel of the frozen process accepts connections, but no one answers there
                with Asking(decode.target, prompt_of(9)) as another:
                    record_property("refused_seconds", another.ended(NOTICED_SECONDS))
                require_unavailable(another)
        clean_after(prefill, decode, within_seconds=5)
        assert client.wait(10) != 0
    require_service(slow_pair)


def test_decode_freezes_while_prefill_waits_to_write(
    slow_pair: Pair, record_property: Report
) -> None:
    prefill, decode = slow_pair
    with Asking(decode.target, prompt_of(TWO_CHUNKS), max_tokens=2) as asking:
        reach(slow_pair, Phase.TRANSFER)
        with frozen(decode.process):
            began = time.monotonic()
            require_blocked_writer(slow_pair)
            clean_after(prefill, within_seconds=NOTICED_SECONDS)
            record_property("prefill_noticed_seconds", time.monotonic() - began)
            asking.ended(NOTICED_SECONDS)
            record_property("client_noticed_seconds", time.monotonic() - began)
            assert time.monotonic() - began < NOTICED_SECONDS
            assert serving(prefill)
            assert isinstance(asking.error, Unavailable)
    clean_after(decode, prefill, within_seconds=5)
    require_service(slow_pair)


def received_bytes(decode: Service) -> float:
    return scrape(decode.metrics_url).get("headwise_wire_bytes_total{direction=received}", 0.0)


def require_blocked_writer(pair: Pair) -> None:
    """Prefill holds a computed cache and sends nothing."""

    def sent() -> float:
        return scrape(pair[0].metrics_url)["headwise_wire_bytes_total{direction=sent}"]

    def stands_still() -> bool:
        before = sent()
        time.sleep(0.5)
        return sent() == before

    wait_until(stands_still, 5, "the writer to be blocked")
    holds_a_cache = lambda: "headwise_prefill_unread_bytes" in leftovers(pair[0])  # noqa: E731
    wait_until(holds_a_cache, 5, "the whole cache")


def require_unavailable(asking: Asking) -> None:
    assert isinstance(asking.error, Unavailable)
    assert asking.error.reason == "PREFILL_UNAVAILABLE"


def require_service(pair: Pair) -> None:
    """The pair serves a whole request again, at the first attempt or at gRPC's own second."""
    with Asking(pair[1].target, prompt_of(50), max_tokens=3, retries=True) as asking:
        asking.ended(20)
    assert asking.error is None
    assert len(asking.tokens) == 3
    assert serving(pair[0])
    assert serving(pair[1])
