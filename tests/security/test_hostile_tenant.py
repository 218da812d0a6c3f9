"""One tenant takes all it can get of each shared thing; another one still has its share."""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from headwise import Client, HeadwiseError, Overloaded, Sampling
from tests.conftest import Pair, running_pair
from tests.observe import scrape
from tests.security.tokens import write

pytestmark = pytest.mark.processes

_LIMITS = """
[tenants.metered]
streams = 1
tokens_per_minute = 100

[tenants.bounded]
bytes = 600000

[tenants.counted]
sessions = 2
leases = 1
stored_bytes = 1000000
"""
_SESSIONS, _LEASES = 16, 20


@dataclasses.dataclass(frozen=True, slots=True)
class Tenants:
    """Clients of decode, by the tenant that they call for."""

    pair: Pair

    def client(self, tenant: str) -> Client:
        return Client(self.pair[1].target, tenant=tenant, retries=False)


@pytest.fixture(scope="module")
def tenants(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenants]:
    file = write(tmp_path_factory.mktemp("limits") / "limits.toml", _LIMITS)
    decode = ("--tokens", str(file), "--max-sessions", str(_SESSIONS))
    prefill = ("--tokens", str(file), "--max-leases", str(_LEASES))
    with running_pair(str(tiny_model), prefill, decode) as pair:
        yield Tenants(pair)


def _prompt(tokens: int, number: int = 0) -> list[int]:
    return [2 + (number + 7 * place) % 500 for place in range(tokens)]


def test_a_stored_cache_costs_its_tokens(tenants: Tenants) -> None:
    with tenants.client("metered") as client:
        client.caches.keep(_prompt(100), ttl_seconds=60)
        with pytest.raises(Overloaded) as caught:
            client.caches.keep(_prompt(100, 1), ttl_seconds=60)
        assert caught.value.reason == "TENANT_TOKENS"
        assert caught.value.retry_after_seconds
    # prefill counts: it is where the tokens of a stored cache are taken
    samples = scrape(tenants.pair[0].metrics_url)
    reached = "headwise_tenant_limits_reached_total{limit=tokens_per_minute}"
    assert samples[reached] == 1


def test_calls_that_store_caches_count_as_streams(tenants: Tenants) -> None:
    def keep(number: int) -> str:
        try:
            with tenants.client("metered") as client:
                client.caches.keep(_prompt(9_000, number), ttl_seconds=60)
        except Overloaded as error:
            return error.reason
        return "stored"

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(keep, range(8)))
    assert set(outcomes) <= {"stored", "TENANT_STREAMS", "TENANT_TOKENS"}
    assert outcomes.count("stored") <= 1


def test_forks_put_out_no_session_of_another_tenant(tenants: Tenants) -> None:
    with tenants.client("victim") as victim, tenants.client("hostile") as hostile:
        mine = victim.generate(_prompt(20), max_tokens=2, session_ttl_seconds=600)
        assert mine.text() is not None
        first = hostile.generate(_prompt(20, 1), max_tokens=2, session_ttl_seconds=600)
        first.text()
        origin = first.result.session_id
        forks = [hostile.sessions.fork(origin).session_id for _ in range(4)]
        for _ in range(4 * _SESSIONS):
            forks.append(hostile.sessions.fork(forks[-1]).session_id)
        assert len(hostile.sessions.list()) == _SESSIONS - 1
        turn = victim.generate([5, 6], max_tokens=2, session_id=mine.result.session_id)
        assert turn.text() is not None
        with pytest.raises(HeadwiseError) as caught:
            hostile.sessions.describe(origin)
        assert caught.value.reason == "SESSION_EVICTED"


def _leases_until_refused(client: Client) -> str:
    for _ in range(2 * _LEASES):
        try:
            client.caches.keep(_prompt(20), ttl_seconds=600)
        except Overloaded as error:
            return error.reason
    return ""


def test_a_flood_of_leases_leaves_room_for_another_tenant(tenants: Tenants) -> None:
    with tenants.client("victim") as victim, tenants.client("hostile") as hostile:
        first = hostile.caches.keep(_prompt(20), ttl_seconds=600)
        assert _leases_until_refused(hostile) == "TOO_MANY_LEASES"
        stored = [victim.caches.keep(_prompt(20), ttl_seconds=600) for _ in range(_LEASES // 4)]
        for cache in stored:
            assert victim.caches.describe(cache.handle).tokens == 20
        with pytest.raises(HeadwiseError) as gone:
            hostile.caches.describe(first.handle)
        assert gone.value.reason == "LEASE_EVICTED"


def test_bytes_of_all_answers_count_before_they_are_computed(tenants: Tenants) -> None:
    with tenants.client("bounded") as client:
        with pytest.raises(Overloaded) as caught:
            client.generate(
                _prompt(20),
                sampling=Sampling(n=8, temperature=1.0),
                max_tokens=1_000,
                session_ttl_seconds=600,
            ).text()
        assert caught.value.reason == "TENANT_BYTES"
        assert client.sessions.list() == []


def test_what_a_tenant_keeps_stays_within_its_limits(tenants: Tenants) -> None:
    with tenants.client("counted") as client:
        generation = client.generate(_prompt(20), max_tokens=2, session_ttl_seconds=600)
        generation.text()
        client.sessions.fork(generation.result.session_id)
        with pytest.raises(Overloaded) as caught:
            client.sessions.fork(generation.result.session_id)
        assert caught.value.reason == "TENANT_SESSIONS"
        with pytest.raises(Overloaded) as caught:
            client.generate(_prompt(20, 1), max_tokens=2, session_ttl_seconds=600).text()
        assert caught.value.reason == "TENANT_SESSIONS"
        client.caches.keep(_prompt(20), ttl_seconds=600)
        with pytest.raises(Overloaded) as caught:
            client.caches.keep(_prompt(20, 1), ttl_seconds=600)
        assert caught.value.reason == "TENANT_LEASES"
