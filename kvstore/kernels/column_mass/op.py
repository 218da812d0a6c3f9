"""The attention mass that each column receives, by distance, without an n × n matrix."""

from __future__ import annotations

from collections.abc import Callable

import torch

from kvstore.kernels.column_mass import cpu
from kvstore.kernels.column_mass.input import ColumnMassInput
from kvstore.kernels.dispatch import runs_triton


def column_mass(far: torch.Tensor, inputs: ColumnMassInput) -> None:
    """Add to `far[h, e, j]` the sum over the query rows `i` with `i − j >= edges[e]` of `A_ij`.

    `far` f32 `[HQ, E, T]` with `T >= n` is changed in place; `ColumnMassInput` defines `A_ij`.

    The tiled form was written for the CPU and also serves every device without Triton.
    """
    assert far.shape == (inputs.q.shape[0], len(inputs.edges), far.shape[2])
    assert far.shape[2] >= inputs.k.shape[1], "a column per key"
    _form_for(far)(far, inputs)


def _form_for(far: torch.Tensor) -> Callable[[torch.Tensor, ColumnMassInput], None]:
    if runs_triton(far):
        # imported where it can run, because some machines have no Triton
        from kvstore.kernels.column_mass import kernel

        return kernel.column_mass
    return cpu.column_mass
