"""Contexts that are kept once and asked about many times, through both processes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from headwise import AsyncClient, Client, InvalidRequest, Message, NotFound, Policy, Sampling
from headwise.v1 import prefill_pb2, prefill_pb2_grpc, store_pb2, store_pb2_grpc
from services.runtime.model.served_model import load_tokenizer
from tests.conftest import Pair, running_pair
from tests.observe import scrape, wait_until

pytestmark = pytest.mark.processes

_TOKENS = 16
_DOCUMENT = [(7 * i * i + 3 * i) % 500 + 2 for i in range(300)]
_QUESTIONS = [[8, 61, 3], [5], [44] * 300, [9, 33, 7, 100, 42]]


@pytest.fixture(scope="module")
def pair(tiny_model: Path) -> Iterator[Pair]:
    """One pair whose counts are this module's own."""
    with running_pair(str(tiny_model)) as pair:
        yield pair


@pytest.fixture(scope="module")
def reference(tiny_model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="eager").eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


@pytest.fixture
def client(pair: Pair) -> Iterator[Client]:
    with Client(pair[1].target) as client:
        yield client


def _continue(reference: Any, tokens: list[int], count: int = _TOKENS) -> list[int]:
    ids = torch.tensor([tokens])
    with torch.inference_mode():
        found = reference.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count
        )
    answer: list[int] = found[0, len(tokens) :].tolist()
    return answer


def _ask(client: Client, prompt: Any, **options: Any) -> tuple[list[int], Any]:
    generation = client.generate(prompt, max_tokens=_TOKENS, ignore_eos=True, **options)
    tokens = [token for delta in generation for token in delta.token_ids]
    return tokens, generation.result


def _count(pair: Pair, service: int, name: str) -> float:
    return scrape(pair[service].metrics_url).get(name, 0.0)


def test_a_question_over_a_stored_document_is_the_whole_prompt(
    client: Client, pair: Pair, reference: Any
) -> None:
    stored = client.caches.keep(_DOCUMENT, ttl_seconds=60, policy="full")
    assert (stored.tokens, stored.policy) == (len(_DOCUMENT), "full")
    computed = _count(pair, 0, "headwise_prompt_tokens_total")
    for asked, question in enumerate(_QUESTIONS):
        tokens, result = _ask(client, question, cache_handle=stored.handle)
        assert tokens == _continue(reference, _DOCUMENT + question)
        usage = result.usage
        assert (usage.context_tokens, usage.prompt_tokens) == (len(_DOCUMENT), len(question))
        # it came once, for the first question
        assert bool(result.prompt_memory.wire_bytes) == (asked == 0)
    assert _count(pair, 0, "headwise_prompt_tokens_total") == computed
    # the key is as good as the handle, as long as the cache is there
    tokens, _ = _ask(client, _QUESTIONS[0], cache_handle=stored.key)
    assert tokens == _continue(reference, _DOCUMENT + _QUESTIONS[0])
    client.caches.release(stored.handle)
    for handle, reason in ((stored.handle, "LEASE_RELEASED"), (stored.key, "CACHE_ABSENT")):
        with pytest.raises(NotFound) as caught:
            _ask(client, _QUESTIONS[0], cache_handle=handle)
        assert caught.value.reason == reason
    assert _count(pair, 0, "headwise_kv_resident_bytes{tier=store}") == 0
    assert _count(pair, 1, "headwise_contexts") == 0


def test_a_session_goes_on_from_a_stored_document(client: Client, reference: Any) -> None:
    stored = client.caches.keep(_DOCUMENT, ttl_seconds=60, policy="full")
    seen = _DOCUMENT + _QUESTIONS[0]
    answer, first = _ask(client, _QUESTIONS[0], cache_handle=stored.handle, session_ttl_seconds=60)
    client.caches.release(stored.handle)
    assert client.sessions.describe(first.session_id).tokens == len(seen) + _TOKENS
    tokens, turn = _ask(client, [11, 12], session_id=first.session_id)
    assert tokens == _continue(reference, [*seen, *answer, 11, 12])
    assert turn.usage.context_tokens == len(_DOCUMENT)
    client.sessions.release(first.session_id)


def test_a_stored_system_prompt_and_a_question_are_the_templated_conversation(
    client: Client, tiny_model: Path, reference: Any
) -> None:
    system = [Message("system", "Say little about compound statements.")]
    question = [Message("user", "What is one?")]
    stored = client.caches.keep(system, ttl_seconds=60, policy="full")
    tokens, _ = _ask(client, question, cache_handle=stored.handle)
    whole = [(message.role, message.content) for message in system + question]
    expected = load_tokenizer(str(tiny_model)).encode_chat(whole)
    assert tokens == _continue(reference, expected)
    client.caches.release(stored.handle)


async def test_many_questions_at_once_share_the_pages(pair: Pair, reference: Any) -> None:
    questions = [[number + 2, 17, 200 - number] for number in range(24)]
    async with AsyncClient(pair[1].target) as client:
        stored = await client.caches.keep(_DOCUMENT, ttl_seconds=60, policy="full")
        fetched = _count(pair, 0, "headwise_requests_total{code=OK,method=FetchCache}")

        async def ask(question: list[int]) -> list[int]:
            generation = client.generate(
                question, cache_handle=stored.handle, max_tokens=_TOKENS, ignore_eos=True
            )
            return [token async for delta in generation for token in delta.token_ids]

        answers = await asyncio.gather(*map(ask, questions))
        await client.caches.release(stored.handle)
    assert answers[::8] == [_continue(reference, _DOCUMENT + q) for q in questions[::8]]
    assert _count(pair, 0, "headwise_requests_total{code=OK,method=FetchCache}") == fetched + 1


async def test_a_hundred_equal_requests_compute_once(pair: Pair) -> None:
    prompt = [(5 * i) % 499 + 2 for i in range(700)]
    computed = _count(pair, 0, "headwise_prompt_tokens_total")
    async with grpc.aio.insecure_channel(pair[0].target) as channel:
        stub = prefill_pb2_grpc.PrefillServiceStub(channel)
        request = prefill_pb2.PrefillRequest(token_ids=prompt)

        async def pull(number: int) -> bytes:
            call = stub.Prefill(request, timeout=60)
            if number % 10 == 0:
                # a few leave at once, and disturb nobody
                call.cancel()
                return b""
            frames = [one.frame async for one in call if one.HasField("frame")]
            return b"".join(frame.SerializeToString() for frame in frames)

        streams = await asyncio.gather(
            *(pull(number) for number in range(100)), return_exceptions=True
        )
    whole = {stream for stream in streams if isinstance(stream, bytes) and stream}
    assert len(whole) == 1
    assert _count(pair, 0, "headwise_prompt_tokens_total") == computed + len(prompt)


def test_a_lease_runs_out_unless_it_is_renewed(client: Client, pair: Pair) -> None:
    first = client.caches.keep(_DOCUMENT[:50], ttl_seconds=0.6)
    second = client.caches.keep(_DOCUMENT[:60], ttl_seconds=3)
    assert client.caches.renew(second.handle, 60).expires_in_seconds > 50
    ended = "headwise_leases_ended_total{reason=LEASE_EXPIRED}"
    wait_until(lambda: _count(pair, 0, ended) >= 1, 5, "the lease to run out")
    with pytest.raises(NotFound) as caught:
        client.caches.describe(first.handle)
    assert caught.value.reason == "LEASE_EXPIRED"
    assert client.caches.describe(second.handle).tokens == 60
    client.caches.release(second.handle)


def test_no_tenant_finds_what_is_anothers(pair: Pair) -> None:
    with Client(pair[1].target, tenant="a") as ours, Client(pair[1].target, tenant="b") as theirs:
        stored = ours.caches.keep(_DOCUMENT, ttl_seconds=60, policy="full")
        _ask(ours, [5], cache_handle=stored.handle)
        for handle in (stored.handle, stored.key):
            with pytest.raises(NotFound):
                _ask(theirs, [5], cache_handle=handle)
        with pytest.raises(NotFound):
            theirs.caches.release(stored.handle)
        computed = _count(pair, 0, "headwise_prompt_tokens_total")
        again = theirs.caches.keep(_DOCUMENT, ttl_seconds=60, policy="full")
        assert _count(pair, 0, "headwise_prompt_tokens_total") == computed + len(_DOCUMENT)
        assert again.key != stored.key
        ours.caches.release(stored.handle)
        assert _ask(theirs, [5], cache_handle=again.handle)
        theirs.caches.release(again.handle)


def test_errors_name_the_reason_and_the_field(client: Client, pair: Pair) -> None:
    stored = client.caches.keep([5, 6, 7], ttl_seconds=60)
    _, kept = _ask(client, [5], session_ttl_seconds=60)
    for options, reason, field in (
        ({"cache_handle": "x"}, "MALFORMED_HANDLE", "handle"),
        ({"cache_handle": stored.handle, "policy": "full"}, "POLICY_OF_CACHE", "policy"),
        (
            {"cache_handle": stored.handle, "policy": Policy("", {"budget": 0.5})},
            "POLICY_OF_CACHE",
            "policy",
        ),
        (
            {"session_id": kept.session_id, "policy": Policy("", {"budget": 0.5})},
            "POLICY_OF_SESSION",
            "policy",
        ),
        (
            {"cache_handle": stored.handle, "session_id": kept.session_id},
            "HANDLE_ON_SESSION",
            "cache_handle",
        ),
    ):
        with pytest.raises(InvalidRequest) as caught:
            _ask(client, [5], **options)
        assert (caught.value.reason, caught.value.field) == (reason, field)
    for seconds in (0.0, -1.0, float("nan"), 1e9):
        with pytest.raises(InvalidRequest) as caught:
            client.caches.keep([5], ttl_seconds=seconds)
        assert caught.value.field == "keep_for_seconds"
    for tenant in ("../up", "x" * 65, ".hidden", "a b"):
        with Client(pair[1].target, tenant=tenant) as odd, pytest.raises(InvalidRequest) as caught:
            odd.caches.describe(stored.handle)
        assert caught.value.reason == "INVALID_TENANT"
    client.caches.release(stored.handle)
    client.sessions.release(kept.session_id)


def test_several_answers_to_a_question_over_a_document(client: Client, reference: Any) -> None:
    stored = client.caches.keep(_DOCUMENT, ttl_seconds=60, policy="full")
    sampling = Sampling(n=3)
    generation = client.generate(
        [9, 9], cache_handle=stored.handle, sampling=sampling, max_tokens=6, ignore_eos=True
    )
    answers: list[list[int]] = [[], [], []]
    for delta in generation:
        answers[delta.index] += delta.token_ids
    assert answers == [_continue(reference, [*_DOCUMENT, 9, 9], 6)] * 3
    client.caches.release(stored.handle)


def test_three_hundred_leases_leave_nothing_behind(pair: Pair) -> None:
    """A third fetched and handed over, a third released, a third left to expire."""
    with grpc.insecure_channel(pair[0].target) as channel:
        prompts = prefill_pb2_grpc.PrefillServiceStub(channel)
        caches = store_pb2_grpc.CacheServiceStub(channel)
        handles = []
        for number in range(300):
            request = prefill_pb2.PrefillRequest(
                # every other one is of the same context as the one before
                token_ids=[2 + number // 2, 5, 9],
                keep_for_seconds=2.0 if number % 3 == 2 else 120.0,
            )
            responses = prompts.Prefill(request, timeout=30)
            handles += [one.kept.cache.handle for one in responses if one.HasField("kept")]
        assert len(set(handles)) == 300
        resident = "headwise_kv_resident_bytes{tier=store}"
        assert _count(pair, 0, resident) > 0
        for handle in handles[::3]:
            fetch = store_pb2.FetchCacheRequest(handle=handle, release=True)
            kinds = [response.frame.kind for response in caches.FetchCache(fetch, timeout=30)]
            assert kinds[-1] == 8
        for handle in handles[1::3]:
            caches.ReleaseLease(store_pb2.ReleaseLeaseRequest(handle=handle), timeout=30)
    wait_until(lambda: not _count(pair, 0, "headwise_leases"), 10, "the rest to expire")
    assert _count(pair, 0, resident) == 0
