"""The column peak kernel against its definition in float64."""

from __future__ import annotations

import pytest
import torch

from kvstore.kernels.column_peak import reference

kernel = pytest.importorskip("kvstore.kernels.column_peak.kernel")

GROUP, HEADS, SCALE = 3, 2, 0.25


def both(
    n: int, m: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Peaks by kernel and by definition, raised from something; strided inputs."""
    q = (torch.randn(m, HEADS * GROUP, 24) * 2).to(dtype).transpose(0, 1)
    k = (torch.randn(HEADS, n, 24) * 2).to(dtype)
    lse = torch.randn(HEADS * GROUP, m) + 12
    start, found = torch.rand(HEADS * GROUP, n) / 50, []
    for form, place in ((kernel, device), (reference, torch.device("cpu"))):
        peaks = start.clone().to(place, torch.float64 if form is reference else None)
        form.column_peak(
            peaks,
            q.to(place),
            k.to(place),
            lse.to(place),
            n + 4,
            scale=SCALE,
            sliding_window=window,
        )
        found.append(peaks.cpu())
    return found[0], found[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("n", "m", "window"), [(1, 1, None), (63, 2, 30), (130, 70, None), (97, 66, 80), (9, 3, 1)]
)
def test_agrees_with_the_definition(
    n: int, m: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> None:
    found, expected = both(n, m, window, dtype, device)
    torch.testing.assert_close(found.double(), expected, atol=1e-7, rtol=2e-5)


@pytest.mark.parametrize(("n", "m"), [(0, 3), (5, 0)])
def test_peaks_do_not_change_without_queries_or_keys(n: int, m: int, device: torch.device) -> None:
    peaks = torch.rand(HEADS, n, device=device)
    before = peaks.clone()
    q, k = torch.randn(HEADS, m, 16, device=device), torch.randn(HEADS, n, 16, device=device)
    lse = torch.zeros(HEADS, m, device=device)
    kernel.column_peak(peaks, q, k, lse, n, scale=SCALE, sliding_window=None)
    assert torch.equal(peaks, before)
