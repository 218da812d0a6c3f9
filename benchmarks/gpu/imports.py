"""Finds at once what is missing: versions, imports and the device, before anything is measured."""

from __future__ import annotations

import importlib
import time
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.gpu.figures import Recorder
from benchmarks.gpu.parts import IMPORTS
from benchmarks.gpu.requirements import NEEDED, missing


def check(folder: Path, *, tiny: bool) -> int:
    """Import everything and ask for the device; 1 if anything is not as it must be."""
    wrong = missing()
    for module, _, _ in NEEDED:
        began = time.monotonic()
        try:
            importlib.import_module(module)
        except Exception as error:
            # whatever a package raises while it is imported, the others are to be tried
            wrong.append(f"import {module}: {type(error).__name__}: {error}")
        print(f"{module} {time.monotonic() - began:.1f} s", flush=True)
    machine = "none"
    try:
        machine = _device(tiny=tiny)
    except Exception as error:
        wrong.append(f"no device: {type(error).__name__}: {error}")
    recorder = Recorder(folder / f"{IMPORTS}.json", IMPORTS, machine, {"tiny": tiny})
    figure = Figure(len(wrong), "tests", "imports, versions and the device", 0)
    recorder.add("imports_wrong", figure)
    for line in wrong:
        print(f"wrong: {line}", flush=True)
    if wrong:
        print("`make gpu-wheels` fetches what such a machine lacks", flush=True)
    return 1 if wrong else 0


def _device(*, tiny: bool) -> str:
    """Return the device's name and memory once a small computation ran there."""
    import torch

    device = torch.device("cpu" if tiny else "cuda")
    if float(torch.ones(8, device=device).sum()) != 8:
        raise RuntimeError("eight ones do not sum to eight")
    if tiny:
        return "a CPU"
    properties = torch.cuda.get_device_properties(device)
    return (
        f"{properties.name}, {properties.multi_processor_count} multiprocessors, "
        f"{properties.total_memory >> 30} GiB, capability {properties.major}.{properties.minor}, "
        f"torch for CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    )
