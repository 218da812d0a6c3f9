"""Is a cache that was found the one that was wanted?"""

from __future__ import annotations

from kvstore.cache import Fingerprint
from kvstore.errors import FingerprintMismatch
from kvstore.tiers.base import Expected, Miss, MissReason


def mismatch(found: Fingerprint, expected: Expected) -> Miss | None:
    """The miss that names what differs, or None.

    Under a content key other tokens cannot come up by themselves: they are a store that lies.
    """
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
    if found.codec != expected.codec:
        return Miss(MissReason.OTHER_FORMAT, f"a cache whose rows are coded as {found.codec}")
    return None


def miss_of(error: FingerprintMismatch) -> Miss:
    """The miss that a mismatch means."""
    if error.field == "format_version":
        return Miss(MissReason.OTHER_FORMAT, str(error))
    return Miss(MissReason.OTHER_MODEL, str(error))
