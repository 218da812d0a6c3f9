"""Numbers as people read them."""

from __future__ import annotations

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def human_bytes(count: float) -> str:
    """Three digits and a binary unit."""
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count /= 1024
        unit += 1
    return f"{count:.0f} {_UNITS[unit]}" if unit == 0 else f"{count:.1f} {_UNITS[unit]}"


def human_seconds(seconds: float) -> str:
    """Milliseconds below one second."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def share_of(part: int, whole: int) -> str:
    """Bytes, with their share of the dense cache where it is one.

    A page holds many rows, so that the pages of a very short prompt take more than its rows would.
    """
    return f"{human_bytes(part)} ({part / whole:.0%})" if 0 < part <= whole else human_bytes(part)
