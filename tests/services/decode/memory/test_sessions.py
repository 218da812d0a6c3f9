"""Sessions: kept, borrowed, forked, evicted in order, and gone for a reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from headwise import NotFound, Refused
from kvstore.cache import LayerShape
from kvstore.pool import PageCount, PagePool, SequencePages
from services.decode.memory import sessions as module
from services.decode.memory.sessions import Holdings, Sessions
from services.decode.report import TransferReport
from services.runtime.security.tenants_file import TenantLimits


@pytest.fixture
def pool() -> PagePool:
    return PagePool((LayerShape(1, 2, 4),), pages=30, page_rows=8, dtype=torch.float32)


@pytest.fixture
def woken() -> list[None]:
    return []


@pytest.fixture
def sessions(woken: list[None]) -> Sessions:
    return Sessions(max_sessions=3, on_freed=lambda: woken.append(None))


def _kept(sessions: Sessions, pool: PagePool, seconds: float = 60.0) -> str:
    pages = pool.open(1, PageCount(3, 3))
    pages.reservation.rows.take(2)
    return sessions.keep(pages, [7, 8], TransferReport(), seconds)


def _reason(call: Callable[[], object]) -> str:
    with pytest.raises(NotFound) as caught:
        call()
    assert caught.value.field == "session_id"
    return caught.value.reason


def test_a_kept_sequence_gives_back_what_it_does_not_use(
    sessions: Sessions, pool: PagePool
) -> None:
    session = sessions.describe(_kept(sessions, pool))
    assert (pool.used_pages, pool.reserved_pages) == (2, 0)
    assert session.tokens == (7, 8)
    assert 59 < session.expires_in_seconds <= 60


def test_the_least_recently_used_goes_first_and_a_busy_one_never(
    sessions: Sessions, pool: PagePool, woken: list[None]
) -> None:
    first, second, third = (_kept(sessions, pool) for _ in range(3))
    sessions.give_back(sessions.borrow(first))
    busy = sessions.borrow(second)
    assert sessions.evict()
    assert _reason(lambda: sessions.describe(third)) == "SESSION_EVICTED"
    assert woken
    assert sessions.evict()
    assert _reason(lambda: sessions.borrow(first)) == "SESSION_EVICTED"
    assert not sessions.evict()
    sessions.give_back(busy)
    assert sessions.evict()
    assert pool.free_pages == 30


def test_one_too_many_evicts_the_oldest(sessions: Sessions, pool: PagePool) -> None:
    kept = [_kept(sessions, pool) for _ in range(4)]
    assert [session.session_id for session in sessions.all()] == kept[1:]
    assert _reason(lambda: sessions.borrow(kept[0])) == "SESSION_EVICTED"


def test_another_owners_session_is_unknown_whatever_became_of_it(
    sessions: Sessions, pool: PagePool
) -> None:
    pages = pool.open(1, PageCount(3, 3))
    pages.reservation.rows.take(2)
    mine = sessions.keep(pages, [7, 8], TransferReport(), 60.0, "acme")
    fork = sessions.fork(mine, "acme").session_id
    assert [one.session_id for one in sessions.all("acme")] == [mine, fork]
    assert sessions.holdings("acme") == Holdings(2, 2 * pages.resident_bytes)
    assert sessions.holdings("globex") == Holdings(0, 0)
    for other in ("globex", ""):
        assert sessions.all(other) == []
        for call in (sessions.borrow, sessions.fork, sessions.describe, sessions.release):
            assert _reason(lambda c=call, o=other: c(mine, o)) == "SESSION_UNKNOWN"
    sessions.release(mine, "acme")
    assert _reason(lambda: sessions.describe(mine, "acme")) == "SESSION_RELEASED"
    assert _reason(lambda: sessions.describe(mine, "globex")) == "SESSION_UNKNOWN"


def test_time_over_means_expired(
    sessions: Sessions, pool: PagePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    short, long, busy = (_kept(sessions, pool, seconds) for seconds in (5.0, 60.0, 5.0))
    sessions.borrow(busy)
    now = module.time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: now + 10)
    sessions.expire()
    assert [session.session_id for session in sessions.all()] == [long, busy]
    assert _reason(lambda: sessions.borrow(short)) == "SESSION_EXPIRED"


def test_a_busy_session_is_left_alone(sessions: Sessions, pool: PagePool) -> None:
    session = sessions.borrow(_kept(sessions, pool))
    for call in (sessions.borrow, sessions.release, sessions.fork):
        with pytest.raises(Refused) as caught:
            call(session.session_id)
        assert caught.value.reason == "SESSION_BUSY"
    assert session.expires_in_seconds == 0


def test_a_turn_that_ended_replaces_the_pages(sessions: Sessions, pool: PagePool) -> None:
    session = sessions.borrow(_kept(sessions, pool))
    turn: SequencePages = session.pages.fork()
    assert pool.used_pages == 2
    assert sessions.replace(session, session.turn, turn, [7, 8, 9], 30) == session.session_id
    sessions.give_back(session)
    assert sessions.describe(session.session_id).tokens == (7, 8, 9)
    assert pool.used_pages == 2
    sessions.release(session.session_id)
    assert pool.free_pages == 30
    assert _reason(lambda: sessions.release(session.session_id)) == "SESSION_RELEASED"


@pytest.mark.parametrize("meanwhile", ["given back", "borrowed again", "released"])
def test_a_turn_that_was_given_back_replaces_nothing(
    sessions: Sessions, pool: PagePool, meanwhile: str
) -> None:
    """The client of the turn left just as the engine chose the last token."""
    session = sessions.borrow(_kept(sessions, pool))
    turn, pages = session.turn, session.pages.fork()
    sessions.give_back(session)
    if meanwhile == "borrowed again":
        sessions.borrow(session.session_id)
    if meanwhile == "released":
        sessions.release(session.session_id)
    assert sessions.replace(session, turn, pages, [7, 8, 9], 30) == ""
    assert session.tokens == (7, 8)
    assert pool.used_pages == (0 if meanwhile == "released" else 2)


def test_a_fork_continues_after_its_origin_is_released(sessions: Sessions, pool: PagePool) -> None:
    origin = _kept(sessions, pool)
    fork = sessions.fork(origin)
    assert pool.used_pages == 2
    sessions.release(origin)
    assert pool.used_pages == 2
    assert sessions.describe(fork.session_id).tokens == (7, 8)
    sessions.close()
    assert (pool.free_pages, len(sessions)) == (30, 0)


def test_an_unknown_session_is_not_found(sessions: Sessions) -> None:
    assert _reason(lambda: sessions.describe("nonsense")) == "SESSION_UNKNOWN"


def _owned(
    sessions: Sessions, pool: PagePool, owner: str, limits: TenantLimits | None = None
) -> str:
    pages = pool.open(1, PageCount(1, 1), owner=owner)
    pages.reservation.rows.take(1)
    return sessions.keep(pages, [7, 8], TransferReport(), 60.0, owner, limits or TenantLimits())


def test_a_flood_of_sessions_evicts_its_own_tenants(sessions: Sessions, pool: PagePool) -> None:
    # the least recently used of all
    mine = _owned(sessions, pool, "few")
    flood = [_owned(sessions, pool, "many") for _ in range(8)]
    assert sessions.describe(mine, "few").session_id == mine
    assert len(sessions) == 3
    assert _reason(lambda: sessions.describe(flood[0], "many")) == "SESSION_EVICTED"
    # within its share of one: those of the other tenant make room
    sessions.release(mine, "few")
    _owned(sessions, pool, "many")
    mine = _owned(sessions, pool, "few")
    assert len(sessions.all("few")) == 1
    assert len(sessions.all("many")) == 2


def test_what_a_tenant_may_keep_is_bounded_by_its_limits(
    sessions: Sessions, pool: PagePool
) -> None:
    one = pool.bytes_of(PageCount(1, 0))
    for limits in (TenantLimits(sessions=1), TenantLimits(bytes=one)):
        first, second = (_owned(sessions, pool, "acme", limits) for _ in "12")
        assert _reason(lambda s=first: sessions.describe(s, "acme")) == "SESSION_EVICTED"
        sessions.release(second, "acme")
