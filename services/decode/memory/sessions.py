"""Sessions: finished generations that can be continued."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from headwise.errors import NotFound, Refused
from kvstore.pool import PageCount, SequencePages
from kvstore.shares import Shares
from services.decode.report import TransferReport
from services.runtime.process import metrics
from services.runtime.replicas.tag import foreign_session_tag, new_session_id
from services.runtime.security.tenants_file import TenantLimits

# reasons of sessions that are gone, the last so many
_REMEMBERED = 4096
_NOTHING = PageCount()
_NO_LIMITS = TenantLimits()


@dataclasses.dataclass(frozen=True, slots=True)
class Holdings:
    """The sessions of one owner."""

    count: int
    nbytes: int


@dataclasses.dataclass(slots=True, eq=False)
class Session:
    """A kept sequence; `busy` while a turn runs on it. The last of `tokens` is not in the cache.

    `owner` is the tenant that the session belongs to; other tenants never find it. `turn` counts
    the borrows: only the latest borrower may replace the session.
    """

    session_id: str
    pages: SequencePages
    tokens: tuple[int, ...]
    report: TransferReport
    keep_seconds: float
    expires: float
    owner: str = ""
    busy: bool = False
    turn: int = 0

    @property
    def expires_in_seconds(self) -> float:
        return 0.0 if self.busy else max(0.0, self.expires - time.monotonic())


class Sessions:
    """All sessions, the least recently used first. Safe to use from any thread.

    A turn runs on a fork, so that a session changes only when the turn has ended. An idle session
    is dropped when its TTL ends or when pages are needed; a busy one is not. `on_freed` is called
    when pages came free.
    """

    def __init__(self, *, max_sessions: int, on_freed: Callable[[], None]) -> None:
        self._shares = Shares(max_sessions)
        self._on_freed = on_freed
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        # owner and reason
        self._gone: OrderedDict[str, tuple[str, str]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    def keep(
        self,
        pages: SequencePages,
        tokens: Sequence[int],
        report: TransferReport,
        keep_seconds: float,
        owner: str = "",
        limits: TenantLimits = _NO_LIMITS,
    ) -> str:
        """Take over a sequence as a new session; returns its id.

        The owner's idle sessions are evicted while it holds more than its limits allow. Beyond
        `max_sessions` those of the owner with most sessions are.
        """
        pages.reservation.trim_to(_NOTHING)
        session_id = new_session_id()
        expires = time.monotonic() + keep_seconds
        session = Session(session_id, pages, tuple(tokens), report, keep_seconds, expires, owner)
        with self._lock:
            self._sessions[session_id] = session
            self._shares.take(owner)
        while _exceeds(self.holdings(owner), limits) and self.evict(owner):
            pass
        self._make_place(owner)
        return session_id

    def borrow(self, session_id: str, owner: str = "") -> Session:
        """Borrow a session for a turn; `give_back` or `replace` must follow.

        Raises `NotFound`, whose reason says why, or `Refused` if a turn runs already.
        """
        with self._lock:
            session = self._idle(session_id, owner)
            session.busy = True
            session.turn += 1
            return session

    def give_back(self, session: Session) -> None:
        """End a turn; the session counts as used at this moment."""
        with self._lock:
            session.busy = False
            session.expires = time.monotonic() + session.keep_seconds
            self._sessions.move_to_end(session.session_id)

    def replace(
        self,
        session: Session,
        turn: int,
        pages: SequencePages,
        tokens: Sequence[int],
        keep_seconds: float,
    ) -> str:
        """Replace the session's pages by those after a turn. Returns the session's id.

        If the turn was given back meanwhile, the new pages are released; returns "".
        """
        with self._lock:
            current = self._sessions.get(session.session_id) is session
            replaces = current and session.busy and session.turn == turn
            old = session.pages if replaces else pages
            if replaces:
                pages.reservation.trim_to(_NOTHING)
                session.pages, session.tokens = pages, tuple(tokens)
                session.keep_seconds = keep_seconds
            old.release()
        self._on_freed()
        return session.session_id if replaces else ""

    def fork(self, session_id: str, owner: str = "") -> Session:
        """Create a session in the same state. Raises `NotFound`, `Refused`, `PoolExhausted`."""
        with self._lock:
            origin = self._idle(session_id, owner)
            pages = origin.pages.fork()
        new = self.keep(pages, origin.tokens, origin.report, origin.keep_seconds, owner)
        return self.describe(new, owner)

    def describe(self, session_id: str, owner: str = "") -> Session:
        """Return a session. Raises `NotFound`."""
        with self._lock:
            return self._find(session_id, owner)

    def all(self, owner: str = "") -> list[Session]:
        """Return the sessions of one owner, the least recently used first."""
        with self._lock:
            return [session for session in self._sessions.values() if session.owner == owner]

    def holdings(self, owner: str) -> Holdings:
        """Return the number and the bytes of the owner's sessions; shared pages count in full."""
        with self._lock:
            owned = [one for one in self._sessions.values() if one.owner == owner]
            return Holdings(len(owned), sum(session.pages.resident_bytes for session in owned))

    def release(self, session_id: str, owner: str = "") -> None:
        """Drop a session. Raises `NotFound`, or `Refused` while it is busy."""
        with self._lock:
            self._drop(self._idle(session_id, owner), "SESSION_RELEASED")
        self._on_freed()

    def evict(self, owner: str = "") -> bool:
        """Drop the owner's least recently used idle session; False if there is none."""
        with self._lock:
            owned = (one for one in self._sessions.values() if one.owner == owner)
            idle = next((one for one in owned if not one.busy), None)
            if idle is not None:
                self._drop(idle, "SESSION_EVICTED")
        if idle is not None:
            self._on_freed()
        return idle is not None

    def expire(self) -> None:
        """Drop all sessions whose TTL has ended."""
        now = time.monotonic()
        with self._lock:
            over = [s for s in self._sessions.values() if not s.busy and s.expires <= now]
            for session in over:
                self._drop(session, "SESSION_EXPIRED")
        if over:
            self._on_freed()

    def close(self) -> None:
        """Drop all sessions; called when nothing runs any more."""
        with self._lock:
            for session in list(self._sessions.values()):
                self._drop(session, "SESSION_RELEASED")

    def _make_place(self, owner: str) -> None:
        """Evict until there are no more than `max_sessions`, or no one can yield another."""
        while True:
            with self._lock:
                yielding = self._shares.who_yields(owner, 0)
            if yielding is None:
                return
            if yielding != owner and self.evict(yielding):
                metrics.SHARES_YIELDED.labels("sessions").inc()
            elif not self.evict(owner):
                return

    def _find(self, session_id: str, owner: str) -> Session:
        session = self._sessions.get(session_id)
        if session is None or session.owner != owner:
            # to another tenant it was never here, whatever became of it
            if foreign_session_tag(session_id) is not None:
                raise _elsewhere()
            gone_owner, reason = self._gone.get(session_id, (owner, "SESSION_UNKNOWN"))
            reason = reason if gone_owner == owner else "SESSION_UNKNOWN"
            how = reason.removeprefix("SESSION_").lower()
            advice = "begin a new one with the whole conversation"
            raise NotFound(f"this session is {how}: {advice}", reason, {"field": "session_id"})
        return session

    def _idle(self, session_id: str, owner: str) -> Session:
        session = self._find(session_id, owner)
        if session.busy:
            raise Refused(
                "a generation is running on this session", "SESSION_BUSY", {"field": "session_id"}
            )
        return session

    def _drop(self, session: Session, reason: str) -> None:
        del self._sessions[session.session_id]
        self._shares.give_back(session.owner)
        session.pages.release()
        metrics.SESSIONS_GONE.labels(reason).inc()
        self._gone[session.session_id] = session.owner, reason
        while len(self._gone) > _REMEMBERED:
            self._gone.popitem(last=False)


def _elsewhere() -> NotFound:
    return NotFound(
        "another replica has this session, or had it before it ended: ask that one, or begin a new "
        "session with the whole conversation",
        "SESSION_ELSEWHERE",
        {"field": "session_id"},
    )


def _exceeds(held: Holdings, limits: TenantLimits) -> bool:
    too_many = 0 < limits.sessions < held.count
    return too_many or 0 < limits.bytes < held.nbytes
