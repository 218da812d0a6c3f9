"""The tag of this process, in which the ids of its sessions and its leases end.

A tag is random and new with every start, so it tells nothing of the machine, and an id with the tag
of a process that has ended is never found at a later process of the same address.
"""

from __future__ import annotations

import re
import secrets

from headwise.replicas import SESSION_ID

# 2 ** 48 tags: two of 100,000 processes agree with a chance of 2 in 100,000
_TAG_BYTES = 6
_SESSION_BYTES = 16
_LEASE_BYTES = 10
_LEASE = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{20}([0-9a-f]{12})")

OWN_TAG = secrets.token_hex(_TAG_BYTES)


def new_session_id() -> str:
    """Return a random id that ends in this process's tag."""
    return secrets.token_hex(_SESSION_BYTES) + OWN_TAG


def new_lease() -> str:
    """Return the lease of a handle, which ends in this process's tag; 32 digits, as ever."""
    return secrets.token_hex(_LEASE_BYTES) + OWN_TAG


def foreign_session_tag(session_id: str) -> str | None:
    """Return the tag of another process that the session's id ends in; None if there is none."""
    return _foreign(SESSION_ID, session_id)


def foreign_lease_tag(handle: str) -> str | None:
    """Return the tag of another process that the handle's lease ends in; None if there is none."""
    return _foreign(_LEASE, handle)


def _foreign(form: re.Pattern[str], name: str) -> str | None:
    found = form.fullmatch(name)
    return None if found is None or found[1] == OWN_TAG else found[1]
