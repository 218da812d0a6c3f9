"""Tests that every tier must pass, over the real stores."""

from __future__ import annotations

import dataclasses
import itertools
import threading

import pytest
from hypothesis import HealthCheck, given, settings

from kvstore.cache import CompactCache, LayerShape, digest_tokens
from kvstore.errors import InvalidParameter
from kvstore.tiers.base import Hit, Miss, MissReason, PutStatus, Tier
from kvstore.tiers.content_key import ContentKey
from kvstore.tiers.deadline import Deadline
from tests.kvstore.tiers.clock import Clock
from tests.kvstore.tiers.conftest import TierMaker
from tests.kvstore.wire.caches import caches, numbered, same, two_layers

CACHE, _ = two_layers("bfloat16")
KEY = ContentKey.of(CACHE.fingerprint, "tenant")
SECONDS = 10.0
NUMBERS = itertools.count()


def reason(lookup: object) -> MissReason:
    assert isinstance(lookup, Miss), lookup
    return lookup.reason


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cache_and_shapes=caches())
def test_a_cache_comes_back_to_the_bit(
    tier: Tier, cache_and_shapes: tuple[CompactCache, tuple[LayerShape, ...]]
) -> None:
    # the random caches say that they are of the same tokens
    cache = numbered(cache_and_shapes[0], next(NUMBERS))
    key = ContentKey.of(cache.fingerprint, "round-trip")
    assert tier.put(key, cache, None, Deadline.after(SECONDS)).status is PutStatus.STORED
    found = tier.get(key, cache.fingerprint, Deadline.after(SECONDS))
    assert isinstance(found, Hit)
    assert same(found.cache, cache)


def test_a_key_that_was_never_put_is_absent(tier: Tier) -> None:
    never = ContentKey.of(CACHE.fingerprint, "never")
    assert reason(tier.get(never, CACHE.fingerprint, Deadline.after(SECONDS))) is MissReason.ABSENT
    assert not tier.contains(never, Deadline.after(SECONDS))
    assert tier.delete(never, Deadline.after(SECONDS))


def test_a_deleted_cache_is_absent(tier: Tier) -> None:
    tier.put(KEY, CACHE, None, Deadline.after(SECONDS))
    assert tier.contains(KEY, Deadline.after(SECONDS))
    assert tier.delete(KEY, Deadline.after(SECONDS))
    assert not tier.contains(KEY, Deadline.after(SECONDS))
    assert reason(tier.get(KEY, CACHE.fingerprint, Deadline.after(SECONDS))) is MissReason.ABSENT


def test_another_tenants_key_finds_nothing(tier: Tier) -> None:
    tier.put(KEY, CACHE, None, Deadline.after(SECONDS))
    theirs = ContentKey.of(CACHE.fingerprint, "other-tenant")
    assert reason(tier.get(theirs, CACHE.fingerprint, Deadline.after(SECONDS))) is MissReason.ABSENT


def test_a_cache_expires_when_its_time_has_come(tier: Tier, clock: Clock) -> None:
    tier.put(KEY, CACHE, 50.0, Deadline.after(SECONDS))
    found = tier.get(KEY, CACHE.fingerprint, Deadline.after(SECONDS))
    assert isinstance(found, Hit)
    assert found.expires_at == pytest.approx(clock() + 50, abs=5)
    clock.advance(51)
    assert not tier.contains(KEY, Deadline.after(SECONDS))
    assert reason(tier.get(KEY, CACHE.fingerprint, Deadline.after(SECONDS))) is MissReason.EXPIRED


def test_a_second_put_renews_the_first(tier: Tier, clock: Clock) -> None:
    tier.put(KEY, CACHE, 5.0, Deadline.after(SECONDS))
    tier.put(KEY, CACHE, 50.0, Deadline.after(SECONDS))
    clock.advance(20)
    assert isinstance(tier.get(KEY, CACHE.fingerprint, Deadline.after(SECONDS)), Hit)


def test_another_model_or_policy_under_the_key_is_a_miss_by_name(tier: Tier) -> None:
    tier.put(KEY, CACHE, None, Deadline.after(SECONDS))
    ours = CACHE.fingerprint
    model = dataclasses.replace(ours.model, weights_digest="c" * 64)
    tokens = dataclasses.replace(ours, token_digest=digest_tokens([1]))
    policy = dataclasses.replace(ours, policy="full")
    wanted = {
        MissReason.OTHER_MODEL: (model, dataclasses.replace(ours, model=model)),
        MissReason.OTHER_POLICY: (policy, dataclasses.replace(ours, policy_parameters="{}")),
        MissReason.CORRUPT: (tokens,),
    }
    for expected_reason, all_expected in wanted.items():
        for expected in all_expected:
            assert reason(tier.get(KEY, expected, Deadline.after(SECONDS))) is expected_reason
    # the model alone is all that is known where a handle names the cache
    assert isinstance(tier.get(KEY, ours.model, Deadline.after(SECONDS)), Hit)


def test_bytes_in_use_are_those_of_the_namespace(tier: Tier) -> None:
    key = ContentKey.of(CACHE.fingerprint, "counted")
    tier.put(key, CACHE, None, Deadline.after(SECONDS))
    used = tier.bytes_in_use("counted", Deadline.after(SECONDS))
    if used is None:
        # Mooncake Store does not tell
        assert tier.name == "mooncake"
        return
    # at rest a head comes on top of the rows
    assert CACHE.nbytes <= used <= CACHE.nbytes + 8192
    assert (tier.bytes_in_use(None, Deadline.after(SECONDS)) or 0) >= used
    tier.put(key, CACHE, None, Deadline.after(SECONDS))
    assert tier.bytes_in_use("counted", Deadline.after(SECONDS)) == used
    tier.delete(key, Deadline.after(SECONDS))
    assert tier.bytes_in_use("counted", Deadline.after(SECONDS)) == 0


def test_writers_of_one_key_never_mix(tier: Tier) -> None:
    others = [
        dataclasses.replace(
            CACHE,
            layers=tuple(dataclasses.replace(x, keys=x.keys + n) for x in CACHE.layers),
        )
        for n in range(4)
    ]

    def write(cache: CompactCache) -> None:
        for _ in range(5):
            tier.put(KEY, cache, None, Deadline.after(SECONDS))

    threads = [threading.Thread(target=write, args=(cache,)) for cache in others]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        found = tier.get(KEY, CACHE.fingerprint, Deadline.after(SECONDS))
        # a reader may come between two writers and miss, but never gets a mixture
        if isinstance(found, Hit):
            assert any(same(found.cache, cache) for cache in others)
    for thread in threads:
        thread.join()
    assert isinstance(tier.get(KEY, CACHE.fingerprint, Deadline.after(SECONDS)), Hit)


@pytest.mark.parametrize("name", ["disk", "valkey", "mooncake"])
def test_an_invalid_cache_is_refused_by_put(name: str, make_tier: TierMaker) -> None:
    layer = dataclasses.replace(CACHE.layers[0], positions=CACHE.layers[0].positions * 0)
    bad = dataclasses.replace(CACHE, layers=(layer, *CACHE.layers[1:]))
    with pytest.raises(InvalidParameter):
        make_tier(name).put(KEY, bad, None, Deadline.after(SECONDS))
