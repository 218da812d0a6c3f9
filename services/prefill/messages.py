"""Descriptions of stored caches as protobuf messages."""

from __future__ import annotations

from headwise.v1 import cache_pb2, prefill_pb2
from kvstore.row_codecs import RowCodec
from kvstore.tiers import PutStatus
from services.prefill.store.cache_store import CacheStore, Found
from services.prefill.store.leases import Lease
from services.runtime.serving.convert import codec_to_proto, recorded_policy


def lease_to_proto(lease: Lease, store: CacheStore) -> cache_pb2.StoredCache:
    return cache_pb2.StoredCache(
        handle=lease.handle,
        key=lease.key.digest,
        tokens=lease.tokens,
        cache_bytes=lease.cache_bytes,
        expires_in_seconds=store.expires_in_seconds(lease),
        policy=recorded_policy(lease.fingerprint),
        codec=codec_to_proto(RowCodec.parse(lease.fingerprint.codec)),
    )


def kept_to_proto(kept: Lease | PutStatus, store: CacheStore) -> prefill_pb2.KeptCache:
    if isinstance(kept, Lease):
        return prefill_pb2.KeptCache(cache=lease_to_proto(kept, store))
    return prefill_pb2.KeptCache(refusal=kept.value)


def found_to_proto(found: Found) -> cache_pb2.StoredCache:
    """Describe a cache that was found by its key, without a lease."""
    return cache_pb2.StoredCache(
        key=found.key.digest,
        tokens=found.cache.next_position,
        cache_bytes=found.cache.nbytes,
        policy=recorded_policy(found.cache.fingerprint),
        codec=codec_to_proto(RowCodec.parse(found.cache.fingerprint.codec)),
    )
