"""Prefill attention against dense attention in float64."""

import pytest
import torch

from kvstore.kernels.prefill_attention import cpu, reference
from kvstore.kernels.prefill_attention.op import prefill_attention


def dense(q, k, v, scale, window):
    group = q.shape[0] // k.shape[0]
    m, n = q.shape[1], k.shape[1]
    keys, values = (x.double().repeat_interleave(group, 0) for x in (k, v))
    distance = torch.arange(n - m, n)[:, None] - torch.arange(n)
    hidden = (distance < 0) | (distance >= (window or n))
    logits = (q.double() @ keys.mT * scale).masked_fill(hidden, -torch.inf)
    return logits.softmax(-1) @ values, logits.logsumexp(-1)


@pytest.mark.parametrize("form", [cpu, reference], ids=["cpu", "reference"])
@pytest.mark.parametrize(
    ("m", "n", "window"),
    [
        (1, 1, None),
        (2, 2, None),
        (63, 63, 7),
        (1, 257, None),
        (100, 257, None),
        (257, 257, 64),
        (600, 700, None),
        (600, 700, 33),
        (64, 64, 1),
        (64, 64, 500),
    ],
)
def test_agrees_with_dense_float64(form, m, n, window):
    torch.manual_seed(n + m)
    q, k, v = torch.randn(6, m, 16) * 2, torch.randn(2, n, 16) * 2, torch.randn(2, n, 16)
    out, lse = form.prefill_attention(q, k, v, scale=0.25, sliding_window=window)
    expected_out, expected_lse = dense(q, k, v, 0.25, window)
    torch.testing.assert_close(out.double(), expected_out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse.double(), expected_lse, atol=1e-5, rtol=1e-5)


def test_chunks_give_what_the_whole_prompt_gives():
    torch.manual_seed(0)
    q, k, v = torch.randn(6, 257, 16), torch.randn(2, 257, 16), torch.randn(2, 257, 16)
    out, lse = prefill_attention(q, k, v, scale=0.25)
    parts = [
        prefill_attention(q[:, a:b], k[:, :b], v[:, :b], scale=0.25)
        for a, b in ((0, 100), (100, 101), (101, 257))
    ]
    torch.testing.assert_close(torch.cat([p[0] for p in parts], 1), out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat([p[1] for p in parts], 1), lse, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", [cpu, reference], ids=["cpu", "reference"])
def test_bfloat16_keeps_its_dtype_and_an_exact_lse(form):
    torch.manual_seed(1)
    q, k, v = (torch.randn(h, 65, 16).bfloat16() for h in (4, 2, 2))
    out, lse = form.prefill_attention(q, k, v, scale=0.25, sliding_window=None)
    expected_out, expected_lse = dense(q, k, v, 0.25, None)
    assert out.dtype == torch.bfloat16
    assert lse.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected_out, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(lse.double(), expected_lse, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("any_device", ["", "gpu"], indirect=True)
@pytest.mark.parametrize(
    ("m", "n", "window"), [(1, 1, None), (65, 65, None), (65, 65, 9), (5, 65, None), (5, 65, 9)]
)
def test_every_device_in_16_bits(any_device, m, n, window):
    torch.manual_seed(m)
    queries = torch.randn(m, 4, 16).bfloat16().transpose(0, 1)
    k, v = torch.randn(2, 2, n, 16).bfloat16()
    given = (part.to(any_device) for part in (queries, k, v))
    out, lse = prefill_attention(*given, scale=0.25, sliding_window=window)
    expected_out, expected_lse = dense(queries, k, v, 0.25, window)
    assert out.device.type == any_device
    torch.testing.assert_close(out.cpu().double(), expected_out, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(lse.cpu().double(), expected_lse, atol=1e-4, rtol=1e-4)
