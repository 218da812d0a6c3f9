"""The identity of caches, one invariant for every place they come from:

    A cache that is found, fetched, reused, forked, swapped back or read from a file is the one that
    was asked for, or the answer is a typed refusal.

A content key is a digest of a cache's fingerprint and its tenant's namespace. So the fingerprint
that a cache carries must give the key under which the cache was asked for. Tiers compare them
through `identity_miss`, decode for caches from the wire through `require_key`. docs/identity.md
lists every place with its check and its test.
"""

from __future__ import annotations

from kvstore.cache import Fingerprint
from kvstore.errors import CorruptCache, FingerprintMismatch
from kvstore.tiers.base import Expected, Miss, MissReason
from kvstore.tiers.content_key import ContentKey


def require_key(found: Fingerprint, key: ContentKey) -> None:
    """Raise `CorruptCache` unless a cache with this fingerprint is named by `key`.

    A store or a peer that swaps, renames or replays whole caches keeps their checksums intact.
    """
    if ContentKey.of(found, key.namespace) != key:
        raise CorruptCache("a cache of another content key lies under this one")


def identity_miss(found: Fingerprint, key: ContentKey, expected: Expected) -> Miss | None:
    """Return the miss that names what differs, or None.

    Raises `CorruptCache` for a cache that is not the key's.
    """
    require_key(found, key)
    model = expected.model if isinstance(expected, Fingerprint) else expected
    try:
        model.require_same(found.model)
    except FingerprintMismatch as error:
        return miss_of(error)
    if not isinstance(expected, Fingerprint):
        return None
    if (found.policy, found.policy_parameters) != (expected.policy, expected.policy_parameters):
        return Miss(MissReason.OTHER_POLICY, f"a cache of policy {found.policy!r}")
    if found.token_digest != expected.token_digest:
        return Miss(MissReason.CORRUPT, "a cache of other tokens")
    if (found.codec, found.format_version) != (expected.codec, expected.format_version):
        detail = f"rows coded as {found.codec}, in format {found.format_version}"
        return Miss(MissReason.OTHER_FORMAT, f"a cache with {detail}")
    return None


def miss_of(error: FingerprintMismatch) -> Miss:
    """The miss that a mismatch means."""
    if error.field == "format_version":
        return Miss(MissReason.OTHER_FORMAT, str(error))
    return Miss(MissReason.OTHER_MODEL, str(error))
