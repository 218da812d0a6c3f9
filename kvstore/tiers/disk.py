"""Caches in files of one folder, which one process owns; they outlive it.

`<folder>/<namespace>/<digest>-<until>.safetensors`: `until` is the Unix second at which the cache
expires, 0 for never. A file's time of modification is that of its last use, so that the order of
eviction survives a restart as well.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import math
import os
import pathlib
import threading
import time
from collections.abc import Callable

from kvstore.cache import CompactCache
from kvstore.errors import (
    CorruptCache,
    FingerprintMismatch,
    InvalidParameter,
    LimitExceeded,
)
from kvstore.tiers.base import (
    Expected,
    Hit,
    Lookup,
    Miss,
    MissReason,
    PutResult,
    PutStatus,
)
from kvstore.tiers.content_key import ContentKey
from kvstore.tiers.deadline import Deadline
from kvstore.tiers.file import load_cache, save_cache
from kvstore.tiers.identity import identity_miss, miss_of
from kvstore.tiers.ledger import Budget, Entry, Ledger
from kvstore.wire.limits import DEFAULT_LIMITS, WireLimits

_SUFFIX = ".safetensors"
_LOCK_NAME = ".lock"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class DiskTier:
    """A `Tier` that may overrun deadlines. Evicts the least recently used; pinned caches stay.

    What a crash left half written is removed at the start; a file that does not agree with its own
    digest is a miss and is removed. While a cache is being written its file is not yet counted.
    Raises `InvalidParameter` if another process owns the folder.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        budget: Budget,
        name: str = "disk",
        limits: WireLimits = DEFAULT_LIMITS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = pathlib.Path(folder)
        self._name = name
        self._limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self._budget = budget
        self._ledger = Ledger(budget)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._owner = _own(self._folder)
        self._take_stock()

    def close(self) -> None:
        """Give the folder up; its caches stay."""
        os.close(self._owner)

    @property
    def name(self) -> str:
        return self._name

    @property
    def evictions(self) -> int:
        return self._ledger.evictions

    def put(
        self,
        key: ContentKey,
        cache: CompactCache,
        lifetime_seconds: float | None,
        deadline: Deadline,
    ) -> PutResult:
        expires_at = None if lifetime_seconds is None else self._clock() + lifetime_seconds
        entry = Entry(key, 0, None if expires_at is None else float(math.ceil(expires_at)))
        path = self._path(entry)
        if cache.nbytes > self._budget.total_bytes:
            # a hopeless one is not even written
            return PutResult(PutStatus.FULL)
        try:
            path.parent.mkdir(exist_ok=True, mode=0o700)
            save_cache(cache, path)
            return self._admit(dataclasses.replace(entry, nbytes=path.stat().st_size))
        except OSError as error:
            status = PutStatus.FULL if error.errno in _NO_ROOM else PutStatus.UNAVAILABLE
            return PutResult(status, str(error))

    def get(self, key: ContentKey, expected: Expected, deadline: Deadline) -> Lookup:
        entry = self._current(key)
        if entry is None:
            with self._lock:
                return Miss(self._ledger.why_gone(key))
        found = self._load(entry, expected)
        if isinstance(found, Hit):
            self._touch(entry)
        return found

    def delete(self, key: ContentKey, deadline: Deadline) -> bool:
        try:
            self._remove(key, MissReason.ABSENT)
        except OSError:
            return False
        return True

    def contains(self, key: ContentKey, deadline: Deadline) -> bool:
        return self._current(key) is not None

    def bytes_in_use(self, namespace: str | None, deadline: Deadline) -> int:
        self._expire()
        with self._lock:
            return self._ledger.bytes_in_use(namespace)

    def pin(self, key: ContentKey) -> bool:
        """Keep a cache from eviction until `unpin`, counted; False if it is not here."""
        with self._lock:
            return self._ledger.pin(key, self._clock())

    def unpin(self, key: ContentKey) -> None:
        with self._lock:
            self._ledger.unpin(key)

    def _admit(self, entry: Entry) -> PutResult:
        """Enter a file that is there already; unlink those that go for it, or itself."""
        with self._lock:
            previous = self._ledger.peek(entry.key, self._clock())
            status, gone = self._ledger.admit(entry, self._clock())
            kept = entry if status is PutStatus.STORED else previous
            doomed = {self._path(e) for e in (*gone, entry, previous) if e is not None}
            for path in doomed - ({self._path(kept)} if kept is not None else set()):
                path.unlink(missing_ok=True)
        return PutResult(status)

    def _load(self, entry: Entry, expected: Expected) -> Lookup:
        try:
            cache = load_cache(self._path(entry), self._limits)
            miss = identity_miss(cache.fingerprint, entry.key, expected)
        except FileNotFoundError:
            # evicted since we looked, or removed by hand
            self._remove(entry.key, MissReason.EVICTED)
            return Miss(MissReason.EVICTED)
        except FingerprintMismatch as error:
            return miss_of(error)
        except (CorruptCache, LimitExceeded) as error:
            self._remove(entry.key, MissReason.CORRUPT)
            return Miss(MissReason.CORRUPT, str(error))
        except OSError as error:
            return Miss(MissReason.UNAVAILABLE, str(error))
        return miss or Hit(cache, entry.expires_at)

    def _current(self, key: ContentKey) -> Entry | None:
        self._expire()
        with self._lock:
            return self._ledger.peek(key, self._clock())

    def _touch(self, entry: Entry) -> None:
        now = self._clock()
        with self._lock:
            self._ledger.touch(entry.key)
        try:
            os.utime(self._path(entry), (now, now))
        except OSError:
            # evicted while it was read, or on a disk that has become read-only: the cache in hand
            # is whole all the same
            return

    def _expire(self) -> None:
        with self._lock:
            for entry in self._ledger.expire(self._clock()):
                self._path(entry).unlink(missing_ok=True)

    def _remove(self, key: ContentKey, reason: MissReason) -> None:
        with self._lock:
            entry = self._ledger.remove(key, reason)
            if entry is not None:
                self._path(entry).unlink(missing_ok=True)

    def _path(self, entry: Entry) -> pathlib.Path:
        until = 0 if entry.expires_at is None else int(entry.expires_at)
        return self._folder / entry.key.namespace / f"{entry.key.digest}-{until}{_SUFFIX}"

    def _take_stock(self) -> None:
        """Enter what an earlier process left, oldest use first; remove what is no cache of ours."""
        found = []
        for path in self._folder.glob("*/*"):
            entry = _entry_of(path)
            if entry is None:
                # a temporary name: its writer died before the rename
                if path.name.startswith(".") and f"{_SUFFIX}." in path.name:
                    path.unlink(missing_ok=True)
                continue
            found.append((path.stat().st_mtime_ns, entry))
        for _, entry in sorted(found, key=lambda pair: pair[0]):
            self._admit(entry)


def _entry_of(path: pathlib.Path) -> Entry | None:
    """Return the entry that a file's name describes, or None for another file."""
    digest, separator, until = path.name.removesuffix(_SUFFIX).partition("-")
    if path.suffix != _SUFFIX or not separator or not until.isdecimal():
        return None
    try:
        key = ContentKey(path.parent.name, digest)
    except InvalidParameter:
        return None
    return Entry(key, path.stat().st_size, float(until) if int(until) else None)


def _own(folder: pathlib.Path) -> int:
    """A lock on the folder that goes with the process, however it ends."""
    handle = os.open(folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise InvalidParameter("folder", f"{folder} belongs to another process") from error
    return handle
