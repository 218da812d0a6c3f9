"""All measurements in one run on one device."""

from __future__ import annotations

import torch
from rich.console import Console

from benchmarks.gpu import ceilings, column_mass, compact, decode_attention, decode_step, retain
from benchmarks.gpu.figures import document, table
from benchmarks.gpu.sizes import LLAMA_3_8B, TINY
from benchmarks.gpu.timing import Timer


def run(*, tiny: bool) -> dict[str, object]:
    """Measure, print, and return what the JSON file is to hold."""
    sizes, device = (TINY, torch.device("cpu")) if tiny else (LLAMA_3_8B, torch.device("cuda"))
    timer = Timer(device, sizes.flush_bytes, sizes.repeats)
    limits = ceilings.measure(sizes, timer)
    figures = limits.figures()
    figures |= decode_attention.measure(sizes, timer, limits)
    figures |= column_mass.measure(sizes, timer)
    figures |= compact.measure(sizes, timer, limits)
    figures |= retain.measure(sizes, timer)
    figures |= decode_step.measure(sizes, timer, limits)
    Console().print(table(figures, device))
    return document(figures, sizes, device)
