"""Agreement on the format of a cache between services of different versions."""

from __future__ import annotations

from collections.abc import Sequence

from headwise.errors import Refused
from kvstore.cache import CODED_FORMAT_VERSION, FORMAT_VERSION, FORMAT_VERSIONS

# formats of callers and of prefill services that name none, because they predate the field
_READ_BY_DEFAULT = (FORMAT_VERSION, CODED_FORMAT_VERSION)
_WRITTEN_BY_DEFAULT = (FORMAT_VERSION,)


def require_read(needed: int, read: Sequence[int]) -> None:
    """Raise `Refused` where a caller that reads these formats cannot read the one needed."""
    known = read or _READ_BY_DEFAULT
    if needed not in known:
        raise Refused(
            f"the cache needs format {needed}, the caller reads {_listed(known)}: "
            "upgrade it, or ask for another policy or codec",
            "CACHE_FORMAT_NOT_READ",
            {"field": "cache_formats", "needed": str(needed), "read": _listed(known)},
        )


def require_common(written: Sequence[int]) -> None:
    """Raise `Refused` where none of the formats a prefill service writes is read here."""
    theirs = written or _WRITTEN_BY_DEFAULT
    if not set(theirs) & set(FORMAT_VERSIONS):
        ours = _listed(FORMAT_VERSIONS)
        raise Refused(
            f"prefill writes cache formats {_listed(theirs)}, decode reads {ours}",
            "NO_COMMON_CACHE_FORMAT",
            {"ours": ours, "theirs": _listed(theirs)},
        )


def _listed(formats: Sequence[int]) -> str:
    return ", ".join(map(str, formats))
