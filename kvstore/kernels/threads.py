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


def match_torch_threads(most: int) -> int:
    """Give the calling thread's kernels as many threads as torch has, at most `most`."""
    threads = min(torch.get_num_threads(), int(numba.config.NUMBA_NUM_THREADS), most)
    numba.set_num_threads(threads)
    return threads
