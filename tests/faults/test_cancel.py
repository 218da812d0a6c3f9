"""A client or service that goes away in any phase leaves nothing of the request behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from headwise import Cancelled, DeadlineExceeded
from tests.conftest import Pair
from tests.faults.asking import Asking, client_process, prompt_of
from tests.faults.phases import (
    LONG_ANSWER,
    PROMPT_TOKENS,
    Phase,
    PhaseWatch,
    clean_after,
    reach,
)
from tests.observe import scrape

pytestmark = pytest.mark.processes

PHASES = (Phase.PREFILL, Phase.TRANSFER, Phase.DECODE)
# what is promised, a layer of the slow model included (.05 s)
CLEAN_SECONDS = 1.0

Report = Callable[[str, object], None]


@pytest.fixture
def cancelled_calls(slow_pair: Pair) -> Callable[[], float]:
    """Count the Generate calls that were cancelled since the test began."""

    def count() -> float:
        samples = scrape(slow_pair[1].metrics_url)
        return samples.get("headwise_requests_total{code=CANCELLED,method=Generate}", 0.0)

    before = count()
    return lambda: count() - before


@pytest.mark.parametrize("phase", PHASES)
def test_a_cancelled_call_leaves_nothing(
    slow_pair: Pair,
    phase: Phase,
    cancelled_calls: Callable[[], float],
    record_property: Report,
) -> None:
    prefill, decode = slow_pair
    prompt = prompt_of(PROMPT_TOKENS[phase])
    with Asking(decode.target, prompt, max_tokens=LONG_ANSWER) as asking:
        reach(slow_pair, phase)
        asking.cancel()
        seconds = clean_after(decode, prefill, within_seconds=CLEAN_SECONDS)
        asking.ended(CLEAN_SECONDS)
    record_property("clean_seconds", seconds)
    assert isinstance(asking.error, Cancelled)
    assert cancelled_calls() == 1


@pytest.mark.parametrize("phase", PHASES)
def test_a_killed_client_leaves_nothing(
    slow_pair: Pair,
    phase: Phase,
    cancelled_calls: Callable[[], float],
    record_property: Report,
) -> None:
    prefill, decode = slow_pair
    with client_process(decode.target, PROMPT_TOKENS[phase], LONG_ANSWER) as client:
        reach(slow_pair, phase)
        client.kill()
        seconds = clean_after(decode, prefill, within_seconds=CLEAN_SECONDS)
    record_property("clean_seconds", seconds)
    assert cancelled_calls() == 1


@pytest.mark.parametrize(("phase", "timeout_seconds"), [(Phase.PREFILL, 1.0), (Phase.DECODE, 2.0)])
def test_a_deadline_that_runs_out_leaves_nothing(
    slow_pair: Pair, phase: Phase, timeout_seconds: float, record_property: Report
) -> None:
    last, seconds = run_out(slow_pair, PROMPT_TOKENS[phase], timeout_seconds)
    record_property("clean_seconds", seconds)
    assert last is phase


def test_a_deadline_that_runs_out_in_transfer_leaves_nothing(
    slow_pair: Pair, record_property: Report
) -> None:
    tokens = PROMPT_TOKENS[Phase.TRANSFER]
    last = Phase.NOTHING
    # the layers of a prompt of one chunk leave one by one: half of its time is amid the transfer,
    # unless the machine was busy with something else
    for _ in range(5):
        with Asking(slow_pair[1].target, prompt_of(tokens), max_tokens=1) as asking:
            asking.ended(60)
        assert asking.result is not None
        halfway = asking.result.timings.first_token_seconds / 2
        last, seconds = run_out(slow_pair, tokens, halfway)
        if last is Phase.TRANSFER:
            break
    record_property("clean_seconds", seconds)
    assert last is Phase.TRANSFER


def run_out(pair: Pair, prompt_tokens: int, timeout_seconds: float) -> tuple[Phase, float]:
    """Ask with a deadline; the phase it ran out in, and the seconds until all was clean."""
    prefill, decode = pair
    options = {"max_tokens": LONG_ANSWER, "timeout_seconds": timeout_seconds}
    with (
        PhaseWatch(pair) as watch,
        Asking(decode.target, prompt_of(prompt_tokens), **options) as asking,
    ):
        asking.ended(timeout_seconds + CLEAN_SECONDS)
        seconds = clean_after(decode, prefill, within_seconds=CLEAN_SECONDS)
    assert isinstance(asking.error, DeadlineExceeded)
    return watch.last, seconds
