"""Compiled kernels run on as many threads as torch does."""

from __future__ import annotations

import numba
import torch

# what `njit` makes parallel by itself, small array expressions among it, costs more than it saves
ONLY_PRANGE = {
    "prange": True,
    "comprehension": False,
    "fusion": False,
    "inplace_binop": False,
    "numpy": False,
    "reduction": False,
    "setitem": False,
    "stencil": False,
}


def match_torch_threads() -> int:
    """Set the calling thread's number of kernel threads to torch's, and return it."""
    threads = min(torch.get_num_threads(), int(numba.config.NUMBA_NUM_THREADS))
    numba.set_num_threads(threads)
    return threads
