"""Fair shares of what tenants have in common: places, bytes, turns.

One rule decides about whatever is counted. While there is room, every request is granted, so a
tenant that is alone may hold everything. Without room, the tenant that would hold most makes room,
with the request counted. A tenant that holds no more than the capacity divided by the number of
tenants is therefore never refused, and never gives anything up (max-min fairness; Bertsekas and
Gallager, Data Networks, section 6.5.2).

Turns have no capacity. The next turn goes to the tenant that has used least, as in start-time fair
queueing (Goyal, Vin and Cheng, 1996).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping


def who_yields(held: Mapping[str, float], asking: str, amount: float) -> str:
    """Return the tenant that would hold most if `asking` got `amount` more.

    In a tie it is the asking tenant, so that nothing moves to and fro between equals.
    """
    most = max(held, key=held.__getitem__, default=asking)
    return asking if held.get(most, 0) <= held.get(asking, 0) + amount else most


class Shares:
    """The holdings of all tenants in one thing of bounded capacity. Not thread-safe."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._held: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return self._held.total()

    @property
    def tenants(self) -> int:
        """The number of tenants that hold something."""
        return len(self._held)

    @property
    def largest(self) -> int:
        """The holding of the tenant that holds most."""
        return max(self._held.values(), default=0)

    def held(self, tenant: str) -> int:
        return self._held[tenant]

    def holdings(self) -> Counter[str]:
        """Return a copy of all holdings."""
        return self._held.copy()

    def has_room(self, amount: int = 1) -> bool:
        return self.total + amount <= self.capacity

    def who_yields(self, tenant: str, amount: int = 1) -> str | None:
        """Return the tenant that has to make room for a request; None while there is room."""
        return None if self.has_room(amount) else who_yields(self._held, tenant, amount)

    def take(self, tenant: str, amount: int = 1) -> None:
        """Count what a tenant was given."""
        self._held[tenant] += amount

    def give_back(self, tenant: str, amount: int = 1) -> None:
        self._held[tenant] -= amount
        if self._held[tenant] <= 0:
            del self._held[tenant]


class Turns:
    """Decides whose turn is next, from what each tenant has used. Not thread-safe.

    A tenant that had nothing to do begins with the use of the tenant whose turn was last, so that
    no tenant saves up turns.
    """

    def __init__(self) -> None:
        self._used: dict[str, float] = {}
        self._level = 0.0

    def order(self, waiting: Iterable[str]) -> list[str]:
        """Return the waiting tenants, the one that has used least first; in a tie as they come."""
        return sorted(dict.fromkeys(waiting), key=self.used)

    def begin(self, tenant: str) -> None:
        """Note that a tenant's turn begins."""
        self._level = max(self._level, self.used(tenant))
        # tenants at the level are as good as new ones
        self._used = {name: used for name, used in self._used.items() if used > self._level}

    def used(self, tenant: str) -> float:
        return max(self._used.get(tenant, 0.0), self._level)

    def charge(self, tenant: str, amount: float) -> None:
        """Add what a turn has cost its tenant."""
        self._used[tenant] = self.used(tenant) + amount
