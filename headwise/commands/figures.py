"""Numbers as people read them."""

from __future__ import annotations

# a dense cache itself takes a few percent more in pages and on the wire
_MOST_TELLING = 1.5
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
    """Bytes, with their share of the dense cache where that tells something.

    A page holds many rows, so that a prompt of a few words takes many times the bytes of its rows.
    """
    telling = 0 < part <= _MOST_TELLING * whole
    return f"{human_bytes(part)} ({part / whole:.0%})" if telling else human_bytes(part)
