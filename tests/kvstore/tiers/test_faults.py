"""Dead, slow, full and lying stores: each is a miss with its reason, within the deadline."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from kvstore.cache import CompactCache, RaggedLayer
from kvstore.tiers.base import Hit, Miss, MissReason, PutStatus, Tier
from kvstore.tiers.bounded import BoundedTier
from kvstore.tiers.content_key import ContentKey
from kvstore.tiers.deadline import Deadline
from kvstore.tiers.manifest import Manifest
from kvstore.tiers.mooncake import MooncakeTier
from kvstore.tiers.redis import RedisOptions, RedisTier
from kvstore.tiers.redis_client import RedisAddress, RedisClient
from kvstore.tiers.redis_faults import failed_put
from kvstore.tiers.stored_form import CacheWriter
from tests.kvstore.tiers.conftest import SMALL_CHUNKS, Mooncake
from tests.kvstore.tiers.servers import (
    RedisServer,
    connected,
    running_cluster,
    running_valkey,
)
from tests.kvstore.wire.caches import numbered, same, two_layers
from tests.observe import wait_until

CACHE, _ = two_layers("float16")
KEY = ContentKey.of(CACHE.fingerprint, "faults")
MANIFEST = f"headwise:{KEY.namespace}:{KEY.digest}"
SECONDS = 10.0


def due() -> Deadline:
    """Return a deadline that a working tier keeps."""
    return Deadline.after(SECONDS)


# a deadline that a stuck store overruns, and what a busy machine may add to it
SHORT, SLACK = 0.3, 1.0


@contextlib.contextmanager
def redis_tier(
    address: RedisAddress, options: RedisOptions = SMALL_CHUNKS
) -> Iterator[tuple[Tier, RedisClient]]:
    with connected(address) as client:
        tier = BoundedTier(RedisTier(client, options))
        yield tier, client
        tier.close()


@pytest.fixture
def own_valkey(tmp_path: pathlib.Path) -> Iterator[RedisServer]:
    """A server to be harmed."""
    with running_valkey(tmp_path) as server:
        yield server


def large_cache(layers: int) -> CompactCache:
    """One row in each layer, of 256 KiB."""
    width = 65_536
    layer = RaggedLayer(
        keys=torch.zeros(1, width, dtype=torch.float16),
        values=torch.zeros(1, width, dtype=torch.float16),
        positions=torch.zeros(1, dtype=torch.int32),
        head_offsets=(0, 1),
        rules=CACHE.layers[0].rules[:1],
        attention_coverage=(1.0,),
        scores=torch.empty(0),
        flags=torch.empty(0, dtype=torch.uint8),
    )
    return dataclasses.replace(CACHE, layers=(layer,) * layers)


def timed_reason(tier: Tier, seconds: float) -> MissReason:
    """Return the reason of a missed get; every call must keep to the deadline."""
    for call in (
        lambda: tier.put(KEY, CACHE, None, Deadline.after(seconds)),
        lambda: tier.delete(KEY, Deadline.after(seconds)),
        lambda: tier.contains(KEY, Deadline.after(seconds)),
        lambda: tier.bytes_in_use(None, Deadline.after(seconds)),
    ):
        _timed(call, seconds)
    found = _timed(lambda: tier.get(KEY, CACHE.fingerprint, Deadline.after(seconds)), seconds)
    assert isinstance(found, Miss)
    return found.reason


def _timed(call: Callable[[], object], seconds: float) -> object:
    began = time.monotonic()
    answer = call()
    assert time.monotonic() - began < seconds + SLACK
    return answer


def reason(tier: Tier) -> MissReason | None:
    """Return the reason of a missed get; None for a hit that is equal to the bit."""
    found = tier.get(KEY, CACHE.fingerprint, due())
    if isinstance(found, Hit):
        assert same(found.cache, CACHE)
        return None
    return found.reason


def keep_in(tier: Tier) -> None:
    """Put until it is found: a Mooncake store that was just full or stuck may evict at once."""
    wait_until(
        lambda: tier.put(KEY, CACHE, None, due()).stored and reason(tier) is None,
        SECONDS,
        "the store to hold a cache",
    )


def test_a_dead_server_is_unavailable_and_a_new_one_serves_again(tmp_path: pathlib.Path) -> None:
    with running_valkey(tmp_path) as server:
        address = server.address
        with redis_tier(address) as (tier, _):
            tier.put(KEY, CACHE, None, due())
            server.process.kill()
            server.process.wait()
            assert timed_reason(tier, SECONDS) is MissReason.UNAVAILABLE
            assert tier.put(KEY, CACHE, None, due()).status is PutStatus.UNAVAILABLE
            with running_valkey(tmp_path, port=server.port):
                assert reason(tier) is MissReason.ABSENT
                assert tier.put(KEY, CACHE, None, due()).stored
                assert reason(tier) is None


def test_a_frozen_server_times_out_and_recovers(own_valkey: RedisServer) -> None:
    address = dataclasses.replace(own_valkey.address, socket_timeout_seconds=1.0)
    with redis_tier(address) as (tier, _):
        tier.put(KEY, CACHE, None, due())
        own_valkey.process.send_signal(signal.SIGSTOP)
        assert timed_reason(tier, SHORT) in (MissReason.TIMEOUT, MissReason.UNAVAILABLE)
        own_valkey.process.send_signal(signal.SIGCONT)
        # workers that were left behind end by the socket's own time-out
        time.sleep(1.0)
        assert tier.put(KEY, CACHE, None, due()).stored
        assert reason(tier) is None


@contextlib.contextmanager
def dripping_server() -> Iterator[int]:
    """Accepts everybody and answers with one byte of an endless value at a time."""

    def drip(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"$1000000\r\n")
            while not stopped.wait(0.02):
                connection.sendall(b"x")

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                drippers.append(threading.Thread(target=drip, args=(listener.accept()[0],)))
                drippers[-1].start()

    stopped = threading.Event()
    drippers: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=serve)
        accepting.start()
        yield listener.getsockname()[1]
        stopped.set()
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()
        for dripper in drippers:
            dripper.join()


def test_a_server_that_drips_bytes_times_out() -> None:
    with dripping_server() as port, redis_tier(RedisAddress(f"redis://127.0.0.1:{port}")) as (t, _):
        found = _timed(lambda: t.get(KEY, CACHE.fingerprint, Deadline.after(SHORT)), SHORT)
        assert found == Miss(MissReason.TIMEOUT)


def test_a_full_server_refuses_and_keeps_its_caches(tmp_path: pathlib.Path) -> None:
    policy = ("--maxmemory", "8mb", "--maxmemory-policy", "noeviction")
    with (
        running_valkey(tmp_path, *policy) as server,
        redis_tier(server.address, RedisOptions()) as (tier, client),
    ):
        assert tier.put(KEY, CACHE, None, due()).stored
        large = ContentKey("faults", "0" * 64)
        assert tier.put(large, large_cache(64), None, due()).status is PutStatus.FULL
        assert tier.get(large, CACHE.fingerprint, due()) == Miss(MissReason.ABSENT)
        assert reason(tier) is None
        # what was written of it goes by itself
        assert all(0 < client.ttl(name) <= 60 for name in client.keys(f"*{large.digest}*"))


def test_a_quota_is_refused_before_anything_is_sent(own_valkey: RedisServer) -> None:
    options = dataclasses.replace(SMALL_CHUNKS, quota_bytes={"faults": 1000})
    with redis_tier(own_valkey.address, options) as (tier, client):
        assert tier.put(KEY, CACHE, None, due()).status is PutStatus.OVER_QUOTA
        assert client.dbsize() == 0
        other = ContentKey.of(CACHE.fingerprint, "without-quota")
        assert tier.put(other, CACHE, None, due()).stored
        # room for one: what a put replaces does not count against it
        writer = CacheWriter(CACHE)
        options.quota_bytes["faults"] = writer.head_bytes + writer.body_bytes
        for _ in range(2):
            assert tier.put(KEY, CACHE, None, due()).stored
        second = ContentKey("faults", "0" * 64)
        assert tier.put(second, CACHE, None, due()).status is PutStatus.OVER_QUOTA
        client.zadd("headwise:faults:index", {"not ours": time.time() + 60})
        assert tier.put(KEY, CACHE, None, due()).status is PutStatus.UNAVAILABLE
        assert tier.bytes_in_use("faults", due()) is None


def test_everything_has_a_time_to_live(own_valkey: RedisServer) -> None:
    with redis_tier(own_valkey.address) as (tier, client):
        for lifetime in (None, 500.0):
            tier.put(KEY, CACHE, lifetime, due())
            assert all(client.ttl(name) > 60 for name in client.keys("*"))
        # the first put's chunks went when the second replaced it
        names = {name.rsplit(b":", 1)[0] for name in client.keys(f"{MANIFEST}:*")}
        assert len(names) == 1


# commands that a put uses, in their order, and one that gives chunks back
_REFUSALS = (
    "-set",
    # chunks may be written, and the manifest, which has a colon less, may not
    "resetkeys ~headwise:*:*:*",
    "-zadd",
    "-pexpire",
    "-pexpire -unlink",
    "-unlink resetkeys ~headwise:*:*:*",
)


@pytest.mark.parametrize("refusal", _REFUSALS)
@pytest.mark.parametrize("replaces", [False, True])
def test_a_put_that_fails_midway_leaves_nothing_for_long(
    own_valkey: RedisServer, refusal: str, replaces: bool
) -> None:
    with redis_tier(own_valkey.address) as (tier, client):
        if replaces:
            tier.put(KEY, CACHE, 500.0, due())
        before = set(client.keys("*"))
        client.execute_command("ACL", "SETUSER", "default", *refusal.split())
        stored = [tier.put(KEY, CACHE, 500.0, due()).stored for _ in range(5)]
        assert stored == [refusal == "-zadd"] * 5
        client.execute_command("ACL", "SETUSER", "default", "+@all", "allkeys")
        left = set(client.keys("*")) - before
        if refusal == "-zadd":
            # the index counts it no longer, and it is stored all the same
            assert reason(tier) is None
            return
        lasting = [name for name in left if client.ttl(name) > 60]
        held = {key for key in lasting if not key.endswith((b":index", b":namespaces"))}
        # where nothing can be given back, the manifest stays, and is counted
        assert held <= {MANIFEST.encode()}
        if "-unlink" not in refusal:
            assert not held
            assert tier.bytes_in_use("faults", due()) in (0, _stored_bytes())
        assert reason(tier) in (None, MissReason.ABSENT, MissReason.EVICTED)
        assert tier.put(KEY, CACHE, 500.0, due()).stored
        assert reason(tier) is None
        assert tier.bytes_in_use("faults", due()) == _stored_bytes()


def _stored_bytes() -> int:
    writer = CacheWriter(CACHE)
    return writer.head_bytes + writer.body_bytes


def test_an_old_server_is_named() -> None:
    from redis.exceptions import ResponseError

    told = failed_put(ResponseError("syntax error")).detail
    assert "Redis 6.2 or Valkey" in told


def test_eviction_and_expiry_by_the_server_are_told_apart(own_valkey: RedisServer) -> None:
    with redis_tier(own_valkey.address) as (tier, client):
        for number in (0, 1, 3):
            tier.put(KEY, CACHE, None, due())
            (chunk,) = client.keys(f"{MANIFEST}:*:{number}")
            client.delete(chunk)
            assert reason(tier) is MissReason.EVICTED
        assert tier.bytes_in_use("faults", due()) == 0
        tier.put(KEY, CACHE, 0.2, due())
        assert reason(tier) is None
        time.sleep(0.3)
        assert client.keys(f"{MANIFEST}:*") == []
        assert reason(tier) is MissReason.EXPIRED


def lies(client: RedisClient) -> Iterator[tuple[str, MissReason, Callable[[], object]]]:
    """Every way the store's contents can be wrong: name, expected reason, how to bring it about."""
    text = client.get(MANIFEST)
    manifest = Manifest.parse(text)
    chunks = [f"{MANIFEST}:{manifest.put_id}:{n}" for n in range(len(manifest.chunk_bytes) + 1)]
    head, first, second = (client.get(name) for name in chunks[:3])

    def write(name: str, value: bytes) -> Callable[[], object]:
        return lambda: client.set(name, value)

    def listed(name: str) -> None:
        client.delete(name)
        client.rpush(name, b"x")

    def forge(**changes: object) -> Callable[[], object]:
        return write(MANIFEST, dataclasses.replace(manifest, **changes).encode())

    other_format = head.replace(rb"\"format_version\":1", rb"\"format_version\":9")
    other_model = head.replace(b"a" * 64, b"c" * 64)
    corrupt = MissReason.CORRUPT
    yield "garbage manifest", corrupt, write(MANIFEST, b"\x00\xffgarbage")
    yield "empty manifest", corrupt, write(MANIFEST, b"")
    yield "manifest of another version", corrupt, write(MANIFEST, text.replace(b"1}", b"2}"))
    yield "truncated manifest", corrupt, write(MANIFEST, text[:-5])
    yield "impossible size", corrupt, forge(chunk_bytes=(2**47,))
    yield "other chunk sizes", corrupt, forge(chunk_bytes=manifest.chunk_bytes[::-1])
    yield "name with a wildcard", corrupt, forge(put_id="*")
    yield "garbage head", corrupt, write(chunks[0], b"\x10" * len(head))
    yield "empty head", corrupt, write(chunks[0], b"")
    yield "endless head", corrupt, write(chunks[0], b"\xff" * 8 + head[8:])
    yield "garbage chunk of the right size", corrupt, write(chunks[1], b"\x00" * len(first))
    yield "long chunk", corrupt, write(chunks[1], first + b"x")
    yield "short chunk", corrupt, write(chunks[1], first[:-1])
    yield "another chunk's bytes", corrupt, write(chunks[1], second)
    yield "another version's head", MissReason.OTHER_FORMAT, write(chunks[0], other_format)
    yield "another model's head", corrupt, write(chunks[0], other_model)
    yield "a list as chunk", corrupt, lambda: listed(chunks[1])
    yield "a list as manifest", corrupt, lambda: listed(MANIFEST)


def test_a_lying_server_is_a_miss_and_the_next_put_heals_it(own_valkey: RedisServer) -> None:
    with redis_tier(own_valkey.address) as (tier, client):
        tier.put(KEY, CACHE, None, due())
        count = sum(1 for _ in lies(client))
        for number in range(count):
            name, expected, tell = list(lies(client))[number]
            tell()
            assert reason(tier) is expected, name
            if "as manifest" in name:
                client.delete(MANIFEST)
            assert tier.put(KEY, CACHE, None, due()).stored, name
            assert reason(tier) is None, name


def test_a_cluster_that_loses_a_node_serves_what_the_others_hold(tmp_path: pathlib.Path) -> None:
    together = dataclasses.replace(SMALL_CHUNKS, spread=False)
    caches = [numbered(CACHE, number) for number in range(12)]
    held = {ContentKey.of(cache.fingerprint, "faults"): cache for cache in caches}
    with (
        running_cluster(tmp_path) as nodes,
        redis_tier(nodes[0].cluster_address, together) as (tier, _),
    ):
        for key, cache in held.items():
            assert tier.put(key, cache, None, due()).stored
        nodes[1].process.kill()
        nodes[1].process.wait()
        found = [
            _timed(
                lambda key=key, cache=cache: tier.get(key, cache.fingerprint, Deadline.after(2.0)),
                2.0,
            )
            for key, cache in held.items()
        ]
        hits = [lookup for lookup in found if isinstance(lookup, Hit)]
        missed = {lookup.reason for lookup in found if isinstance(lookup, Miss)}
        assert len(hits) >= 3
        wanted = [
            cache for lookup, cache in zip(found, caches, strict=True) if isinstance(lookup, Hit)
        ]
        assert all(same(hit.cache, cache) for hit, cache in zip(hits, wanted, strict=True))
        assert missed <= {MissReason.UNAVAILABLE, MissReason.TIMEOUT}
        assert missed
        stored = [
            _timed(
                lambda key=key, cache=cache: tier.put(key, cache, None, Deadline.after(2.0)), 2.0
            )
            for key, cache in held.items()
        ]
        assert sum(result.stored for result in stored) == len(hits)


def test_a_frozen_mooncake_master_times_out_and_recovers(mooncake: Mooncake) -> None:
    process, _, client = mooncake
    tier = BoundedTier(MooncakeTier(client), workers=8)
    tier.put(KEY, CACHE, None, due())
    process.send_signal(signal.SIGSTOP)
    assert timed_reason(tier, SHORT) is MissReason.TIMEOUT
    process.send_signal(signal.SIGCONT)
    keep_in(tier)
    tier.close()


def test_an_overdue_delete_leaves_what_was_put_meanwhile(mooncake: Mooncake) -> None:
    inner = MooncakeTier(mooncake[2])
    tier = BoundedTier(inner)
    keep_in(tier)
    with pytest.raises(TimeoutError):
        inner.delete(KEY, Deadline.after(0))
    assert reason(tier) is None
    tier.close()


def test_lying_mooncake_objects_are_misses(mooncake: Mooncake) -> None:
    client = mooncake[2]
    tier = BoundedTier(MooncakeTier(client))
    keep_in(tier)
    manifest = Manifest.parse(client.get(MANIFEST))
    file = f"{MANIFEST}:{manifest.put_id}"
    whole = client.get(file)
    for value in (b"x", whole[:-1], whole + b"x", whole[:-1] + b"\x00", b"\xff" * len(whole)):
        assert client.upsert(file, value) == 0
        assert reason(tier) is MissReason.CORRUPT
    assert client.upsert(file, whole) == 0
    assert reason(tier) is None
    client.remove(file, True)
    assert reason(tier) is MissReason.EVICTED
    client.upsert(MANIFEST, b"garbage")
    assert reason(tier) is MissReason.CORRUPT
    keep_in(tier)
    tier.close()


# the last test with the shared store: a put without room may make the master evict other objects
def test_a_full_mooncake_store_is_full(mooncake: Mooncake) -> None:
    tier = BoundedTier(MooncakeTier(mooncake[2]))
    huge = large_cache(260)
    assert huge.nbytes > mooncake[1].segment_bytes
    assert tier.put(KEY, huge, None, due()).status is PutStatus.FULL
    tier.close()
