"""The choice between Triton kernels and others."""

from __future__ import annotations

import functools
import importlib.util

import torch


def runs_triton(tensor: torch.Tensor) -> bool:
    """Whether a Triton kernel can be launched on the tensor; torch for CUDA brings Triton."""
    return tensor.is_cuda and _has_triton()


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
