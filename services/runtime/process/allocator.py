"""Settings of the C library for memory that was freed."""

from __future__ import annotations

import ctypes

# of malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

# glibc returns the pages of every freed message of 1 MiB to the kernel, which has to clear them
# again for the next message: frames are made at .3 GB/s without these settings, at 2.8 with them
_TRIM_BYTES = 128 << 20
# the upper limit of glibc's own adaptive threshold
_MMAP_BYTES = 32 << 20


def keep_freed_memory() -> None:
    """Let the process reuse freed messages; does nothing where the C library is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)


def give_back_freed_memory() -> None:
    """Return freed memory to the kernel, in milliseconds. Does nothing without glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
