"""torch's flash attention takes what prefill gives it, and answers in the expected shapes."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from kvstore.kernels.prefill_attention.flash import prefill_attention


@pytest.mark.parametrize("window", [None, 9])
def test_shapes_and_dtypes(window: int | None) -> None:
    with FakeTensorMode():
        q = torch.empty(5, 4, 64, device="cuda", dtype=torch.bfloat16).transpose(0, 1)
        k, v = torch.empty(2, 2, 65, 64, device="cuda", dtype=torch.bfloat16)
        out, lse = prefill_attention(q, k, v, scale=0.25, sliding_window=window)
    assert (out.shape, out.dtype) == (q.shape, torch.bfloat16)
    assert (lse.shape, lse.dtype) == (q.shape[:2], torch.float32)
