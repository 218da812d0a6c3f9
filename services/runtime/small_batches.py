"""A loaded model made faster for a decode step's few rows; its weights and its maths stay."""

from __future__ import annotations

import torch
from torch.nn import functional

from services.runtime.small_linear import MOST_ROWS, small_linear


class SmallBatchLinear(torch.nn.Linear):
    """A `Linear` that multiplies a few rows by a kernel of ours, and more as ever."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., K]` to `[..., N]`."""
        few = x.numel() <= MOST_ROWS * self.in_features
        # the kernel has no gradients
        product = small_linear if few and not torch.is_grad_enabled() else functional.linear
        return product(x, self.weight, self.bias)


def prepare_for_small_batches(model: torch.nn.Module) -> None:
    """Let the model's plain linear layers, f32 on CPU, take few rows by `small_linear`.

    Layers of other kinds, devices and dtypes are left alone. Parameters and their names stay, so
    that nothing is copied and the weights' digest is the same.
    """
    for module in model.modules():
        # nothing derived from it: a subclass means something else by it
        if type(module) is torch.nn.Linear and _is_plain(module.weight):
            module.__class__ = SmallBatchLinear


def _is_plain(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.is_contiguous()
