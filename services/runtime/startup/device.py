"""Checks of the device, the data type and the threads."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch

from services.runtime.startup.problem import Problem

_DEVICES = ("cpu", "cuda")
# OpenMP ends the process if it cannot start a thread; above this many, threads only wait
_MOST_THREADS_PER_CORE = 16


def device_problems(name: str) -> Iterator[Problem]:
    """Problems of `--device`."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in _DEVICES:
        found = f"--device {name}: {name!r} is no device that serves"
        yield Problem("device", found, "Give --device cpu or cuda.")
    elif device.type == "cuda" and not torch.cuda.is_available():
        advice = "Install the driver and a CUDA build of torch, or give --device cpu."
        yield Problem("device", f"--device {name}: torch sees no CUDA device", advice)
    elif device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = f"--device {name}: {torch.cuda.device_count()} CUDA devices, and this is none"
        yield Problem("device", found, "Count from cuda:0.")


def dtype_problems(dtype: str, device: str) -> Iterator[Problem]:
    """Problems of `--dtype` on this device."""
    # a product of 512 rows takes 18 times as long in float16 as in float32 on two cores, and a
    # third of the time in bfloat16: prefill's first calibration took more than 90 s
    if dtype == "float16" and device.partition(":")[0] == "cpu":
        found = "--dtype float16: a CPU computes it many times slower than float32"
        yield Problem("dtype", found, "Give --dtype bfloat16 or float32, or --device cuda.")


def thread_problems(threads: int) -> Iterator[Problem]:
    """Problems of `--threads`."""
    cores = os.cpu_count() or 1
    if threads > _MOST_THREADS_PER_CORE * cores:
        found = f"--threads {threads}: this machine has {cores} cores"
        yield Problem("threads", found, f"Give at most {_MOST_THREADS_PER_CORE * cores}.")
