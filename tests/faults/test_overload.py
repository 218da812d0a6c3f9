"""More than there is room for is refused with a time to come again; the rest is not touched."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from headwise import Overloaded
from services.demo.processes import Service
from tests.conftest import Pair
from tests.faults.asking import Asking, prompt_of
from tests.faults.phases import LONG_ANSWER, LONG_PROMPT, Phase, clean_after, reach
from tests.observe import scrape, wait_until

pytestmark = pytest.mark.processes

ANSWER_TOKENS = 100


@pytest.fixture
def full_pair(slow_pair: Pair) -> Iterator[Pair]:
    """Prefill computes one prompt and lets one wait, as many as it may; two answers run as well."""
    yield slow_pair
    clean_after(*reversed(slow_pair), within_seconds=2.0)


def test_every_limit_refuses_and_spares_the_others(full_pair: Pair) -> None:
    prefill, decode = full_pair
    alone = answer_of(decode)
    with contextlib.ExitStack() as stack:

        def start(tokens: int, **options: Any) -> Asking:
            return stack.enter_context(Asking(decode.target, prompt_of(tokens), **options))

        spared = start(40, max_tokens=ANSWER_TOKENS)
        fourth = start(1, max_tokens=LONG_ANSWER)
        wait_until(lambda: bool(spared.tokens and fourth.tokens), 20, "two answers")
        start(LONG_PROMPT)
        wait_until(lambda: gauge(prefill, "headwise_prefill_computing") == 1, 10, "a computation")
        # another prompt: an equal one would share the computation
        start(LONG_PROMPT - 1)
        wait_until(lambda: gauge(prefill, "headwise_prefill_queued") == 1, 10, "a queue")

        require_refused(decode, 2, "DECODE_FULL")
        fourth.cancel()
        wait_until(lambda: gauge(decode, "headwise_sequences") == 3, 2, "room for one")
        require_refused(decode, 2, "QUEUE_FULL")
        require_refused(decode, LONG_PROMPT, "DECODE_FULL")

        spared.ended(60)
        assert spared.error is None
        assert spared.tokens == alone
        # neither of the refused took the place of those who wait
        assert gauge(prefill, "headwise_prefill_computing") == 1
        assert gauge(prefill, "headwise_prefill_queued") == 1


def test_a_prompt_cancelled_in_the_queue_is_not_computed(full_pair: Pair) -> None:
    prefill, decode = full_pair
    with Asking(decode.target, prompt_of(LONG_PROMPT)) as first:
        reach(full_pair, Phase.PREFILL)
        with Asking(decode.target, prompt_of(LONG_PROMPT - 1)) as second:
            wait_until(lambda: gauge(prefill, "headwise_prefill_queued") == 1, 10, "a queue")
            second.cancel()
            wait_until(lambda: gauge(prefill, "headwise_prefill_queued") == 0, 1, "no queue")
        assert gauge(prefill, "headwise_prefill_computing") == 1
        assert gauge(decode, "headwise_sequences") == 1
        assert first.error is None


def answer_of(decode: Service) -> list[int]:
    with Asking(decode.target, prompt_of(40), max_tokens=ANSWER_TOKENS) as asking:
        asking.ended(60)
    assert asking.error is None
    return asking.tokens


def require_refused(decode: Service, prompt_tokens: int, reason: str) -> None:
    with Asking(decode.target, prompt_of(prompt_tokens), max_tokens=2, retries=True) as asking:
        asking.ended(5)
    error = asking.error
    assert isinstance(error, Overloaded)
    assert error.reason == reason
    assert error.retry_after_seconds is not None
    assert error.retry_after_seconds > 0


def gauge(service: Service, name: str) -> float:
    return scrape(service.metrics_url)[name]
