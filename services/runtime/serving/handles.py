"""The grammar of handles, by which clients name stored caches.

    <digest of the cache's content key: 64 hex digits>[.<lease: 32 hex digits>]

A handle with a lease is what a client gets for a cache that is kept for it. The digest alone also
names the cache, for as long as any lease on the cache runs.
"""

from __future__ import annotations

import dataclasses
import re

from headwise.errors import InvalidRequest
from services.runtime.replicas.tag import new_lease

_HANDLE = re.compile(r"(?P<digest>[0-9a-f]{64})(\.(?P<lease>[0-9a-f]{32}))?")


@dataclasses.dataclass(frozen=True, slots=True)
class Handle:
    """A handle in its parts; `str` gives the form that clients see."""

    digest: str
    lease: str | None = None

    @classmethod
    def of_new_lease(cls, digest: str) -> Handle:
        """Return a handle with a random lease, which no other handle has."""
        return cls(digest, new_lease())

    @classmethod
    def parse(cls, text: str) -> Handle:
        """Return the parts of a handle. Raises `InvalidRequest` for any other text."""
        match = _HANDLE.fullmatch(text)
        if match is None:
            raise InvalidRequest("this is no handle", "MALFORMED_HANDLE", {"field": "handle"})
        return cls(match["digest"], match["lease"])

    def __str__(self) -> str:
        return self.digest if self.lease is None else f"{self.digest}.{self.lease}"
