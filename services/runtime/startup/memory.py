"""Checks of sizes against the memory of the machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from services.runtime.startup.problem import Problem

# limits of the control group, of version 2 and 1; "max" and huge numbers are none
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def host_memory_bytes() -> int:
    """Memory of the machine, or of the container where that is less."""
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in _LIMITS:
        try:
            sizes.append(int(Path(name).read_text()))
        except (OSError, ValueError):
            continue
    return min(sizes)


def device_memory_bytes(device: str) -> int:
    """Memory in which a device holds a pool."""
    if device.partition(":")[0] == "cuda":
        return int(torch.cuda.get_device_properties(torch.device(device)).total_memory)
    return host_memory_bytes()


def size_problems(option: str, nbytes: int, memory_bytes: int) -> Iterator[Problem]:
    """Problems of a size in bytes that is taken from the memory."""
    if nbytes > memory_bytes:
        found = f"{option} {nbytes}: there are {memory_bytes} bytes of memory"
        yield Problem(option[2:], found, f"Give a smaller {option}.")
