"""All measurements in one run on one device."""

from __future__ import annotations

import traceback
from collections.abc import Callable

import torch
from rich.console import Console

from benchmarks.figures import Figure
from benchmarks.gpu import (
    ceilings,
    choice,
    column_mass,
    compact,
    decode_attention,
    decode_step,
    retain,
)
from benchmarks.gpu.figures import document, table
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.timing import Timer


def run(sizes: Sizes, device: torch.device, keep: Callable[[dict[str, object]], None]) -> bool:
    """Measure and print; whether everything could be measured.

    `keep` is given what the JSON file is to hold after each part: one that fails costs no other.
    """
    timer = Timer(device, sizes.flush_bytes, sizes.repeats)
    limits = ceilings.measure(sizes, timer)
    figures = limits.figures()
    parts: dict[str, Callable[[], dict[str, Figure]]] = {
        "decode attention": lambda: decode_attention.measure(sizes, timer, limits),
        "column mass": lambda: column_mass.measure(sizes, timer),
        "compact": lambda: compact.measure(sizes, timer, limits),
        "retain": lambda: retain.measure(sizes, timer),
        "choosing tokens": lambda: choice.measure(sizes, timer),
        "a decode step": lambda: decode_step.measure(sizes, timer, limits),
        "a fused decode step": lambda: decode_step.measure_fused(sizes, timer, limits),
    }
    failed = []
    for name, measure in parts.items():
        try:
            figures |= measure()
        except Exception:
            traceback.print_exc()
            failed.append(name)
        keep(document(figures, sizes, device) | {"failed": failed})
    Console().print(table(figures, device))
    return not failed
