"""Division of rows by their scales in compiled kernels. No GPU runs it here, and the interpreter
divides otherwise. The same steps, each rounded once, give what page_layout gives."""

from __future__ import annotations

import pytest
import torch

STEPS = 127


def once(exact: torch.Tensor) -> torch.Tensor:
    """A result in float64 rounded to f32, as one instruction leaves it."""
    return exact.float().double()


def divided(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """`coded_rows._over`, step by step; f32 in, f32 out."""
    moved = torch.where(scale < 2.0**-60, 2.0**80, torch.where(scale > 2.0**60, 2.0**-80, 1.0))
    divisor = once(scale.double() * moved)
    # two units in the last place off, as an approximate inverse may be
    inverse = once(1 / divisor).float()
    inverse = (inverse.view(torch.int32) + 2).view(torch.float32).double()
    given = once(values.double() * moved)
    near = once(given * inverse)
    rest = once(given - near * divisor)
    return once(rest * inverse + near).float()


@pytest.mark.parametrize("size", [-130, -100, -60, -7, 0, 30, 61, 110])
def test_a_quotient_is_the_nearest(size: int) -> None:
    source = torch.Generator().manual_seed(size)
    scale = ((1 + torch.rand(1000, 1, generator=source)) * 2.0**size).bfloat16().float()
    shares = (2 * torch.rand(1000, 500, generator=source) - 1) * STEPS
    # and halfway between two codes, where the last bit decides
    shares[:, ::2] = shares[:, ::2].floor() + 0.5
    values = shares * scale
    for given in (values, torch.nextafter(values, torch.full_like(values, torch.inf))):
        assert torch.equal(divided(given, scale), given / scale)
