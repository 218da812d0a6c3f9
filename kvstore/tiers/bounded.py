"""A wrapper of tiers whose calls always return by the deadline."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from kvstore.cache import CompactCache
from kvstore.errors import InvalidParameter
from kvstore.tiers.base import (
    Expected,
    Lookup,
    Miss,
    MissReason,
    PutResult,
    PutStatus,
    Tier,
)
from kvstore.tiers.content_key import ContentKey
from kvstore.tiers.deadline import Deadline

Answer = TypeVar("Answer")


class TierBusy(Exception):
    """Every worker is occupied by a call that has passed its deadline."""


class TierFailed(Exception):
    """The tier raised an error that the protocol does not allow."""


class BoundedTier:
    """A `Tier` that runs the calls of another tier on a few threads.

    A call that passes its deadline is answered with a time-out and goes on in its thread. While
    all threads are occupied by such calls, further calls are answered `UNAVAILABLE` at once. The
    threads do not keep the process alive.
    """

    def __init__(self, inner: Tier, workers: int = 4) -> None:
        if workers < 1:
            raise InvalidParameter("workers", "must be at least 1")
        self._inner = inner
        self._workers = workers
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._held = 0
        for number in range(workers):
            threading.Thread(
                target=self._serve, name=f"tier-{inner.name}-{number}", daemon=True
            ).start()

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def inner(self) -> Tier:
        """The wrapped tier."""
        return self._inner

    def close(self) -> None:
        """Let the threads end after their calls."""
        for _ in range(self._workers):
            self._calls.put(None)

    def put(
        self,
        key: ContentKey,
        cache: CompactCache,
        lifetime_seconds: float | None,
        deadline: Deadline,
    ) -> PutResult:
        try:
            return self._call(
                lambda: self._inner.put(key, cache, lifetime_seconds, deadline), deadline
            )
        except TimeoutError:
            return PutResult(PutStatus.TIMEOUT)
        except (TierBusy, TierFailed) as error:
            return PutResult(PutStatus.UNAVAILABLE, str(error))

    def get(self, key: ContentKey, expected: Expected, deadline: Deadline) -> Lookup:
        try:
            return self._call(lambda: self._inner.get(key, expected, deadline), deadline)
        except TimeoutError:
            return Miss(MissReason.TIMEOUT)
        except (TierBusy, TierFailed) as error:
            return Miss(MissReason.UNAVAILABLE, str(error))

    def delete(self, key: ContentKey, deadline: Deadline) -> bool:
        return self._call_or(lambda: self._inner.delete(key, deadline), deadline, False)

    def contains(self, key: ContentKey, deadline: Deadline) -> bool:
        return self._call_or(lambda: self._inner.contains(key, deadline), deadline, False)

    def bytes_in_use(self, namespace: str | None, deadline: Deadline) -> int | None:
        return self._call_or(lambda: self._inner.bytes_in_use(namespace, deadline), deadline, None)

    def _call_or(self, work: Callable[[], Answer], deadline: Deadline, default: Answer) -> Answer:
        try:
            return self._call(work, deadline)
        except (TimeoutError, TierBusy, TierFailed):
            return default

    def _call(self, work: Callable[[], Answer], deadline: Deadline) -> Answer:
        """Return the result of `work`.

        Raises `TimeoutError`, `TierBusy`, `TierFailed` and `InvalidParameter`.
        """
        with self._lock:
            if self._held == self._workers:
                raise TierBusy(f"all {self._workers} workers of {self.name} are occupied")
        future: Future[Answer] = Future()
        self._calls.put(lambda: _run(future, work))
        try:
            return future.result(deadline.remaining_seconds)
        except TimeoutError:
            if not future.cancel():
                self._abandon(future)
            raise
        except InvalidParameter:
            raise
        except Exception as error:
            raise TierFailed(f"{type(error).__name__}: {error}") from error

    def _abandon(self, future: Future[Answer]) -> None:
        """Count a worker as occupied until this call ends."""
        with self._lock:
            self._held += 1
        future.add_done_callback(self._release)

    def _release(self, future: Future[Answer]) -> None:
        with self._lock:
            self._held -= 1

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


def _run(future: Future[Answer], work: Callable[[], Answer]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    # a worker must survive every error of its store
    except BaseException as error:
        future.set_exception(error)
