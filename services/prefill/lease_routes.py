"""The requests of CacheService that name a lease, for routing to the prefill that granted it."""

from __future__ import annotations

from typing import Any

from headwise.errors import HeadwiseError, NotFound
from headwise.v1 import store_pb2
from services.runtime.replicas.routing import Route, Routes
from services.runtime.replicas.tag import foreign_lease_tag


def _foreign_tag(request: Any) -> str | None:
    return foreign_lease_tag(request.handle)


def _gone() -> HeadwiseError:
    return NotFound(
        "the replica that granted this lease is gone: keep the cache again",
        "LEASE_REPLICA_GONE",
        {"field": "handle"},
    )


_LEASE = Route(_foreign_tag, _gone)
# without its lease a handle works like its key: a shared store may have the cache
_CACHE = Route(_foreign_tag, None)
LEASE_ROUTES: Routes = {
    store_pb2.RenewLeaseRequest: _LEASE,
    store_pb2.ReleaseLeaseRequest: _LEASE,
    store_pb2.FetchCacheRequest: _CACHE,
    store_pb2.DescribeCacheRequest: _CACHE,
}
