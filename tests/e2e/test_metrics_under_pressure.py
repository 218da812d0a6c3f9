"""A pool too small for all that is asked of it: what waits, and why, is what its callers see."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from headwise import Client, Policy
from headwise.v1 import prefill_pb2, prefill_pb2_grpc
from services.demo.processes import Service
from tests.conftest import Pair, running_pair
from tests.faults.asking import Asking, prompt_of
from tests.observe import scrape, wait_until
from tests.tiny_model import save_tiny_model

pytestmark = pytest.mark.processes

# the least there may be; 8 heads that keep all of 1,000 tokens fill it
_POOL_BYTES, _LAYERS = 1 << 20, 4
_MOST = 5
_PAGE_ROWS, _ROW_BYTES, _HEADS = 16, 2 * 16 * 4, 2 * _LAYERS


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    model = save_tiny_model(tmp_path_factory.mktemp("model"), layers=_LAYERS)
    limits = ("--pool-bytes", f"{_POOL_BYTES}", "--max-sequences", f"{_MOST}")
    with running_pair(str(model), (), (*limits, "--reservation-timeout-seconds", "60")) as pair:
        yield pair


@pytest.fixture
def decode(pair: Pair) -> Iterator[Service]:
    """The decode service, empty at the begin and at the end of a test."""
    yield pair[1]
    wait_until(lambda: _value(pair[1], "headwise_sequences") == 0, 5, "the end of all")
    told = scrape(pair[1].metrics_url)
    assert told["headwise_running_requests{method=Generate}"] == 0
    assert _pages(told)["free"] == sum(_pages(told).values())
    for name in ("queued_requests", "preempted_sequences", "pool_rows"):
        assert told[f"headwise_{name}"] == 0
    assert told["headwise_kv_resident_bytes{tier=host}"] == 0


def _value(decode: Service, name: str) -> float:
    return scrape(decode.metrics_url)[name]


def _pages(told: dict[str, float]) -> dict[str, float]:
    states = ("used", "reserved", "free")
    return {state: told[f"headwise_pool_pages{{state={state}}}"] for state in states}


def _waiting(asked: Sequence[Asking]) -> int:
    """Callers who have been given nothing yet."""
    return sum(not one.tokens for one in asked)


def _wait_for_tokens(*asked: Asking) -> None:
    wait_until(lambda: all(one.tokens or one.error for one in asked), 60, "the first tokens")
    assert not [one.error for one in asked if one.error]


def test_waiting_prompts_are_counted(decode: Service) -> None:
    # does not grow: that the pool is full is another matter
    policy = Policy("streaming_llm", {"budget": "64 rows"})
    with contextlib.ExitStack() as stack:
        asked = [
            stack.enter_context(
                Asking(decode.target, prompt_of(70 + n), policy=policy, max_tokens=800)
            )
            for n in range(_MOST)
        ]
        _wait_for_tokens(*asked)
        later = [
            stack.enter_context(Asking(decode.target, prompt_of(40 + n), max_tokens=2))
            for n in range(2)
        ]
        wait_until(lambda: _value(decode, "headwise_queued_requests") == len(later), 5, "the line")
        told = scrape(decode.metrics_url)
        assert _waiting([*asked, *later]) == len(later)
        assert told["headwise_sequences"] == _MOST
        assert told["headwise_running_requests{method=Generate}"] == len(asked) + len(later)
        later[0].cancel()
        wait_until(lambda: _value(decode, "headwise_queued_requests") == 1, 5, "a shorter line")
        asked[0].cancel()
        later[1].ended(20)
        assert len(later[1].tokens) == 2
        assert _value(decode, "headwise_queued_requests") == 0


def test_preempted_sequences_are_counted(decode: Service) -> None:
    """The pool holds one of three answers in the end, and then the two others again."""
    before = scrape(decode.metrics_url)
    per_head = sum(_pages(before).values()) // _HEADS
    # tokens a head may hold when there are two or three: each answer goes beyond one of these
    two, three = (int(per_head // n) * _PAGE_ROWS for n in (2, 3))
    first, second, third = two + 200, two + 40, three + 20
    # so long that the pool is soon full
    shortest = three - 30
    with contextlib.ExitStack() as stack:
        asked: list[Asking] = []
        for n, tokens in enumerate((first, second, third)):
            prompt = prompt_of(shortest + n)
            asking = Asking(decode.target, prompt, max_tokens=tokens - len(prompt))
            asked.append(stack.enter_context(asking))
            _wait_for_tokens(*asked)
        wait_until(lambda: _value(decode, "headwise_preempted_sequences") == 2, 60, "two that wait")
        told, had = scrape(decode.metrics_url), [len(one.tokens) for one in asked]
        wait_until(lambda: len(asked[0].tokens) > had[0] + 10, 10, "the oldest to go on")
        stalled = [one for one, tokens in zip(asked, had, strict=True) if len(one.tokens) == tokens]
        assert stalled == asked[1:]
        assert told["headwise_preempted_sequences"] == len(stalled)
        assert told["headwise_sequences"] == len(asked)
        # each row with its position; a token that was told may not be in the cache yet
        most = sum(
            (shortest + n + len(one.tokens)) for n, one in enumerate(asked) if one in stalled
        )
        host = told["headwise_kv_resident_bytes{tier=host}"] / (_HEADS * (_ROW_BYTES + 4))
        assert most - 2 * len(stalled) <= host <= most
        for one, tokens in zip(asked, (first, second, third), strict=True):
            one.ended(60)
            assert one.error is None
            assert one.result is not None
            usage = one.result.usage
            assert usage.prompt_tokens + usage.completion_tokens == tokens
    after = scrape(decode.metrics_url)
    # each of them once: what they all need at the end has room
    made_room = after["headwise_preemptions_total"] - before["headwise_preemptions_total"]
    assert made_room == len(stalled)


def test_an_arriving_cache_that_is_held_up_is_counted(decode: Service) -> None:
    before = scrape(decode.metrics_url)
    total = sum(_pages(before).values())
    for _ in range(20):
        # after long answers the service expects others, and would let less in
        with Asking(decode.target, prompt_of(2), max_tokens=1) as asking:
            asking.ended(20)
    # it learns that caches of this policy are small, compared with their prompts
    small = Policy("streaming_llm", {"budget": "160 rows"})
    with Asking(decode.target, prompt_of(800), policy=small, max_tokens=1) as asking:
        asking.ended(20)
        assert asking.error is None
    # four hold so many rows however long they answer, and leave a quarter of what is needed below
    rows = int((total - 28) // (4 * _HEADS)) * _PAGE_ROWS
    filling = Policy("streaming_llm", {"budget": f"{rows} rows"})
    with contextlib.ExitStack() as stack:
        fillers = list[Asking]()
        for n in range(4):
            prompt = prompt_of(rows + 10 + n)
            filler = Asking(decode.target, prompt, policy=filling, max_tokens=690)
            fillers.append(stack.enter_context(filler))
            _wait_for_tokens(filler)
        free = _pages(scrape(decode.metrics_url))["free"]
        # here all of a prompt is kept: 10 pages a head
        held_up = stack.enter_context(
            Asking(decode.target, prompt_of(160), policy=small, max_tokens=3)
        )
        name = "headwise_claims_waiting_total"
        wait_until(lambda: _value(decode, name) > before[name], 10, "a claim")
        told = scrape(decode.metrics_url)
        assert not held_up.tokens
        assert _pages(told)["free"] <= free < 10 * _HEADS
        assert told["headwise_queued_requests"] == 0
        assert told["headwise_sequences"] == len(fillers) + 1
        for filler in fillers:
            assert filler.error is None
            filler.cancel()
        held_up.ended(20)
        assert len(held_up.tokens) == 3
    assert _value(decode, name) == before[name] + 1


def test_kept_caches_and_what_they_spare_are_counted(pair: Pair) -> None:
    """Two leases on one document, three questions about it, and the end of both leases."""
    prefill, decode = pair
    before = {service.name: scrape(service.metrics_url) for service in pair}
    document = prompt_of(200)

    def more(service: Service, name: str) -> float:
        return scrape(service.metrics_url)[name] - before[service.name].get(name, 0.0)

    with Client(decode.target) as client:
        first, second = (
            client.caches.keep(document, policy="full", ttl_seconds=60) for _ in range(2)
        )
        assert first.key == second.key
        assert more(prefill, "headwise_leases") == 2
        assert more(prefill, "headwise_prefills_reused_total") == 1
        assert more(prefill, "headwise_prompt_tokens_total") == len(document)
        assert more(prefill, "headwise_kv_resident_bytes{tier=store}") == first.cache_bytes
        assert more(prefill, "headwise_store_puts_total{outcome=stored,tier=memory}") == 1
        written = "{direction=written,tier=memory}"
        assert more(prefill, f"headwise_store_bytes_total{written}") == first.cache_bytes
        assert more(prefill, f"headwise_store_seconds_total{written}") > 0
        # there is nothing below memory that could be written later
        assert more(prefill, "headwise_store_dropped_writes_total{tier=memory}") == 0
        for stored in (first, second, first):
            client.generate([5, 9], cache_handle=stored.handle, max_tokens=2).text()
        assert more(decode, "headwise_contexts") == 1
        assert more(decode, "headwise_contexts_shared_total") == 2
        client.caches.release(first.handle)
        assert more(prefill, "headwise_leases") == 1
        client.caches.release(second.handle)
    assert more(prefill, "headwise_leases") == 0
    assert more(prefill, "headwise_leases_ended_total{reason=LEASE_RELEASED}") == 2
    assert more(prefill, "headwise_kv_resident_bytes{tier=store}") == 0
    assert more(decode, "headwise_contexts") == 0
    assert more(decode, "headwise_contexts_gone_total{reason=released}") == 1


def test_equal_requests_at_once_are_counted_as_shared(pair: Pair) -> None:
    """Each of them either computes the prompt or joins who does."""
    prefill, asked, tokens = pair[0], 6, prompt_of(6000)
    before = scrape(prefill.metrics_url)

    def ask(stub: prefill_pb2_grpc.PrefillServiceStub) -> int:
        request = prefill_pb2.PrefillRequest(token_ids=tokens)
        request.policy.name = "full"
        return sum(1 for _ in stub.Prefill(request, timeout=60))

    with grpc.insecure_channel(prefill.target) as channel, ThreadPoolExecutor(asked) as threads:
        stub = prefill_pb2_grpc.PrefillServiceStub(channel)
        assert all(threads.map(ask, [stub] * asked))
    after = scrape(prefill.metrics_url)
    computed, shared, ended = (
        after[name] - before.get(name, 0.0)
        for name in (
            "headwise_prompt_tokens_total",
            "headwise_prefills_shared_total",
            "headwise_requests_total{code=OK,method=Prefill}",
        )
    )
    assert ended == asked
    assert 0 < shared == asked - computed / len(tokens)
