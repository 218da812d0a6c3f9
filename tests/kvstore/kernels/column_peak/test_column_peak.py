"""Column peaks against their definition in float64."""

import pytest
import torch

from kvstore.kernels.column_peak import cpu
from kvstore.kernels.column_peak import reference as column_peak_reference
from kvstore.kernels.column_peak.op import column_peak
from kvstore.kernels.prefill_attention.op import prefill_attention

SCALE = 0.25


def attended(n, m, window):
    """A prompt of `n` columns, then `m` rows more: their queries, the columns, log-sum-exps."""
    torch.manual_seed(n + m)
    k, v = torch.randn(2, n + m, 16) * 2, torch.randn(2, n + m, 16)
    q = torch.randn(6, m, 16) * 2
    _, lse = prefill_attention(q, k, v, scale=SCALE, sliding_window=window)
    return q, k, lse


def peaks_by_map(q, k, n, window):
    total = k.shape[1]
    rows = torch.arange(n, total)
    distance = rows[:, None] - torch.arange(total)
    hidden = (distance < 0) | (distance >= (window or total))
    keys = k.double().repeat_interleave(3, 0)
    logits = (q.double() @ keys.mT * SCALE).masked_fill(hidden, -torch.inf)
    return logits.softmax(-1)[:, :, :n].amax(1)


@pytest.mark.parametrize("form", [column_peak, column_peak_reference.column_peak])
@pytest.mark.parametrize("window", [None, 5, 70])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (63, 2), (257, 100)])
def test_agrees_with_the_attention_map(form, window, n, m, monkeypatch):
    # several blocks of rows
    monkeypatch.setattr(cpu, "_TILE_ELEMENTS", 6 * 257 * 16)
    q, k, lse = attended(n, m, window)
    peaks = torch.zeros(6, n)
    form(peaks, q, k[:, :n], lse, n, scale=SCALE, sliding_window=window)
    torch.testing.assert_close(peaks.double(), peaks_by_map(q, k, n, window), atol=1e-5, rtol=1e-4)


def test_a_later_part_only_raises_peaks():
    q, k, lse = attended(40, 20, None)
    whole, parts = torch.zeros(6, 40), torch.zeros(6, 40)
    column_peak(whole, q, k[:, :40], lse, 40, scale=SCALE)
    for rows in (slice(0, 7), slice(7, 20)):
        column_peak(parts, q[:, rows], k[:, :40], lse[:, rows], 40 + rows.start, scale=SCALE)
    torch.testing.assert_close(parts, whole)
    column_peak(parts, q, k[:, :40], lse + 5, 40, scale=SCALE)
    torch.testing.assert_close(parts, whole)
