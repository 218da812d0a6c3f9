"""A tier returns the cache that was asked for, or a miss with a reason.

Caches are swapped, renamed, replayed, truncated and changed behind every tier's back.
"""

from __future__ import annotations

import dataclasses
import itertools
import random

import pytest

from kvstore.cache import CompactCache, Fingerprint
from kvstore.tiers.base import Expected, Hit, Miss, MissReason, Tier
from kvstore.tiers.content_key import ContentKey
from kvstore.tiers.deadline import Deadline
from kvstore.tiers.ledger import Budget
from kvstore.tiers.memory import MemoryTier
from kvstore.tiers.stack import TierStack
from tests.kvstore.tiers.conftest import TierMaker
from tests.kvstore.tiers.rests import rest_of, swap_in_memory
from tests.kvstore.wire.caches import numbered, same, two_layers

CACHE, _ = two_layers("float16")
AT_REST = ("disk", "valkey", "mooncake")


def due() -> Deadline:
    return Deadline.after(10.0)


def _changed(**fields: str) -> CompactCache:
    return dataclasses.replace(CACHE, fingerprint=dataclasses.replace(CACHE.fingerprint, **fields))


def _of_model(**fields: str) -> CompactCache:
    model = dataclasses.replace(CACHE.fingerprint.model, **fields)
    return dataclasses.replace(
        CACHE, fingerprint=dataclasses.replace(CACHE.fingerprint, model=model)
    )


# caches of the same rows that other requests have stored
OTHERS = {
    "document": numbered(CACHE, 7),
    "policy": _changed(policy="h2o"),
    "parameters": _changed(policy_parameters='{"target":0.5}'),
    "weights": _of_model(weights_digest="c" * 64),
    "tokenizer": _of_model(tokenizer_digest="c" * 64),
}
KEY = ContentKey.of(CACHE.fingerprint, "tenant")
# a request knows the fingerprint, a handle's holder the model alone
EXPECTED = {"fingerprint": CACHE.fingerprint, "model": CACHE.fingerprint.model}


def reason(tier: Tier, key: ContentKey, expected: Expected) -> MissReason:
    found = tier.get(key, expected, due())
    assert isinstance(found, Miss), "another cache was returned"
    return found.reason


def require_own_or_miss(tier: Tier, key: ContentKey, cache: CompactCache) -> bool:
    """Return whether the cache was found, which must then be equal to the bit."""
    found = tier.get(key, cache.fingerprint.model, due())
    if isinstance(found, Hit):
        assert same(found.cache, cache)
    return isinstance(found, Hit)


@pytest.mark.parametrize("knows", EXPECTED)
@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("name", ["memory", *AT_REST])
def test_another_cache_under_the_key_is_corrupt(
    name: str, other: str, knows: str, make_tier: TierMaker
) -> None:
    tier, theirs = make_tier(name), OTHERS[other]
    their_key = ContentKey.of(theirs.fingerprint, "tenant")
    for key, cache in ((KEY, CACHE), (their_key, theirs)):
        assert tier.put(key, cache, None, due()).stored
    if isinstance(tier, MemoryTier):
        swap_in_memory(tier, KEY, their_key)
    else:
        rest = rest_of(tier)
        ours, foreign = rest.read(KEY), rest.read(their_key)
        assert tier.delete(KEY, due())
        rest.write(KEY, foreign)
        rest.write(their_key, ours)
    assert reason(tier, KEY, EXPECTED[knows]) is MissReason.CORRUPT
    assert tier.put(KEY, CACHE, None, due()).stored
    assert require_own_or_miss(tier, KEY, CACHE)


@pytest.mark.parametrize("name", AT_REST)
def test_a_cache_that_was_moved_to_another_tenant_is_corrupt(
    name: str, make_tier: TierMaker
) -> None:
    tier = make_tier(name)
    tier.put(KEY, CACHE, None, due())
    rest, stolen = rest_of(tier), ContentKey("thief", KEY.digest)
    rest.write(stolen, rest.read(KEY))
    for expected in EXPECTED.values():
        assert reason(tier, stolen, expected) in (MissReason.CORRUPT, MissReason.ABSENT)
    assert require_own_or_miss(tier, KEY, CACHE)


@pytest.mark.parametrize("name", AT_REST)
def test_a_part_of_another_cache_is_never_mixed_in(name: str, make_tier: TierMaker) -> None:
    tier = make_tier(name)
    other = dataclasses.replace(
        numbered(CACHE, 9),
        layers=tuple(dataclasses.replace(layer, keys=-layer.keys) for layer in CACHE.layers),
    )
    key = ContentKey.of(other.fingerprint, "tenant")
    tier.put(KEY, CACHE, None, due())
    tier.put(key, other, None, due())
    rest = rest_of(tier)
    ours, theirs = rest.read(KEY), rest.read(key)
    pairs = list(zip(sorted(ours), sorted(theirs), strict=True))
    for count in range(1, len(pairs)):
        for chosen in itertools.islice(itertools.combinations(pairs, count), 12):
            mixed = ours | {mine: theirs[their] for mine, their in chosen}
            rest.write(KEY, mixed)
            require_own_or_miss(tier, KEY, CACHE)


@pytest.mark.parametrize("name", AT_REST)
def test_truncated_and_changed_parts_are_misses(name: str, make_tier: TierMaker) -> None:
    tier, chance = make_tier(name), random.Random(5)
    tier.put(KEY, CACHE, None, due())
    rest = rest_of(tier)
    whole = rest.read(KEY)
    for part, value in whole.items():
        for _ in range(6):
            cut = chance.randrange(1, len(value))
            changed = bytearray(value)
            changed[chance.randrange(len(value))] ^= 1 << chance.randrange(8)
            for damaged in (value[:cut], value + value[:cut], bytes(changed)):
                rest.write(KEY, whole | {part: damaged})
                require_own_or_miss(tier, KEY, CACHE)
    rest.write(KEY, whole)
    assert require_own_or_miss(tier, KEY, CACHE)


@pytest.mark.parametrize("name", AT_REST)
def test_what_was_replaced_and_comes_back_is_the_keys_cache_or_a_miss(
    name: str, make_tier: TierMaker
) -> None:
    tier = make_tier(name)
    tier.put(KEY, CACHE, None, due())
    rest = rest_of(tier)
    earlier = rest.read(KEY)
    tier.put(KEY, CACHE, None, due())
    # a part alone, then all of it
    for part in earlier:
        rest.write(KEY, {part: earlier[part]})
        require_own_or_miss(tier, KEY, CACHE)
    rest.write(KEY, earlier)
    assert require_own_or_miss(tier, KEY, CACHE)


def test_a_stack_promotes_nothing_that_is_another_cache(make_tier: TierMaker) -> None:
    disk, memory = make_tier("disk"), MemoryTier(Budget(1 << 20))
    other = numbered(CACHE, 7)
    their_key = ContentKey.of(other.fingerprint, "tenant")
    disk.put(KEY, CACHE, None, due())
    disk.put(their_key, other, None, due())
    rest = rest_of(disk)
    ours, theirs = rest.read(KEY), rest.read(their_key)
    rest.write(KEY, theirs)
    rest.write(their_key, ours)
    stack = TierStack([memory, disk])
    make_tier.stack.callback(stack.close)
    for key, cache in ((KEY, CACHE), (their_key, other)):
        assert reason(stack, key, cache.fingerprint.model) is MissReason.CORRUPT
        assert not memory.contains(key, due())


def test_every_part_of_a_fingerprint_is_in_the_key_or_is_a_name() -> None:
    """A new field that the key ignored would let its caches stand in for one another."""
    names = {"model_id", "revision"}
    for field in dataclasses.fields(Fingerprint):
        if field.name == "model":
            continue
        value = 99 if field.name == "format_version" else "c" * 64
        changed = dataclasses.replace(CACHE.fingerprint, **{field.name: value})
        assert ContentKey.of(changed, "tenant") != KEY, field.name
    for field in dataclasses.fields(CACHE.fingerprint.model):
        model = dataclasses.replace(CACHE.fingerprint.model, **{field.name: "c" * 64})
        changed = dataclasses.replace(CACHE.fingerprint, model=model)
        assert (ContentKey.of(changed, "tenant") == KEY) == (field.name in names), field.name
