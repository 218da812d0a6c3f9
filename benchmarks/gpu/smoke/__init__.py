"""Every kernel against float64 on the device at a model's shapes, in seconds.

Results are filled with NaN before and computed twice: an element that is not written, or differs
the second time, is as wrong as one that is off. A figure is the greatest error in tolerances.
"""

from __future__ import annotations

import torch

from benchmarks.gpu.figures import Figures
from benchmarks.gpu.setting import Setting


def check(here: Setting) -> Figures:
    """Yield the errors of what the part is named for."""
    # new tensors are full of NaN
    torch.use_deterministic_algorithms(True, warn_only=True)
    if not torch.empty(3, device=here.device).isnan().all():
        raise RuntimeError("new tensors are not poisoned")
    # any draw; the same ones each time, so that a failure is met again
    torch.manual_seed(0)
    match here.part.removeprefix("smoke-"):
        case "retention":
            from benchmarks.gpu.smoke import retention as kernels
        case "gather":
            from benchmarks.gpu.smoke import gather as kernels
        case "prefill":
            from benchmarks.gpu.smoke import prefill as kernels
        case _:
            from benchmarks.gpu.smoke import attention as kernels
    yield from kernels.check(here)
