"""A turn may end in the engine after its client has left and its session was given back."""

from __future__ import annotations

import pytest
import torch

from kvstore.cache import LayerShape
from kvstore.pool import PageCount, PagePool, SequencePages
from services.decode.report import Received
from services.decode.sessions import Session, Sessions

_PAGES = 30


@pytest.fixture
def pool() -> PagePool:
    return PagePool((LayerShape(1, 2, 4),), pages=_PAGES, page_rows=8, dtype=torch.float32)


@pytest.fixture
def sessions() -> Sessions:
    return Sessions(most=3, on_room=lambda: None)


def _left(sessions: Sessions, pool: PagePool) -> tuple[Session, SequencePages]:
    """A session whose turn's client has left, and the turn's pages, which the engine still has."""
    pages = pool.open(1, PageCount(3, 3))
    pages.reservation.rows.take(2)
    session = sessions.borrow(sessions.keep(pages, [7, 8], Received(), 60.0))
    turn = session.pages.fork()
    sessions.give_back(session)
    return session, turn


def test_a_turn_whose_client_left_leaves_the_session_as_it_was(
    sessions: Sessions, pool: PagePool
) -> None:
    session, turn = _left(sessions, pool)
    before = session.pages
    # in the same step in which the engine would have let go of it
    sessions.replace(session, turn, [7, 8, 9, 10], 60.0)
    assert session.tokens == (7, 8)
    assert session.pages is before


def test_a_turn_that_ends_while_the_next_one_runs_does_not_touch_its_session(
    sessions: Sessions, pool: PagePool
) -> None:
    session, turn = _left(sessions, pool)
    next_turn = sessions.borrow(session.session_id)
    held = next_turn.tokens
    sessions.replace(session, turn, [7, 8, 9, 10], 60.0)
    # the next turn goes on from the tokens it has read and the pages it will fork
    assert next_turn.tokens == held


def test_a_turn_on_a_session_that_is_gone_leaves_nothing(
    sessions: Sessions, pool: PagePool
) -> None:
    session, turn = _left(sessions, pool)
    sessions.release(session.session_id)
    sessions.replace(session, turn, [7, 8, 9, 10], 60.0)
    assert pool.free_pages == _PAGES
