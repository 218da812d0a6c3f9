"""Leases among tenants: one that takes all loses its oldest, and none of another's."""

from __future__ import annotations

import pytest

from headwise import NotFound, Overloaded
from kvstore.cache import CompactCache
from kvstore.tiers.content_key import ContentKey
from services.prefill.store.leases import Lease, Leases
from tests.kvstore.wire.caches import two_layers


@pytest.fixture
def cache() -> CompactCache:
    return two_layers()[0]


@pytest.fixture
def leases() -> Leases:
    return Leases(lambda key: None, max_leases=4)


def _grant(leases: Leases, cache: CompactCache, tenant: str, number: int = 0) -> Lease:
    return leases.grant(ContentKey(tenant, f"{number:064x}"), cache, 60.0)


def test_a_tenant_alone_may_have_all_and_others_still_get_theirs(
    leases: Leases, cache: CompactCache
) -> None:
    flood = [_grant(leases, cache, "many", number) for number in range(4)]
    with pytest.raises(Overloaded) as caught:
        _grant(leases, cache, "many")
    assert caught.value.reason == "TOO_MANY_LEASES"
    with pytest.raises(Overloaded):
        leases.require_place("many")
    leases.require_place("few")
    for number in range(2):
        _grant(leases, cache, "few", number)
        with pytest.raises(NotFound) as gone:
            leases.find(flood[number].handle, "many")
        assert gone.value.reason == "LEASE_EVICTED"
    with pytest.raises(Overloaded):
        _grant(leases, cache, "few", 2)
    assert (leases.held_by("many"), leases.held_by("few"), len(leases)) == (2, 2, 4)


def test_bytes_of_a_cache_with_two_leases_count_once(leases: Leases, cache: CompactCache) -> None:
    first, second = (_grant(leases, cache, "acme") for _ in "12")
    assert leases.bytes_of("acme") == cache.nbytes
    leases.release(first.handle, "acme")
    assert leases.bytes_of("acme") == cache.nbytes
    leases.release(second.handle, "acme")
    assert (leases.bytes_of("acme"), leases.held_by("acme")) == (0, 0)
