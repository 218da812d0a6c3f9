"""Limits of a tenant: streams, tokens per minute, bytes."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwise import Overloaded
from services.runtime.security import allowance as module
from services.runtime.security.allowance import Allowance, Allowances
from services.runtime.security.tenants_file import TenantLimits


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_one_stream_too_many_is_refused_until_another_ends() -> None:
    allowance = Allowance(TenantLimits(streams=2))
    with contextlib.ExitStack() as running:
        running.enter_context(allowance.stream())
        with allowance.stream():
            with pytest.raises(Overloaded) as caught, allowance.stream():
                pass
            assert caught.value.reason == "TENANT_STREAMS"
            assert caught.value.retry_after_seconds
        running.enter_context(allowance.stream())
    assert allowance.idle


def test_a_refused_prompt_has_the_time_until_the_bucket_suffices() -> None:
    clock = Clock()
    allowance = Allowance(TenantLimits(tokens_per_minute=600), clock)
    allowance.take_prompt(500)
    allowance.take_answer(100)
    with pytest.raises(Overloaded) as caught:
        allowance.take_prompt(50)
    assert caught.value.reason == "TENANT_TOKENS"
    wait = caught.value.retry_after_seconds
    assert wait == pytest.approx(5)
    clock.now += wait
    allowance.take_prompt(50)


def test_a_prompt_above_the_limit_needs_a_full_bucket_and_leaves_a_debt() -> None:
    clock = Clock()
    allowance = Allowance(TenantLimits(tokens_per_minute=60), clock)
    allowance.take_prompt(180)
    clock.now += 120
    with pytest.raises(Overloaded) as caught:
        allowance.take_prompt(1)
    assert caught.value.retry_after_seconds == pytest.approx(1)


@given(st.lists(st.tuples(st.integers(1, 90), st.integers(0, 40), st.floats(0, 20)), max_size=60))
def test_the_tokens_of_any_run_are_bounded_by_bucket_rate_and_one_request(
    requests: list[tuple[int, int, float]],
) -> None:
    clock, used, last = Clock(), 0, 0
    allowance = Allowance(TenantLimits(tokens_per_minute=60), clock)
    for prompt, answer, pause in requests:
        with contextlib.suppress(Overloaded):
            allowance.take_prompt(prompt)
            allowance.take_answer(answer)
            last = prompt + answer
            used += last
        assert used <= 60 + clock.now + last + 1e-6
        clock.now += pause


def test_bytes_of_sessions_and_of_running_calls_count_together() -> None:
    allowance = Allowance(TenantLimits(bytes=100))
    with allowance.hold("bytes", kept=30, more=50):
        with pytest.raises(Overloaded) as caught, allowance.hold("bytes", kept=30, more=21):
            pass
        assert caught.value.reason == "TENANT_BYTES"
        with allowance.hold("bytes", kept=30, more=20):
            pass
    with allowance.hold("bytes", kept=0, more=100):
        pass


def test_limits_follow_the_file_and_use_stays() -> None:
    limits = {"a": TenantLimits(streams=1)}
    allowances = Allowances(lambda tenant: limits.get(tenant, TenantLimits()))
    with allowances.of("a").stream():
        with pytest.raises(Overloaded), allowances.of("a").stream():
            pass
        with allowances.of("b").stream():
            pass
        limits["a"] = dataclasses.replace(limits["a"], streams=2)
        with allowances.of("a").stream():
            pass


def test_tenants_without_use_are_forgotten_and_others_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_MAX_TENANTS", 10)
    allowances = Allowances(lambda tenant: TenantLimits(streams=1))
    with allowances.of("busy").stream():
        for number in range(100):
            allowances.of(str(number))
        assert len(allowances._by_tenant) <= 10
        with pytest.raises(Overloaded), allowances.of("busy").stream():
            pass
