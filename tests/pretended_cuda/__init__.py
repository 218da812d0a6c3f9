"""A CUDA device that is none: what runs on one and what does not, found out without having any.

Tensors on it say that they are on CUDA, and compute on the CPU, Triton's kernels in the
interpreter. Mixed devices, hidden waits and what cannot be captured fail as they would on a device,
and a captured graph replays what was recorded at the addresses that it had then.
"""

from tests.pretended_cuda.install import pretended_cuda

__all__ = ["pretended_cuda"]
