"""Real stores beneath a running prefill: what rests there is found, and faults are misses."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from headwise import Client, NotFound
from headwise.v1 import decode_pb2, prefill_pb2, prefill_pb2_grpc, store_pb2, store_pb2_grpc
from kvstore.tiers.mooncake_client import connect_mooncake
from services.demo.processes import Service, running_service
from tests.conftest import Pair, running_pair
from tests.kvstore.tiers.servers import (
    RedisServer,
    connected,
    running_cluster,
    running_mooncake,
    running_valkey,
)
from tests.observe import scrape

pytestmark = pytest.mark.processes

_DOCUMENT = [(11 * i * i + i) % 500 + 2 for i in range(400)]
_DEADLINE_SECONDS = 8.0


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One of this module's own, to be frozen and killed."""
    with running_valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="module")
def far_pair(tiny_model: Path, valkey: RedisServer) -> Iterator[Pair]:
    """A pair that has nothing but Valkey, and whose decode remembers no context."""
    store = (
        *("--store-memory-bytes", "0"),
        *("--store-redis", valkey.address.url),
        *("--store-timeout-seconds", "1"),
    )
    with running_pair(str(tiny_model), store, ("--max-resident-caches", "0")) as pair:
        yield pair


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """A Redis Cluster of three nodes, as a service's options."""
    with running_cluster(tmp_path) as nodes:
        yield "--store-redis", f"{nodes[0].cluster_address.url}?cluster=true"


@pytest.fixture
def mooncake(tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """Mooncake Store in memory that this process lends, as a service's options."""
    with running_mooncake(tmp_path) as (_, address):
        lender = connect_mooncake(address)
        yield (*("--store-mooncake", f"{address.master}?metadata={address.metadata_url}"),)
        lender.close()


def _keep(target: str, tokens: list[int]) -> store_pb2.KeepCacheResponse:
    with grpc.insecure_channel(target) as channel:
        request = store_pb2.KeepCacheRequest(
            tokens=decode_pb2.TokenIds(ids=tokens), keep_for_seconds=60
        )
        request.policy.name = "full"
        answer: store_pb2.KeepCacheResponse = store_pb2_grpc.CacheServiceStub(channel).KeepCache(
            request, timeout=60
        )
        return answer


def _prefill(target: str, tokens: list[int]) -> tuple[list[bytes], prefill_pb2.PrefillReport]:
    """The frames of a context however it is come by, and the report."""
    request = prefill_pb2.PrefillRequest(token_ids=tokens)
    request.policy.name = "full"
    with grpc.insecure_channel(target) as channel:
        stub = prefill_pb2_grpc.PrefillServiceStub(channel)
        responses = list(stub.Prefill(request, timeout=_DEADLINE_SECONDS))
    frames = [one.frame.SerializeToString() for one in responses if one.HasField("frame")]
    return frames, next(one.report for one in responses if one.HasField("report"))


def _fetch(target: str, handle: str) -> list[bytes]:
    with grpc.insecure_channel(target) as channel:
        request = store_pb2.FetchCacheRequest(handle=handle)
        stream = store_pb2_grpc.CacheServiceStub(channel).FetchCache(request, timeout=30)
        return [one.frame.SerializeToString() for one in stream]


def _misses(prefill: Service, reason: str) -> float:
    name = f"headwise_store_misses_total{{reason={reason},tier=redis}}"
    return scrape(prefill.metrics_url).get(name, 0.0)


def test_a_context_kept_on_disk_and_in_valkey_is_the_same_in_another_process(
    tiny_model: Path, valkey: RedisServer, far_pair: Pair, tmp_path: Path
) -> None:
    arguments = ["--model", str(tiny_model), "--store-memory-bytes", "0"]
    arguments += ["--store-disk", str(tmp_path), "--store-write", "through"]
    arguments += ["--store-redis", valkey.address.url]
    with running_service("prefill", arguments) as near:
        computed, report = _prefill(near.target, _DOCUMENT)
        assert not report.reused
        kept = _keep(near.target, _DOCUMENT).cache
        # without memory, it is the disk that answers
        assert _fetch(near.target, kept.handle) == computed
        again, report = _prefill(near.target, _DOCUMENT)
        assert report.reused
        assert again == computed
        hits = scrape(near.metrics_url)["headwise_store_hits_total{tier=disk}"]
        assert hits >= 2
        # bit by bit through Valkey, which another prefill alone reads
        assert _fetch(far_pair[0].target, kept.key) == computed
        tokens = _answer(far_pair, [5, 9], kept.key)
    assert tokens == _reference(tiny_model, [*_DOCUMENT, 5, 9])


@pytest.mark.parametrize("shared", ["cluster", "mooncake"])
def test_what_one_prefill_keeps_in_a_shared_store_another_finds(
    tiny_model: Path, shared: str, request: pytest.FixtureRequest
) -> None:
    store = request.getfixturevalue(shared)
    arguments = ["--model", str(tiny_model), "--store-memory-bytes", "0", "--store-write"]
    arguments += ["through", "--store-timeout-seconds", "5", *store]
    with running_service("prefill", arguments) as one, running_service("prefill", arguments) as two:
        computed, _ = _prefill(one.target, _DOCUMENT)
        kept = _keep(one.target, _DOCUMENT).cache
        assert _fetch(two.target, kept.key) == computed
        again, report = _prefill(two.target, _DOCUMENT)
        assert report.reused
        assert again == computed


def test_a_lying_store_is_a_miss(far_pair: Pair, valkey: RedisServer) -> None:
    prompt = _DOCUMENT[:200]
    kept = _keep(far_pair[0].target, prompt).cache
    corrupt = _misses(far_pair[0], "corrupt")
    with connected(valkey.address) as client:
        found: Any = client
        for name in found.keys(f"headwise:default:{kept.key}:*"):
            found.setrange(name, 0, b"garbage, garbage")
    frames, report = _prefill(far_pair[0].target, prompt)
    assert not report.reused
    assert frames[-1]
    assert _misses(far_pair[0], "corrupt") == corrupt + 1


@pytest.mark.parametrize("store", ["disk", "redis"])
def test_stored_caches_that_were_swapped_are_refused(
    tiny_model: Path, valkey: RedisServer, tmp_path: Path, store: str
) -> None:
    """No handle answers from the other's document, and keeping each again mends the store."""
    place = {
        "disk": ("--store-disk", str(tmp_path)),
        "redis": ("--store-redis", valkey.address.url),
    }
    options = ("--store-memory-bytes", "0", "--store-write", "through", *place[store])
    documents = [[3 + n, *_DOCUMENT[1:]] for n in range(2)]
    with (
        running_pair(str(tiny_model), options, ("--max-resident-caches", "0")) as (_, decode),
        Client(decode.target) as client,
    ):
        kept = [client.caches.keep(one, policy="full", ttl_seconds=60) for one in documents]
        before = [
            client.generate([5], cache_handle=one.handle, max_tokens=4).text() for one in kept
        ]
        if store == "disk":
            _swap_files(tmp_path, [one.key for one in kept])
        else:
            with connected(valkey.address) as redis:
                _swap_manifests_and_chunks(redis, [one.key for one in kept])
        for one in kept:
            for name in (one.handle, one.key):
                with pytest.raises(NotFound) as caught:
                    client.generate([5], cache_handle=name, max_tokens=4).text()
                assert caught.value.reason in ("CACHE_CORRUPT", "CACHE_ABSENT")
        again = [client.caches.keep(one, policy="full", ttl_seconds=60) for one in documents]
        after = [
            client.generate([5], cache_handle=one.handle, max_tokens=4).text() for one in again
        ]
        assert after == before


def _swap_files(folder: Path, keys: list[str]) -> None:
    first, second = (next(folder.glob(f"*/{key}-*")) for key in keys)
    first.rename(folder / "aside")
    second.rename(first)
    (folder / "aside").rename(second)


def _swap_manifests_and_chunks(redis: Any, keys: list[str]) -> None:
    held = [
        {name: redis.get(name) for name in redis.scan_iter(match=f"headwise:default:{key}*")}
        for key in keys
    ]
    for parts, mine, theirs in zip(held, keys, reversed(keys), strict=True):
        for name, value in parts.items():
            redis.set(name.decode().replace(mine, theirs), value)


# the last test: the server it kills is shared
def test_a_frozen_and_a_dead_store_cost_no_request_its_deadline(
    far_pair: Pair, valkey: RedisServer
) -> None:
    valkey.process.send_signal(signal.SIGSTOP)
    try:
        slow = _misses(far_pair[0], "timeout")
        began = time.monotonic()
        _, report = _prefill(far_pair[0].target, _DOCUMENT[:100])
        assert not report.reused
        assert time.monotonic() - began < _DEADLINE_SECONDS
        assert _misses(far_pair[0], "timeout") == slow + 1
        # nor is one who keeps: no store takes it, and the stream is whole all the same
        request = prefill_pb2.PrefillRequest(token_ids=_DOCUMENT[:90], keep_for_seconds=30)
        with grpc.insecure_channel(far_pair[0].target) as channel:
            stub = prefill_pb2_grpc.PrefillServiceStub(channel)
            responses = list(stub.Prefill(request, timeout=_DEADLINE_SECONDS))
        kept = next(one.kept for one in responses if one.HasField("kept"))
        assert (kept.refusal, kept.cache.handle) == ("timeout", "")
        assert responses[-1].frame.kind == 8
    finally:
        valkey.process.send_signal(signal.SIGKILL)
        valkey.process.wait(10)
    gone = _misses(far_pair[0], "unavailable")
    with Client(far_pair[1].target) as client:
        generation = client.generate(
            _DOCUMENT[:120], max_tokens=3, ignore_eos=True, timeout_seconds=_DEADLINE_SECONDS
        )
        assert generation.result.usage.completion_tokens == 3
    assert _misses(far_pair[0], "unavailable") == gone + 1


def _answer(pair: Pair, question: list[int], handle: str) -> list[int]:
    with Client(pair[1].target) as client:
        generation = client.generate(question, cache_handle=handle, max_tokens=8, ignore_eos=True)
        return [token for delta in generation for token in delta.token_ids]


def _reference(folder: Path, tokens: list[int]) -> list[int]:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    ids = torch.tensor([tokens])
    with torch.inference_mode():
        found = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8
        )
    answer: list[int] = found[0, len(tokens) :].tolist()
    return answer
