"""Keywords that had another name in an earlier release, accepted with a warning for one release."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

# earlier name → name
GENERATE = {"keep_session_seconds": "session_ttl_seconds"}
LEASE = {"keep_for_seconds": "ttl_seconds"}


def renamed(options: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return `options` under their present names.

    Warns of each earlier name (`DeprecationWarning`). Raises `TypeError` where a call has both.
    """
    known = dict(options)
    for earlier, name in names.items():
        if earlier not in known:
            continue
        if name in known:
            raise TypeError(f"give {name} or its earlier name {earlier}, not both")
        warnings.warn(f"{earlier} is called {name}", DeprecationWarning, stacklevel=3)
        known[name] = known.pop(earlier)
    return known
