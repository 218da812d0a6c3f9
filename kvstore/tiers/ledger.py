"""The books of a tier with a byte budget: what it holds, what goes next, what is gone and why.

Knows no bytes but their number and does no input or output; the tier holds its lock around it.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping

from kvstore.errors import InvalidParameter
from kvstore.shares import who_yields
from kvstore.tiers.base import MissReason, PutStatus
from kvstore.tiers.content_key import ContentKey

# why keys are gone is remembered for this many: about 200 bytes each
_REMEMBERED_KEYS = 4096


@dataclasses.dataclass(frozen=True, slots=True)
class Budget:
    """Most bytes in all, and in single namespaces; a namespace without a quota may fill it all.

    Where others need room, the namespace that holds most evicts first (`kvstore.shares`).

    `each_bytes` is the quota of every namespace that `quota_bytes` does not name; None for none.
    """

    total_bytes: int
    quota_bytes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    each_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.total_bytes < 0:
            raise InvalidParameter("total_bytes", "must not be negative")
        for namespace, quota in self.quota_bytes.items():
            if quota < 0:
                raise InvalidParameter(f"quota_bytes.{namespace}", "must not be negative")

    def limits(self, namespace: str) -> bool:
        """Whether the namespace has a quota."""
        return self.each_bytes is not None or namespace in self.quota_bytes

    def quota_of(self, namespace: str) -> int:
        otherwise = self.total_bytes if self.each_bytes is None else self.each_bytes
        return self.quota_bytes.get(namespace, otherwise)


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One cache held; `expires_at` in Unix seconds, None for never."""

    key: ContentKey
    nbytes: int
    expires_at: float | None

    def expired(self, now: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now


class Ledger:
    """Entries by least recent use, with pins, quotas and expiry. Not thread-safe."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        # the least recently used first
        self._entries: collections.OrderedDict[ContentKey, Entry] = collections.OrderedDict()
        self._bytes: collections.Counter[str] = collections.Counter()
        self._pins: collections.Counter[ContentKey] = collections.Counter()
        self._gone: collections.OrderedDict[ContentKey, MissReason] = collections.OrderedDict()
        self.evictions = 0
        self.expirations = 0

    def bytes_in_use(self, namespace: str | None = None) -> int:
        return self._bytes.total() if namespace is None else self._bytes[namespace]

    def peek(self, key: ContentKey, now: float) -> Entry | None:
        """The entry, unless it has expired; not an access."""
        entry = self._entries.get(key)
        return None if entry is None or entry.expired(now) else entry

    def touch(self, key: ContentKey) -> None:
        """An access: this entry goes last now."""
        if key in self._entries:
            self._entries.move_to_end(key)

    def why_gone(self, key: ContentKey) -> MissReason:
        return self._gone.get(key, MissReason.ABSENT)

    def admit(self, entry: Entry, now: float) -> tuple[PutStatus, list[Entry]]:
        """Take an entry in place of any of its key; returns who has to go for it.

        Unless `STORED` nothing has changed, except that the expired are among those who go.
        """
        gone = self.expire(now)
        status, victims = self._victims_for(entry)
        if status is not PutStatus.STORED:
            return status, gone
        for victim in victims:
            self._drop(victim, MissReason.EVICTED)
            self.evictions += 1
        previous = self._entries.pop(entry.key, None)
        if previous is not None:
            self._bytes[previous.key.namespace] -= previous.nbytes
        self._entries[entry.key] = entry
        self._bytes[entry.key.namespace] += entry.nbytes
        self._gone.pop(entry.key, None)
        return status, gone + victims

    def expire(self, now: float) -> list[Entry]:
        """Drop and return what has expired, pinned or not."""
        expired = [entry for entry in self._entries.values() if entry.expired(now)]
        for entry in expired:
            self._drop(entry, MissReason.EXPIRED)
            self.expirations += 1
        return expired

    def remove(self, key: ContentKey, reason: MissReason = MissReason.ABSENT) -> Entry | None:
        """Drop an entry at its owner's word, pinned or not."""
        entry = self._entries.get(key)
        if entry is not None:
            self._drop(entry, reason)
        return entry

    def pin(self, key: ContentKey, now: float) -> bool:
        """Keep from eviction until unpinned as often; False if there is nothing to pin."""
        if self.peek(key, now) is None:
            return False
        self._pins[key] += 1
        return True

    def pinned(self, key: ContentKey) -> bool:
        """Whether an entry is held and pinned."""
        return self._pins[key] > 0

    def unpin(self, key: ContentKey) -> None:
        """Take back one `pin`; nothing happens if the entry has expired or was removed since."""
        if self._pins[key] > 1:
            self._pins[key] -= 1
        else:
            del self._pins[key]

    def _victims_for(self, entry: Entry) -> tuple[PutStatus, list[Entry]]:
        """Choose entries to evict: for the quota in its namespace, then by shares in all."""
        own, quota = entry.key.namespace, self._budget.quota_of(entry.key.namespace)
        if entry.nbytes > self._budget.total_bytes:
            return PutStatus.FULL, []
        previous = self._entries.get(entry.key)
        replaced = 0 if previous is None else previous.nbytes
        evictable = [
            e for e in self._entries.values() if e.key != entry.key and not self._pins[e.key]
        ]
        over_quota = self._bytes[own] - replaced + entry.nbytes - quota
        victims, over_quota = _take([e for e in evictable if e.key.namespace == own], over_quota)
        if over_quota > 0:
            limited = self._budget.limits(own)
            return PutStatus.OVER_QUOTA if limited else PutStatus.FULL, []
        freed = sum(e.nbytes for e in victims)
        held = collections.Counter(self._bytes)
        held[own] -= replaced + freed
        left = [e for e in self._entries.values() if e.key != entry.key and e not in victims]
        while held.total() + entry.nbytes > self._budget.total_bytes:
            victim = self._yielded(who_yields(held, own, entry.nbytes), own, left)
            if victim is None:
                return PutStatus.FULL, []
            left.remove(victim)
            victims.append(victim)
            held[victim.key.namespace] -= victim.nbytes
        return PutStatus.STORED, victims

    def _yielded(self, yielding: str, own: str, left: list[Entry]) -> Entry | None:
        """Return the entry that the yielding namespace gives up; None if it has none.

        A pin protects from its own namespace, and from another one while it is within its share.
        """
        entries = [entry for entry in left if entry.key.namespace == yielding]
        unpinned = [entry for entry in entries if not self._pins[entry.key]]
        if yielding == own:
            return next(iter(unpinned), None)
        return next(iter(unpinned or entries), None)

    def _drop(self, entry: Entry, reason: MissReason) -> None:
        del self._entries[entry.key]
        self._bytes[entry.key.namespace] -= entry.nbytes
        del self._pins[entry.key]
        self._gone[entry.key] = reason
        self._gone.move_to_end(entry.key)
        if len(self._gone) > _REMEMBERED_KEYS:
            self._gone.popitem(last=False)


def _take(candidates: list[Entry], needed: int) -> tuple[list[Entry], int]:
    """Return the first candidates that free `needed` bytes, and the bytes still missing."""
    taken = []
    for entry in candidates:
        if needed <= 0:
            break
        taken.append(entry)
        needed -= entry.nbytes
    return taken, needed
