"""The gather kernel against indexing: a copy has no tolerance."""

from __future__ import annotations

import pytest
import torch

from kvstore.kernels.compact.reference import gather_rows as reference_rows

kernel = pytest.importorskip("kvstore.kernels.compact.kernel")

TOKENS = 300
# heads empty, one row, and sizes around the tiles
COUNTS = ((0, 1, 63, 257), (0, 0, 0, 0), (300,), (5, 0, 0, 128, 0))


def chosen(counts: tuple[int, ...], device: torch.device) -> list[torch.Tensor]:
    return [torch.randperm(TOKENS)[:count].sort().values.to(device) for count in counts]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("counts", COUNTS)
def test_every_row_is_copied_to_its_place(
    counts: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    size = 24 if dtype == torch.float32 else 64
    k, v = torch.randn(2, len(counts), TOKENS, size, device=device).to(dtype)
    rows = chosen(counts, device)
    keys, values = kernel.gather_rows(k, v, rows)
    expected = [torch.cat([x[h, r] for h, r in enumerate(rows)]) for x in (k, v)]
    assert torch.equal(keys, expected[0])
    assert torch.equal(values, expected[1])


def test_strides_of_any_kind(device: torch.device) -> None:
    k = torch.randn(TOKENS, 3, 32, device=device).transpose(0, 1)
    v = torch.randn(3, 32, TOKENS, device=device).transpose(1, 2)
    rows = chosen((7, 0, 130), device)
    for found, expected in zip(
        kernel.gather_rows(k, v, rows), reference_rows(k, v, rows), strict=True
    ):
        assert torch.equal(found, expected)
