"""Freed memory is kept while it may be used again, and given back when it will not."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

_PROGRAM = """
import psutil
from services.runtime.process.allocator import give_back_freed_memory, keep_freed_memory

def resident():
    return psutil.Process().memory_info().rss >> 20

keep_freed_memory()
before = resident()
messages = [bytearray(1 << 20) for _ in range(96)]
# the last stays, so that the end of the heap cannot be given back by itself
last = messages.pop()
messages.clear()
kept = resident()
give_back_freed_memory()
print(kept - before, resident() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="no glibc")
def test_freed_memory_is_returned_to_the_kernel() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=60, check=True
    )
    kept, left = map(int, ended.stdout.split())
    assert kept > 80
    assert left < 16
