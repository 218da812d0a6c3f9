"""How the C library keeps memory that was freed."""

from __future__ import annotations

import ctypes

# of malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

# messages of 1 MiB come and go by the hundred, and glibc gives their pages back to the kernel each
# time, which then has to clear them anew: frames were made at .3 GB/s, and with these at 2.8
_TRIM_BYTES = 128 << 20
# what glibc's own threshold grows to at most
_MMAP_BYTES = 32 << 20


def keep_freed_memory() -> None:
    """Let freed messages be reused; does nothing where the C library is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)


def give_back_freed_memory() -> None:
    """Return what is kept to the kernel; milliseconds. Does nothing where there is no glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
