"""The places of sequences in the batch, and the tenants' shares of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Protocol

from kvstore.shares import Shares, who_yields


class Owned(Protocol):
    """Something of a tenant."""

    @property
    def owner(self) -> str:
        """The owner's tenant, or "" for none."""


class Places:
    """The `capacity` sequences that may run, of which preempted ones hold no place.

    `take` and `give_back` belong to the event loop; the rest may be called from any thread.
    """

    def __init__(self, capacity: int) -> None:
        self._admitted = Shares(capacity)

    @property
    def admitted(self) -> int:
        """Sequences that were admitted and have not ended, preempted ones included."""
        return self._admitted.total

    def take(self, tenant: str, answers: int) -> None:
        self._admitted.take(tenant, answers)

    def give_back(self, tenant: str, answers: int) -> None:
        self._admitted.give_back(tenant, answers)

    def admitted_of(self, tenant: str) -> int:
        return self._admitted.held(tenant)

    def free(self, preempted: Iterable[Owned]) -> int:
        """Return the number of free places."""
        return self._admitted.capacity - self._active(preempted).total()

    def comes_first(self, tenant: str, answers: int, preempted: Iterable[Owned]) -> bool:
        """Whether a new generation comes before all preempted sequences.

        It does where its tenant would run no more than each of theirs does.
        """
        preempted = tuple(preempted)
        active = self._active(preempted)
        return all(active[one.owner] >= active[tenant] + answers for one in preempted)

    def runs_more(self, owner: str, tenant: str, answers: int, preempted: Iterable[Owned]) -> bool:
        """Whether the owner, with a sequence less, still runs as many as `tenant` would."""
        active = self._active(preempted)
        return active[owner] > active[tenant] + answers

    def yielding(self, tenant: str, answers: int, preempted: Iterable[Owned]) -> str | None:
        """Return the tenant whose sequence has to go for these answers; None if none has to."""
        active = self._active(preempted)
        if active.total() + answers <= self._admitted.capacity:
            return None
        yielding = who_yields(active, tenant, answers)
        return None if yielding == tenant else yielding

    def _active(self, preempted: Iterable[Owned]) -> Counter[str]:
        active = self._admitted.holdings()
        active.subtract(one.owner for one in preempted)
        return active
